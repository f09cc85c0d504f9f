"""Memories of past embeddings."""

import torch


@torch.no_grad()
def enqueue(queue, position, rows):
    """Overwrite the oldest rows of `queue`, (K, P), by `rows`, (N, P), N <= K, in place; `position` is a scalar tensor."""
    places = (position + torch.arange(len(rows), device=queue.device)) % len(queue)
    queue.index_copy_(0, places, rows.to(queue.dtype))
    position.add_(len(rows)).remainder_(len(queue))
