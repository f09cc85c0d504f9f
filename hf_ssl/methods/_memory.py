"""Memories of past embeddings."""

import torch
import torch.nn.functional as F

from ._distributed import gather


@torch.no_grad()
def enqueue(queue, position, rows):
    """Overwrite the oldest rows of `queue`, (K, P), by `rows`, (N, P), N <= K, in place; `position` is a scalar tensor."""
    places = (position + torch.arange(len(rows), device=queue.device)) % len(queue)
    queue.index_copy_(0, places, rows.to(queue.dtype))
    position.add_(len(rows)).remainder_(len(queue))


@torch.no_grad()
def write_rows(bank, indices, rows):
    """Overwrite the rows `indices`, (N,) int64, of `bank`, (M, P), by `rows`, (N, P), of all processes, in place.

    An index that stands twice, as at the border of two epochs, gets its last row in the order of `gather`: writing alone
    would leave it to the device which one wins, and banks of processes would differ.
    """
    indices, rows = gather(indices), gather(rows)  # (W N,), (W N, P)
    # of equal indices, which a stable sort keeps in order, the last; the others are written as it is
    order = indices.argsort(stable=True)
    last = torch.searchsorted(indices[order], indices, right=True) - 1
    bank.index_copy_(0, indices, rows[order[last]].to(bank.dtype))


@torch.no_grad()
def move_rows(bank, indices, rows, momentum):
    """Move the rows `indices`, (N,) int64, of a bank of unit vectors, (M, P), towards unit vectors `rows`, (N, P), of all
    processes, in place: v <- momentum x v + (1 - momentum) x row, normalised. An index that stands twice: as `write_rows`."""
    moved = torch.lerp(rows.float(), bank[indices].float(), momentum)
    write_rows(bank, indices, F.normalize(moved, dim=1))


@torch.no_grad()
def fill_bank(bank, projector, features):
    """Write into a bank, (M, P), the unit vectors that `projector` makes of the features of all rows, (M, D), in place."""
    for vectors, part in zip(bank.split(4096), features.split(4096), strict=True):
        vectors.copy_(F.normalize(projector(part).float(), dim=1))
