"""Endless training batches for one process, in an order that can be stopped anywhere and taken up again.

Two orders, both functions of the seed alone, both saved as a few integers:

- Rows that can be indexed: epoch after epoch, each a permutation of all rows, without a gap or a short batch between
  them. Global batch k is the positions k G .. (k + 1) G of that sequence and each process takes its slice, so a run
  can go on with another batch size or another number of processes.
- A stream: shards in a new order each epoch, dealt out to the processes and their workers; within each, blocks of
  `buffer_size` rows are emitted in random order while the next block fills. A position is where the current block
  began and how many of its rows are out, so resuming reads two blocks of its current shard again (and that shard
  from its start, where the file format cannot seek), and no row is stored.

A row that cannot be decoded is replaced by another and counted, never fatal by itself.
"""

import signal
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Protocol

import datasets
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..methods._random import seed_from
from .loading import DataError

ATTEMPTS = 10  # rows tried in a row before the data is taken to be undecodable as a whole


class RowDecoder(Protocol):
    """What a modality brings: `decode` one row, `collate` decoded rows and their seeds to a dict of tensors."""

    def decode(self, row: dict): ...

    def collate(self, items: list, sample_seeds: torch.Tensor) -> dict: ...


@dataclass
class Batch:
    """tensors: the input of the view. broken: rows skipped on the way, the last one for this reason. epoch: of one of its
    rows. position: what to go on from after it (streams only). error: set instead of tensors when the data cannot be used
    at all."""

    tensors: dict = field(default_factory=dict)
    broken: int = 0
    reason: str = ""
    epoch: int = 0
    worker: int = 0
    position: dict | None = None
    error: str | None = None

    def pin_memory(self):
        """Asked for by the DataLoader where there is an accelerator; it would pass an unknown object by."""
        self.tensors = {name: value.pin_memory() for name, value in self.tensors.items()}
        return self


class TrainLoader:
    """Iterate for batches without end; `state_dict()` describes the point after the last one that was handed out.

    data: a `datasets.Dataset` or `IterableDataset`. batch_size: rows of this process. process, processes: its rank and
    how many there are. buffer_size: rows shuffled together in a stream.
    """

    def __init__(
        self, data, decoder: RowDecoder, batch_size, seed, num_workers=0, buffer_size=1000, process=0, processes=1
    ):
        self.streaming = isinstance(data, datasets.IterableDataset)
        self.data, self.decoder, self.batch_size, self.seed = data, decoder, batch_size, seed
        self.num_workers, self.buffer_size = num_workers, buffer_size
        self.process, self.processes = process, processes
        self.rows_seen = 0  # by all processes together
        self.epoch = 0
        self.broken, self.reason = 0, ""  # rows skipped, and why the last one was
        self.workers = max(num_workers, 1)
        self.next_worker = 0
        self.positions: list[dict | None] = [None] * self.workers

    def __iter__(self):
        pin = torch.cuda.is_available()
        if self.streaming:
            stream = _StreamBatches(self)
            loader = DataLoader(
                stream, None, num_workers=self.num_workers, pin_memory=pin, worker_init_fn=_outlive_sigterm
            )
        else:
            rows = _MapBatches(self.data, self.decoder, self.seed)
            sampler = _positions(self.rows_seen, self.batch_size, self.process, self.processes)
            # one "sample" of the DataLoader is a whole batch, so that a worker sees its rows together
            loader = DataLoader(
                rows, None, sampler=_Endless(sampler), num_workers=self.num_workers, pin_memory=pin,
                worker_init_fn=_outlive_sigterm,
            )  # fmt: skip
        for batch in loader:
            if batch.error:
                raise DataError(batch.error)
            self.rows_seen += self.batch_size * self.processes
            self.broken, self.reason = self.broken + batch.broken, batch.reason or self.reason
            self.epoch = batch.epoch
            if self.streaming:
                self.positions[batch.worker] = batch.position
                self.next_worker = (batch.worker + 1) % self.workers
            yield batch.tensors

    def state_dict(self):
        state = {"streaming": self.streaming, "rows_seen": self.rows_seen, "broken": self.broken}
        if not self.streaming:
            state["rows"] = len(self.data)
        else:
            state |= {"processes": self.processes, "workers": self.workers, "next_worker": self.next_worker}
            state |= {"buffer_size": self.buffer_size, "positions": self.positions}
        return state

    def load_state_dict(self, state):
        if state["streaming"] != self.streaming:
            raise DataError(
                f"The checkpoint's data was {'streamed' if state['streaming'] else 'not streamed'}: resume with "
                f"{'--streaming' if state['streaming'] else 'no --streaming'}."
            )
        if not self.streaming and state["rows"] != len(self.data):
            raise DataError(
                f"The data has {len(self.data)} rows, but had {state['rows']} when the checkpoint was written."
            )
        self.rows_seen, self.broken = state["rows_seen"], state["broken"]
        if self.streaming:
            for name in ("processes", "workers", "buffer_size"):
                if state[name] != getattr(self, name):
                    raise DataError(
                        f"A stream cannot be taken up with another number of {name.replace('_', ' ')}: the checkpoint "
                        f"has {state[name]}, this run {getattr(self, name)}; resume with the same, or without --streaming."
                    )
            self.positions, self.next_worker = list(state["positions"]), state["next_worker"]


