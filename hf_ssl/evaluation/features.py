"""Features of a frozen encoder over a data set, on one or many processes."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import datasets
import torch
from accelerate.utils import gather
from tqdm.auto import tqdm

from ..errors import InputError
from .processes import process_state

logger = logging.getLogger(__name__)

STREAM_BUFFER = 10_000  # rows shuffled together when max_samples cuts a stream
NAMED = 5  # rows that a message names
CHUNK = 65_536  # rows that are looked at together


class Features(NamedTuple):
    """features (M, D) float32, labels (M,) int64, rows (M,) int64, where each stands in the data; all on the CPU.
    skipped: the number of broken rows; too_long: of rows cut to fit; not_finite: of rows whose features are not, and which
    were left out. On processes other than the main one M is 0."""

    features: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    skipped: int
    too_long: int = 0
    not_finite: int = 0


@torch.no_grad()
def extract(encoder, data, columns=(), label_column=None, batch_size=None, description=None, labelled=True):
    """The features of each row of `data` (a Dataset or a stream), in its order. encoder: as encoders/loading.py describes.

    Batch b is made by process b modulo the number of processes, so it holds the same rows, and gives the same numbers,
    on any number of processes. All are gathered on the main one. Broken rows, and those whose features are not finite, are
    left out and counted. labelled: else `data` and `columns` are taken as they are, and labels are -1. Raises InputError if a
    column is missing, a row has no label, or no row can be read or has finite features.
    """
    state = process_state()
    if labelled:
        data, columns, label_column = encoder.find_columns(data, columns, label_column)
    total = len(data) if isinstance(data, datasets.Dataset) else None
    batch_size = batch_size or encoder.batch_size
    encoder.model.to(state.device)
    width = encoder(encoder.preprocess(first_items(encoder, data, columns, 1), state.device)).shape[1]

    # a stream's length is not known: the table doubles when it is full
    size = (total or 64 * batch_size) if state.is_main_process else 0
    features, labels, rows = torch.empty(size, width), *torch.empty(2, size, dtype=torch.int64)
    filled = skipped = too_long = 0
    any_kept, not_finite = False, []  # the second: rows
    progress = tqdm(total=total, unit=encoder.unit, desc=description, disable=not state.is_main_process)
    with ThreadPoolExecutor() as threads:
        for start, batch in _own_batches(data, batch_size, state):
            items = list(threads.map(encoder.read, *(batch.get(name, []) for name in columns)))
            good = [i for i, item in enumerate(items) if item is not None]
            # `gather` wants equal sizes: the end of a shorter batch is padding, marked by row -1; -2 - row is not finite
            own = torch.zeros(batch_size, width, device=state.device)
            own_labels, own_rows = torch.full((2, batch_size), -1, device=state.device)
            counts = torch.tensor([len(items), len(items) - len(good), 0], device=state.device)
            if good:
                readable = [items[i] for i in good]
                own[: len(good)] = found = encoder(encoder.preprocess(readable, state.device))
                if labelled:
                    labels_read = checked_labels([batch[label_column][i] for i in good], label_column)
                    own_labels[: len(good)] = torch.tensor(labels_read)
                numbers = torch.tensor(good, device=state.device) + start
                own_rows[: len(good)] = torch.where(found.isfinite().all(1), numbers, -2 - numbers)
                counts[2] = encoder.too_long(readable)
            own, own_labels, own_rows, counts = gather((own, own_labels, own_rows, counts))
            seen, broken, cut = counts.reshape(-1, 3).sum(0).tolist()
            progress.update(seen)
            skipped, too_long = skipped + broken, too_long + cut
            kept = own_rows >= 0
            any_kept |= bool(kept.any())
            not_finite += (-2 - own_rows[own_rows < -1]).tolist()
            if not state.is_main_process:
                continue
            end = filled + int(kept.sum())
            if end > len(labels):
                features, labels, rows = (torch.cat([t, torch.empty_like(t)]) for t in (features, labels, rows))
            for whole, part in ((features, own), (labels, own_labels), (rows, own_rows)):
                whole[filled:end] = part[kept].cpu()
            filled = end
    progress.close()
    if skipped:
        logger.warning("%d %ss could not be decoded and were left out%s.", skipped, encoder.kind, because(encoder))
    if not_finite and not any_kept:
        check_weights(encoder)
        raise InputError(
            f"'{encoder.name}' gives features that are not finite for each of the {len(not_finite)} rows."
        )
    if not_finite:
        first = ", ".join(map(str, sorted(not_finite)[:NAMED])) + ("" if len(not_finite) <= NAMED else " ...")
        what = "%d %ss were left out, since their features are not finite: rows %s"
        logger.warning(f"{what} of %s.", len(not_finite), encoder.kind, first, description or "the data")
    return Features(features[:filled], labels[:filled], rows[:filled], skipped, too_long, len(not_finite))


def first_items(encoder, data, columns, count):
    """The first `count` rows that `encoder` can read, or as many as there are, as items."""
    read = (encoder.read(*(row[name] for name in columns)) for row in data)
    items = list(islice((item for item in read if item is not None), count))
    if not items:
        found = f"no {encoder.kind} that can be decoded{because(encoder)}"
        raise InputError(f"{encoder.kind}_column '{columns[0]}' holds {found}.")
    return items


def because(encoder):
    """Why the last broken row of this process could not be read, where the encoder says it."""
    reason = getattr(encoder, "reason", None)
    return f", the last because: {reason}" if reason else ""


def take_samples(data, count, seed):
    """`count` rows drawn at random, in the order of the data; of a stream the first ones of a shuffled buffer."""
    if not isinstance(data, datasets.Dataset):
        return data.shuffle(seed=seed, buffer_size=STREAM_BUFFER).take(count)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.select(order[:count].sort().values.tolist())


def check_finite(what, features):
    """Raise InputError if rows of (N, D) `features`, which the message calls `what`, hold NaN or infinite values: one such
    row is enough to bring probes to chance."""
    bad = [~part.isfinite().flatten(1).all(1) for part in features.split(CHUNK)]
    rows = torch.cat(bad).nonzero()[:, 0].tolist() if bad else []
    if rows:
        first = ", ".join(map(str, rows[:NAMED])) + ("" if len(rows) <= NAMED else " ...")
        raise InputError(
            f"{len(rows)} of {len(features)} rows of the {what} are not finite (row {first}): leave such rows out, as "
            "`extract` does."
        )


def check_weights(encoder):
    """Raise InputError that names the first weight of an encoder that holds NaN or infinite values."""
    for name, weight in encoder.model.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                f"'{encoder.name}' has values that are not finite in the weight '{name}': it is damaged, or its training "
                "diverged; choose another checkpoint."
            )


def checksum(model):
    """A digest of all parameters and buffers, bit by bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def frozen(model):
    """Asserts that the block leaves every parameter and buffer as it was, else a probe is void; gives their digest."""
    before = checksum(model)
    yield before
    if checksum(model) != before:
        raise AssertionError(f"{type(model).__name__} changed during a frozen-feature protocol.")


def _own_batches(data, batch_size, state):
    """(position of the first row, batch) for this process; each process gets as many, the last may be empty."""
    first, mine = 0, state.process_index * batch_size
    if isinstance(data, datasets.Dataset):
        for first in range(0, len(data), batch_size * state.num_processes):
            start = min(first + mine, len(data))
            yield start, data[start : start + batch_size] if start < len(data) else {}
        return
    batches = data.iter(batch_size)
    while group := list(islice(batches, state.num_processes)):
        yield first + mine, group[state.process_index] if state.process_index < len(group) else {}
        first += batch_size * state.num_processes


def checked_labels(labels, label_column):
    """`labels` themselves. Raises InputError unless they are class numbers."""
    for label in labels:
        if label == -1:  # GLUE's test parts
            raise InputError(
                f"label_column '{label_column}' holds -1, as where labels are kept secret: evaluate on another part, such as "
                "--test_split validation."
            )
        if not isinstance(label, int) or label < 0:
            raise InputError(f"label_column '{label_column}' holds {label!r}: expected a class number in each row.")
    return labels


__all__ = [
    "Features",
    "because",
    "check_finite",
    "check_weights",
    "checked_labels",
    "checksum",
    "extract",
    "first_items",
    "frozen",
    "take_samples",
]
