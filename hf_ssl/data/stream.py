"""A stream read in blocks of rows, at a position that is a few integers and can be taken up again."""

from itertools import islice

from .fingerprint import row_digest
from .loading import DataError, reason

EPOCHS_IN_VAIN = 100  # that a reader goes through without a row, such as of empty shards alone, before it gives up


class BrokenShard(Exception):
    """Stands among the rows for what could not be read of a shard."""


class Stream:
    """One of `count` equal parts of a stream, the `index`-th, for ever.

    shard_order: of an epoch's number, the numbers of the shards in the order in which they are read. block_order: of a
    block's number and rows, the places of its rows in the order in which they come out.
    """

    def __init__(self, data, index, count, buffer_size, shard_order, block_order):
        self.index, self.count, self.buffer_size = index, count, buffer_size
        self.shard_order, self.block_order = shard_order, block_order
        shards = data.num_shards
        self.shards = [data.shard(shards, shard) if shards > 1 else data for shard in range(shards)]
        # fewer shards than readers: each shard is read by several readers, which keep every n-th row
        self.parts = -(-count // shards)
        self.epoch = self.unit = self.row = 0  # where the reader stands
        self.shard = self.saved_shard = None
        self.block = {"block_start": None, "block_number": 0, "emitted": 0, "first_row": None}

    def position(self):
        return dict(self.block)

    def rows(self, position=None):
        """((epoch, shard, row number), row) from `position` on; a BrokenShard is a row's place where the rest of a shard cannot
        be read."""
        self.block = position or self.block
        self._restore(self.block["block_start"])
        return self._shuffled(self.block["block_number"], self.block["emitted"], self.block.get("first_row"))

    def _shuffled(self, number, skip, expected):
        source = self._in_stored_order()
        start = self._state()
        block = list(islice(source, self.buffer_size))
        while block:
            (_, shard, row), stored = block[0]
            first_row = None if isinstance(stored, BrokenShard) else row_digest(stored)
            if expected and first_row and first_row != expected:
                raise DataError(
                    f"The data have changed since the checkpoint was written: row {row} of shard {shard} is another. Go on with "
                    "the data of before, or begin a new run."
                )
            expected = None
            next_start, next_block = self._state(), []
            for emitted, at in enumerate(self.block_order(number, [row for _, row in block]), start=1):
                next_block.append(next(source))  # one in, one out: reading is spread evenly
                row, block[at] = block[at], None
                self.block = {"block_start": start, "block_number": number, "emitted": emitted, "first_row": first_row}
                if emitted > skip:
                    yield row
            block, start, number, skip = next_block, next_start, number + 1, 0

    def _in_stored_order(self):
        in_vain = 0
        while in_vain < EPOCHS_IN_VAIN:
            units, in_vain = self._units(), in_vain + 1
            while self.unit < len(units):
                shard, part = units[self.unit]
                self.shard = self.shards[shard]
                self.shard.load_state_dict(self.saved_shard)
                self.saved_shard = None
                for key, row in self._rows_of(shard):
                    if isinstance(row, BrokenShard):  # a position behind it does not lead to it again
                        self.unit, self.row = self.unit + 1, 0
                    if key[-1] % self.parts == part:
                        in_vain = 0
                        yield key, row
                if self.unit < len(units) and units[self.unit] == (shard, part):
                    self.unit, self.row = self.unit + 1, 0
            self.epoch, self.unit = self.epoch + 1, 0

    def _rows_of(self, shard):
        """From where it stands to its end, or to where it breaks."""
        try:
            for rows in self.shard.iter(batch_size=1):  # plain iteration would deal shards out to workers again
                number, self.row = self.row, self.row + 1
                yield (self.epoch, shard, number), {name: column[0] for name, column in rows.items()}
        except Exception as error:  # of a DataError, which names the file, the sentence; else what it was caused by
            yield (
                (self.epoch, shard, self.row),
                BrokenShard(reason(error)),
            )

    def _units(self):
        """The (shard, part) pairs that this reader goes through in this epoch."""
        order = self.shard_order(self.epoch)
        return [(shard, part) for shard in order for part in range(self.parts)][self.index :: self.count]

    def _state(self):
        shard = self.shard.state_dict() if self.shard is not None and self.row else None
        return {"epoch": self.epoch, "unit": self.unit, "row": self.row, "shard": shard}

    def _restore(self, state):
        if state is not None:
            self.epoch, self.unit, self.row, self.saved_shard = (state[k] for k in ("epoch", "unit", "row", "shard"))