def _outlive_sigterm(worker):
    """A signal to the whole process group leaves the batches of the last step and the checkpoint to the main process,
    which ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _positions(start, batch_size, process, processes):
    """The positions in the endless order that make this process's batches."""
    while True:
        first = start + process * batch_size
        yield range(first, first + batch_size)
        start += batch_size * processes


class _Endless:
    """A sampler from an iterator, which DataLoader asks for once."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __iter__(self):
        return self.iterator


@lru_cache(maxsize=2)
def _permutation(length, seed, epoch):
    generator = torch.Generator().manual_seed(seed_from(seed, epoch))
    return torch.randperm(length, generator=generator)


class _MapBatches(Dataset):
    """Batch number -> the rows at these positions of the endless order."""

    def __init__(self, data, decoder, seed):
        self.data, self.decoder, self.seed = data, decoder, seed

    def __getitem__(self, positions):
        length = len(self.data)
        keys = [(p // length, int(_permutation(length, self.seed, p // length)[p % length])) for p in positions]
        items, seeds, broken, reason = [], [], 0, ""
        columns = self.data[[row for _, row in keys]]
        for i, (epoch, row) in enumerate(keys):
            value = {name: column[i] for name, column in columns.items()}
            for attempt in range(ATTEMPTS + 1):
                try:
                    items.append(self.decoder.decode(value))
                    break
                except (
                    Exception
                ) as error:  # whatever a decoder makes of a broken row; bounded by ATTEMPTS and max_broken_fraction
                    broken, reason = broken + 1, str(error).strip().rstrip(".")
                row = (
                    seed_from(self.seed, epoch, row, attempt) % length
                )  # a stand-in, the same at every try of this run
                value = self.data[row]
            else:
                return Batch(
                    error=f"{ATTEMPTS + 1} rows of the data in a row could not be decoded, the last because: {reason}."
                )
            seeds.append(seed_from(self.seed, epoch, row))
        return Batch(self.decoder.collate(items, torch.tensor(seeds)), broken, reason, keys[0][0])


class _StreamBatches(IterableDataset):
    """The stream of one worker of one process, as batches."""

    def __init__(self, loader: TrainLoader):
        self.decoder, self.batch_size, self.seed = loader.decoder, loader.batch_size, loader.seed
        self.buffer_size, self.positions = max(loader.buffer_size, 1), loader.positions
        self.data, self.workers, self.next_worker = loader.data, loader.workers, loader.next_worker
        self.process, self.processes = loader.process, loader.processes

    def __iter__(self):
        info = get_worker_info()
        # the DataLoader asks its workers in turn, from 0: worker 0 goes on for the one whose turn it was
        worker = ((info.id if info else 0) + self.next_worker) % self.workers
        stream = _Stream(
            self.data, self.seed, self.process * self.workers + worker, self.processes * self.workers, self.buffer_size
        )
        rows = stream.rows(self.positions[worker])
        while True:
            items, seeds, broken, in_a_row, reason = [], [], 0, 0, ""
            while len(items) < self.batch_size:
                try:
                    key, row = next(rows)
                except StopIteration:
                    yield Batch(
                        error="The stream has no rows for one of its readers: it is empty, or smaller than processes x workers."
                    )
                    return
                try:
                    items.append(self.decoder.decode(row))
                    in_a_row = 0
                except (
                    Exception
                ) as error:  # whatever a decoder makes of a broken row; bounded by ATTEMPTS and max_broken_fraction
                    broken, in_a_row, reason = broken + 1, in_a_row + 1, str(error).strip().rstrip(".")
                    if in_a_row > 10 * ATTEMPTS:
                        yield Batch(
                            error=f"{in_a_row} rows of the stream in a row could not be decoded, the last because: {reason}."
                        )
                        return
                    continue
                seeds.append(seed_from(self.seed, *key))
                epoch = key[0]
            tensors = self.decoder.collate(items, torch.tensor(seeds))
            yield Batch(tensors, broken, reason, epoch, worker, stream.position())


class _Stream:
    """One of `count` equal parts of a stream, in shuffled order, for ever."""

    def __init__(self, data, seed, index, count, buffer_size):
        self.seed, self.index, self.count, self.buffer_size = seed, index, count, buffer_size
        shards = data.num_shards
        self.shards = [data.shard(shards, shard) if shards > 1 else data for shard in range(shards)]
        # fewer shards than readers: each shard is read by several readers, which keep every n-th row
        self.parts = -(-count // shards)
        self.epoch = self.unit = self.row = 0  # where the reader stands
        self.shard = self.saved_shard = None
        self.block = {"block_start": None, "block_number": 0, "emitted": 0}

    def position(self):
        return dict(self.block)

    def rows(self, position=None):
        """Yield ((epoch, shard, row number), row) from `position` on."""
        position = position or self.block
        self._restore(position["block_start"])
        source, number, skip = self._in_stored_order(), position["block_number"], position["emitted"]
        start = self._state()
        block = list(islice(source, self.buffer_size))
        while block:
            next_start, next_block = self._state(), []
            generator = torch.Generator().manual_seed(seed_from(self.seed, self.index, number))
            for emitted, at in enumerate(torch.randperm(len(block), generator=generator).tolist(), start=1):
                next_block.append(next(source))  # one in, one out: reading is spread evenly
                row, block[at] = block[at], None
                self.block = {"block_start": start, "block_number": number, "emitted": emitted}
                if emitted > skip:
                    yield row
            block, start, number, skip = next_block, next_start, number + 1, 0

    def _in_stored_order(self):
        found = self.row + self.unit + self.epoch > 0  # taken up in the middle
        while True:
            units = self._units()
            while self.unit < len(units):
                shard, part = units[self.unit]
                self.shard = self.shards[shard]
                self.shard.load_state_dict(self.saved_shard)
                self.saved_shard = None
                for rows in self.shard.iter(batch_size=1):  # plain iteration would deal shards out to workers again
                    number, self.row = self.row, self.row + 1
                    if number % self.parts == part:
                        found = True
                        yield (self.epoch, shard, number), {name: column[0] for name, column in rows.items()}
                self.unit, self.row = self.unit + 1, 0
            if not found:
                return
            self.epoch, self.unit = self.epoch + 1, 0

    def _units(self):
        """The (shard, part) pairs that this reader goes through in this epoch."""
        order = _permutation(len(self.shards), self.seed, self.epoch).tolist()
        return [(shard, part) for shard in order for part in range(self.parts)][self.index :: self.count]

    def _state(self):
        shard = self.shard.state_dict() if self.shard is not None and self.row else None
        return {"epoch": self.epoch, "unit": self.unit, "row": self.row, "shard": shard}

    def _restore(self, state):
        if state is not None:
            self.epoch, self.unit, self.row, self.saved_shard = (state[k] for k in ("epoch", "unit", "row", "shard"))
