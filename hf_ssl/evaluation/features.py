"""Features of a frozen encoder over a data set, on one or many processes."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NamedTuple

import datasets
import torch
from accelerate.utils import gather
from tqdm.auto import tqdm

from ..data.images import LABEL_COLUMNS, decode_image, image_rows
from ..data.loading import find_column
from ..errors import InputError
from .processes import process_state

logger = logging.getLogger(__name__)

BATCH_SIZE = 256
STREAM_BUFFER = 10_000  # rows shuffled together when max_samples cuts a stream


class Features(NamedTuple):
    """features (M, D) float32, labels (M,) int64, rows (M,) int64, where each stands in the data; all on the CPU.
    skipped: the number of broken images. On processes other than the main one M is 0."""

    features: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    skipped: int


@torch.no_grad()
def extract(encoder, data, image_column=None, label_column=None, batch_size=BATCH_SIZE, description=None):
    """The features of each row of `data` (a Dataset or a stream), in its order.

    Batch b is made by process b modulo the number of processes, so it holds the same rows, and gives the same numbers,
    on any number of processes. All are gathered on the main one. Broken images are skipped and counted. Raises
    InputError if a column is missing, a row has no label, or no image can be read.
    """
    state = process_state()
    data, image_column, label_column = image_and_label(data, image_column, label_column)
    total = len(data) if isinstance(data, datasets.Dataset) else None
    encoder.model.to(state.device)
    width = encoder(encoder.preprocess(first_images(data, image_column, encoder.channels, 1), state.device)).shape[1]

    # a stream's length is not known: the table doubles when it is full
    size = (total or 64 * batch_size) if state.is_main_process else 0
    features, labels, rows = torch.empty(size, width), *torch.empty(2, size, dtype=torch.int64)
    filled = skipped = 0
    progress = tqdm(total=total, unit="img", desc=description, disable=not state.is_main_process)
    with ThreadPoolExecutor() as threads:
        for start, batch in _own_batches(data, batch_size, state):
            images = list(threads.map(partial(_decode, channels=encoder.channels), batch.get(image_column, [])))
            good = [i for i, image in enumerate(images) if image is not None]
            # `gather` wants equal sizes: the end of a shorter batch is padding, marked by row -1
            own = torch.zeros(batch_size, width, device=state.device)
            own_labels, own_rows = torch.full((2, batch_size), -1, device=state.device)
            if good:
                own[: len(good)] = encoder(encoder.preprocess([images[i] for i in good], state.device))
                own_labels[: len(good)] = torch.tensor(_checked([batch[label_column][i] for i in good], label_column))
                own_rows[: len(good)] = torch.tensor(good) + start
            counts = torch.tensor([len(images), len(images) - len(good)], device=state.device)
            own, own_labels, own_rows, counts = gather((own, own_labels, own_rows, counts))
            seen, broken = counts.reshape(-1, 2).sum(0).tolist()
            progress.update(seen)
            skipped += broken
            if not state.is_main_process:
                continue
            kept = own_rows >= 0
            end = filled + int(kept.sum())
            if end > len(labels):
                features, labels, rows = (torch.cat([t, torch.empty_like(t)]) for t in (features, labels, rows))
            for whole, part in ((features, own), (labels, own_labels), (rows, own_rows)):
                whole[filled:end] = part[kept].cpu()
            filled = end
    progress.close()
    if skipped:
        logger.warning("%d images could not be decoded and were left out.", skipped)
    return Features(features[:filled], labels[:filled], rows[:filled], skipped)


def image_and_label(data, image_column=None, label_column=None):
    """(data with only these two columns, images undecoded; the name of the image column; that of the label column)."""
    label_column = find_column(data, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
    data, image_column = image_rows(data, image_column)
    return data.select_columns([image_column, label_column]), image_column, label_column


def take_samples(data, count, seed):
    """`count` rows drawn at random, in the order of the data; of a stream the first ones of a shuffled buffer."""
    if not isinstance(data, datasets.Dataset):
        return data.shuffle(seed=seed, buffer_size=STREAM_BUFFER).take(count)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.select(order[:count].sort().values.tolist())


def decode_rows(data, image_column, channels, rows):
    """Images of the given rows, in their order, as uint8 (channels, H, W)."""
    if isinstance(data, datasets.Dataset):
        return [_decode(data[row][image_column], channels) for row in rows]
    wanted = set(rows)
    found = {i: _decode(row[image_column], channels) for i, row in enumerate(data) if i in wanted}
    return [found[row] for row in rows]


def labelled_images(data, image_column, label_column, channels):
    """(every image that can be decoded, uint8 (channels, H, W); their labels, (N,) int64)."""
    rows = [(_decode(row[image_column], channels), row[label_column]) for row in data]
    rows = [(image, label) for image, label in rows if image is not None]
    return [image for image, _ in rows], torch.tensor(_checked([label for _, label in rows], label_column))


def first_images(data, image_column, channels, count):
    """The first `count` images that can be decoded, or as many as there are, uint8 (channels, H, W) each."""
    decoded = (_decode(row[image_column], channels) for row in data)
    images = list(islice((image for image in decoded if image is not None), count))
    if not images:
        raise InputError(f"image_column '{image_column}' holds no image that can be decoded.")
    return images


def checksum(model):
    """A digest of all parameters and buffers, bit by bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def frozen(model):
    """Asserts that the block leaves every parameter and buffer as it was, else a probe is void."""
    before = checksum(model)
    yield
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


def _decode(value, channels):
    try:
        return decode_image(value, channels)
    except Exception:
        return None


def _checked(labels, label_column):
    for label in labels:
        if not isinstance(label, int) or label < 0:
            raise InputError(f"label_column '{label_column}' holds {label!r}: expected a class number in each row.")
    return labels


__all__ = [
    "Features",
    "checksum",
    "decode_rows",
    "extract",
    "first_images",
    "frozen",
    "image_and_label",
    "labelled_images",
    "take_samples",
]
