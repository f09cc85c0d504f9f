"""Endless training batches for one process, in an order that can be stopped anywhere and taken up again.

Two orders, both functions of the seed alone, both saved as a few integers:

- Rows that can be indexed: epoch after epoch, each a permutation of all rows, without a gap or a short batch between
  them. Global batch k is the positions k G .. (k + 1) G of that sequence and each process takes its slice, so a run
  can go on with another batch size or another number of processes.
- A stream: shards in a new order each epoch, dealt out to the processes and their workers; within each, blocks of
  `buffer_size` rows are emitted in random order while the next block fills. A position is where the current block
  began and how many of its rows are out, so resuming reads two blocks of its current shard again (and that shard
  from its start, where the file format cannot seek), and no row is stored.

A row that cannot be decoded, or the rest of a shard that cannot be read, is replaced by another and counted, never fatal by
itself.

Rows may be grouped, by speaker for instance: both orders then go in runs of rows of one group (`_in_runs`). Their size does
not depend on the processes, so neither do the batches of all processes together; a process's batch is of one group
if it is as large as a run. What is left over of the groups of an epoch, or of a stream's block, makes runs of several.
"""

import logging
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..methods._random import seed_from
from .loading import DataError, say_once
from .stream import BrokenShard, Stream
from .workers import read_ahead

ROWS_IN_ORDER = 64  # of a batch in the order of the data
ATTEMPTS = 10  # stand-ins for a row, half of them of its group, where there are groups
MOST_ATTEMPTS = 300  # rows in a row before all are taken to be of no use: 1 in 5 million if 95% are broken


class Unfit(ValueError):
    """Raised by a decoder for a row that is whole, but of no use: replaced and counted, not held against the data."""


class RowDecoder(Protocol):
    """What a modality brings: `decode` one row, `collate` decoded rows and their seeds to a dict of tensors.

    A row also has its `sample_seed`, which is another in each epoch. group_by, where there is one: (column, size), for runs of
    `size` rows with one value in that column. without_augmentation, where there is one: the decoder that shows the same
    rows as evaluation sees them.
    """

    def decode(self, row: dict): ...

    def collate(self, items: list, sample_seeds: torch.Tensor) -> dict: ...


def without_augmentation(decoder):
    """The decoder of the same rows as evaluation sees them; `decoder` itself, where it makes no difference."""
    return decoder.without_augmentation() if hasattr(decoder, "without_augmentation") else decoder


@dataclass
class Skipped:
    """How many rows no batch could be made of, and why the last of each kind was none."""

    broken: int = 0
    unfit: int = 0
    reasons: dict = field(default_factory=dict)
    shards: list = field(default_factory=list)

    def add(self, error):
        kind = "unfit" if isinstance(error, Unfit) else "broken"
        setattr(self, kind, getattr(self, kind) + 1)
        self.reasons[kind] = str(error).strip().rstrip(".")
        if isinstance(error, BrokenShard):
            self.shards.append(self.reasons[kind])

    def too_many(self, last):
        """What to say when rows in a row are of no use."""
        rows = f"{MOST_ATTEMPTS} rows in a row could not be {'used' if isinstance(last, Unfit) else 'decoded'}"
        return f"{rows}, the last because: {str(last).strip().rstrip('.')}."


@dataclass
class Batch:
    """tensors: the input of the view. skipped: on the way. epoch: of one of its rows. position: what to go on from after it
    (streams only). error: set instead of tensors when the data cannot be used at all."""

    tensors: dict = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    epoch: int = 0
    worker: int = 0
    position: dict | None = None
    error: str | None = None

    def pin_memory(self):
        """Asked for by the DataLoader where there is an accelerator; it would pass an unknown object by."""
        self.tensors = {name: value.pin_memory() for name, value in self.tensors.items()}
        return self


def _make_batch(decoder, items, seeds, *how):
    """The Batch of decoded items. A DataError becomes its error: raised in a worker, it would come with a traceback."""
    try:
        return Batch(decoder.collate(items, torch.tensor(seeds)), *how)
    except DataError as error:
        return Batch(error=str(error))


class TrainLoader:
    """Iterate for batches without end; `state_dict()` describes the point after the last one that was handed out.

    data: a `datasets.Dataset` or `IterableDataset`. batch_size: rows of this process. process, processes: its rank and
    how many there are. buffer_size: rows shuffled together in a stream. sample_indices: whether batches also have these,
    (N,) int64: the number in the data of the row that each sample was made of, a stand-in's if it stands for a broken
    one. A stream's rows have no numbers.
    """

    def __init__(
        self, data, decoder: RowDecoder, batch_size, seed, num_workers=0, buffer_size=1000, process=0, processes=1,
        sample_indices=False,
    ):  # fmt: skip
        self.streaming = isinstance(data, datasets.IterableDataset)
        self.data, self.decoder, self.batch_size, self.seed = data, decoder, batch_size, seed
        self.group_column, self.run_length = getattr(decoder, "group_by", None) or (None, 1)
        if not self.streaming and len(data) < self.run_length:
            raise DataError(
                f"The data have {len(data)} rows, fewer than the {self.run_length} of one '{self.group_column}' in a run."
            )
        self.epoch_length = None if self.streaming else len(data) // self.run_length * self.run_length  # rows
        self.num_workers, self.sample_indices = num_workers, sample_indices
        self.buffer_size = -(-max(buffer_size, 1) // self.run_length) * self.run_length  # whole runs
        self.process, self.processes = process, processes
        self.rows_seen = 0  # by all processes together
        self.epoch = 0
        self.broken = self.unfit = 0
        self.reasons = {}  # why the last of each kind was skipped
        self.workers = max(num_workers, 1)
        self.next_worker = 0
        self.positions: list[dict | None] = [None] * self.workers

    def __iter__(self):
        if self.streaming:
            batches = self._read(_StreamBatches(self))
        else:
            positions = _positions(self.rows_seen, self.batch_size, self.process, self.processes)
            batches = self._read(_ShuffledRows(self), _IteratorSampler(positions))
        for batch in batches:
            self.rows_seen += self.batch_size * self.processes
            self.broken, self.unfit = self.broken + batch.skipped.broken, self.unfit + batch.skipped.unfit
            self.reasons |= batch.skipped.reasons
            for shard in batch.skipped.shards:
                say_once(f"The stream goes on without the rest of a shard: {shard}.", logging.WARNING)
            self.epoch = batch.epoch
            if self.streaming:
                self.positions[batch.worker] = batch.position
                self.next_worker = (batch.worker + 1) % self.workers
            yield batch.tensors

    def _read(self, source, sampler=None):
        for batch in read_ahead(source, sampler, self.num_workers):
            if batch.error:
                raise DataError(batch.error)
            yield batch

    def epoch_begun_by(self, rows):
        """The epoch that has its first row among the next `rows` rows of all processes, the last if there are several;
        None if they only go on with one. It follows from the position alone, so it is the same in a run that is taken up."""
        before, after = ((self.rows_seen + more - 1) // self.epoch_length for more in (0, rows))
        return after if after > before else None

    def in_row_order(self, decoder, epoch):
        """This process's share of all rows once, in the order of the data, as batches of `decoder` with `epoch`'s seeds.

        The first process has the first rows. All shares have the same length: behind the last row comes row 0 again. The
        batches are the same on any number of processes, so that a row's features are, to the last bit.
        """
        share = -(-len(self.data) // (ROWS_IN_ORDER * self.processes)) * ROWS_IN_ORDER
        starts = range(self.process * share, (self.process + 1) * share, ROWS_IN_ORDER)
        keys = ([(epoch, row % len(self.data)) for row in range(s, s + ROWS_IN_ORDER)] for s in starts)
        for batch in self._read(_Rows(self.data, decoder, self.seed, self.group_column), _IteratorSampler(keys)):
            yield batch.tensors

    def state_dict(self):
        state = {"streaming": self.streaming, "rows_seen": self.rows_seen, "broken": self.broken, "unfit": self.unfit}
        state["run_length"] = self.run_length
        if not self.streaming:
            state["rows"] = len(self.data)
        else:
            state |= {"shards": self.data.num_shards, "processes": self.processes, "workers": self.workers}
            state |= {"next_worker": self.next_worker}
            state |= {"buffer_size": self.buffer_size, "positions": self.positions}
        return state

    def load_state_dict(self, state):
        if state["streaming"] != self.streaming:
            raise DataError(
                f"The checkpoint's data was {'streamed' if state['streaming'] else 'not streamed'}: resume with "
                f"{'--streaming' if state['streaming'] else 'no --streaming'}."
            )
        if state.get("run_length", 1) != self.run_length:
            raise DataError(
                f"The checkpoint's batches held runs of {state.get('run_length', 1)} rows of one {self.group_column or 'group'}, "
                f"now of {self.run_length}: resume with the same."
            )
        if not self.streaming and state["rows"] != len(self.data):
            raise DataError(
                f"The data has {len(self.data)} rows, but had {state['rows']} when the checkpoint was written."
            )
        if self.streaming and state.get("shards", self.data.num_shards) != self.data.num_shards:
            raise DataError(
                f"The data has {self.data.num_shards} shards, but had {state['shards']} when the checkpoint was written."
            )
        self.rows_seen, self.broken, self.unfit = state["rows_seen"], state["broken"], state.get("unfit", 0)
        if self.streaming:
            for name in ("processes", "workers", "buffer_size"):
                if state[name] != getattr(self, name):
                    raise DataError(
                        f"A stream cannot be taken up with another number of {name.replace('_', ' ')}: the checkpoint "
                        f"has {state[name]}, this run {getattr(self, name)}; resume with the same, or without --streaming."
                    )
            self.positions, self.next_worker = list(state["positions"]), state["next_worker"]


def _positions(start, batch_size, process, processes):
    """The positions in the endless order that make this process's batches."""
    while True:
        first = start + process * batch_size
        yield range(first, first + batch_size)
        start += batch_size * processes


class _IteratorSampler:
    """A sampler from an iterator, which DataLoader asks for once."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __iter__(self):
        return self.iterator


@lru_cache(maxsize=2)
def _permutation(length, seed, epoch):
    generator = torch.Generator().manual_seed(seed_from(seed, epoch))
    return torch.randperm(length, generator=generator)


def _in_runs(order, groups, size):
    """A permutation so that rows of one group stand together, `size` at a time, the runs in random order.

    order: a random permutation of n rows. groups: the group of each row. What is left over of the groups is put together, those
    of one group side by side, and fewer than `size` of it left out. Each group keeps its rows in the order they had.
    """
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.asarray(order)
    rows = order[np.argsort(groups[order], kind="stable")]  # group by group
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a row in its group
    left_over = place >= np.repeat(counts // size * size, counts)
    rows = np.concatenate([rows[~left_over], rows[left_over]])
    runs = rows[: len(rows) // size * size].reshape(-1, size)
    return torch.from_numpy(runs[order[order < len(runs)]].reshape(-1))


class _Rows(Dataset):
    """(epoch, row) of each sample -> their batch."""

    def __init__(self, data, decoder, seed, group_column=None, sample_indices=False):
        self.data, self.decoder, self.seed, self.sample_indices = data, decoder, seed, sample_indices
        self.groups = None if group_column is None else np.asarray(data[group_column][:])

    def __getitem__(self, keys):
        items, rows, seeds, skipped = [], [], [], Skipped()
        columns = self.data[[row for _, row in keys]]
        for i, (epoch, row) in enumerate(keys):
            value = {name: column[i] for name, column in columns.items()}
            for attempt in range(MOST_ATTEMPTS):
                seed = seed_from(self.seed, epoch, row)
                try:
                    items.append(self.decoder.decode(value | {"sample_seed": seed}))
                    break
                except Exception as error:  # bounded by MOST_ATTEMPTS and max_broken_fraction
                    skipped.add(error)
                    last = error
                row = self._stand_in(epoch, row, attempt)
                value = self.data[row]
            else:
                return Batch(error=skipped.too_many(last))
            rows.append(row)
            seeds.append(seed)
        batch = _make_batch(self.decoder, items, seeds, skipped, keys[0][0])
        if self.sample_indices:
            batch.tensors["sample_indices"] = torch.tensor(rows)
        return batch

    def _stand_in(self, epoch, row, attempt):
        """Another row, the same at every try of this run; of the same group, unless half of the attempts were in vain."""
        draw = seed_from(self.seed, epoch, row, attempt)
        if self.groups is None or attempt >= ATTEMPTS // 2:
            return draw % len(self.data)
        group = np.flatnonzero(self.groups == self.groups[row])
        return int(group[draw % len(group)])


class _ShuffledRows(_Rows):
    """Positions in the endless order -> the batch of the rows there."""

    def __init__(self, loader: TrainLoader):
        super().__init__(loader.data, loader.decoder, loader.seed, loader.group_column, loader.sample_indices)
        self.run_length, self.length = loader.run_length, loader.epoch_length
        self.orders = {}

    def __getitem__(self, positions):
        return super().__getitem__(
            [(epoch, int(self._order(epoch)[i])) for epoch, i in (divmod(p, self.length) for p in positions)]
        )

    def _order(self, epoch):
        order = _permutation(len(self.data), self.seed, epoch)
        if self.groups is None:
            return order
        if epoch not in self.orders:
            self.orders = {e: known for e, known in self.orders.items() if e == epoch - 1}  # a batch may lie in both
            self.orders[epoch] = _in_runs(order, self.groups, self.run_length)
        return self.orders[epoch]


class _StreamBatches(IterableDataset):
    """The stream of one worker of one process, as batches."""

    def __init__(self, loader: TrainLoader):
        self.decoder, self.batch_size, self.seed = loader.decoder, loader.batch_size, loader.seed
        self.buffer_size, self.positions = loader.buffer_size, loader.positions
        self.group_column, self.run_length = loader.group_column, loader.run_length
        self.data, self.workers, self.next_worker = loader.data, loader.workers, loader.next_worker
        self.process, self.processes = loader.process, loader.processes

    def __iter__(self):
        info = get_worker_info()
        # the DataLoader asks its workers in turn, from 0: worker 0 goes on for the one whose turn it was
        worker = ((info.id if info else 0) + self.next_worker) % self.workers
        reader, readers = self.process * self.workers + worker, self.processes * self.workers
        shard_order, block_order = self._shard_order, partial(self._block_order, reader)
        stream = Stream(self.data, reader, readers, self.buffer_size, shard_order, block_order)
        rows = stream.rows(self.positions[worker])
        while True:
            items, seeds, skipped, in_a_row = [], [], Skipped(), 0
            while stream.position()["emitted"] % self.run_length:  # of a run that stood in for broken rows
                next(rows)
            while len(items) < self.batch_size:
                try:
                    key, row = next(rows)
                except StopIteration:
                    yield Batch(
                        error="The stream has no rows for one of its readers: it is empty, or smaller than processes x workers."
                    )
                    return
                except DataError as error:  # raised in a worker, it would come with a traceback
                    yield Batch(error=str(error))
                    return
                seed = seed_from(self.seed, *key)
                try:
                    if isinstance(row, BrokenShard):
                        raise row
                    items.append(self.decoder.decode(row | {"sample_seed": seed}))
                    in_a_row = 0
                except Exception as error:  # bounded by MOST_ATTEMPTS and max_broken_fraction
                    skipped.add(error)
                    in_a_row += 1
                    if in_a_row >= MOST_ATTEMPTS:
                        yield Batch(error=skipped.too_many(error))
                        return
                    continue
                seeds.append(seed)
                epoch = key[0]
            yield _make_batch(self.decoder, items, seeds, skipped, epoch, worker, stream.position())

    def _shard_order(self, epoch):
        return _permutation(self.data.num_shards, self.seed, epoch).tolist()

    def _block_order(self, reader, number, rows):
        generator = torch.Generator().manual_seed(seed_from(self.seed, reader, number))
        order = torch.randperm(len(rows), generator=generator)
        if self.group_column is not None:
            groups = [None if isinstance(row, BrokenShard) else row[self.group_column] for row in rows]
            known = next((group for group in groups if group is not None), 0)  # that a broken shard joins
            order = _in_runs(order, [known if group is None else group for group in groups], self.run_length)
        return order.tolist()
