"""Labels of some rows, for semi-supervised methods: of the rows of a batch themselves, or of labelled rows beside them.

A label is a class number from 0 on; None and -1 say that there is none.
"""

import datasets
import numpy as np
import torch

from ..methods._random import COMPANION_STREAM, fold_in, uniform
from .loader import ATTEMPTS, RowDecoder, without_augmentation
from .loading import DataError, find_column

PREFIX = "labelled_"  # of what a batch holds of the companions


def labelled_rows(data, label_column):
    """The rows of a data set that have a label. Raises DataError if it is a stream, has no such column, or no label."""
    if not isinstance(data, datasets.Dataset):
        raise DataError("The labelled rows are a stream, of which no row can be drawn: expected a data set of rows.")
    find_column(data, label_column, "label", ())
    labelled = np.flatnonzero([_label(value, label_column) >= 0 for value in data[label_column]])
    if len(labelled) == 0:
        raise DataError(
            f"label_column '{label_column}' labels none of {len(data)} rows: expected class numbers from 0 on."
        )
    return data.select(labelled)


def _label(value, column):
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise DataError(f"label_column '{column}' holds {value!r}: expected class numbers from 0 on, -1 or nothing.")
    return value


class WithLabels:
    """The batches of `decoder`, and `labels`, (N,) int64, of their own rows, -1 where there is none."""

    def __init__(self, decoder: RowDecoder, label_column):
        self.decoder, self.label_column = decoder, label_column
        self.group_by = getattr(decoder, "group_by", None)

    def without_augmentation(self):
        return without_augmentation(self.decoder)

    def decode(self, row):
        return self.decoder.decode(row), _label(row[self.label_column], self.label_column)

    def collate(self, decoded, sample_seeds):
        items, labels = zip(*decoded, strict=True)
        return self.decoder.collate(list(items), sample_seeds) | {"labels": torch.tensor(labels)}

    def view(self, labels, **batch):
        return self.decoder.view(**batch) | {"labels": labels}


class LabelledCompanions:
    """The batches of `decoder`, and beside them labelled rows, drawn with replacement, of N samples for each `every`-th one.

    A companion follows from its sample's seed: it is the same on any number of processes and in a run that is taken up,
    and another in each epoch. Batches have `labels`, (N / every,) int64, and all that `labelled_decoder` makes of the
    companions, under its names with `labelled_` before them: `labelled_pixel_values` ...

    labelled: a data set, of which the rows that have a label in `label_column` are drawn. labelled_decoder: of these rows
    (FixMatch's are augmented less than the others); none: `decoder`. Each process's batch must be a multiple of `every`.
    """

    def __init__(
        self, decoder: RowDecoder, labelled, label_column, labelled_decoder: RowDecoder | None = None, every=1
    ):
        self.decoder, self.labelled_decoder = decoder, labelled_decoder or decoder
        self.labelled, self.label_column, self.every = labelled_rows(labelled, label_column), label_column, every
        self.group_by = getattr(decoder, "group_by", None)

    def without_augmentation(self):
        return without_augmentation(self.decoder)

    def decode(self, row):
        return self.decoder.decode(row)

    def collate(self, items, sample_seeds):
        if len(items) % self.every:
            raise DataError(
                f"A process's batch of {len(items)} has a labelled row for every {self.every} samples: expected a multiple."
            )
        seeds = fold_in(sample_seeds[:: self.every], COMPANION_STREAM)
        draws = (uniform(seeds, ATTEMPTS).double() * len(self.labelled)).long()
        drawn = [self._decode_one(*each) for each in zip(draws.tolist(), seeds.tolist(), strict=True)]
        companions, labels = zip(*drawn, strict=True)
        companions = self.labelled_decoder.collate(list(companions), seeds)
        batch = self.decoder.collate(items, sample_seeds) | {"labels": torch.tensor(labels)}
        return batch | {PREFIX + name: value for name, value in companions.items()}

    def _decode_one(self, rows, seed):
        """(decoded, label) of the first of `rows` that is not broken."""
        for row in rows:
            value = self.labelled[row]
            try:
                return self.labelled_decoder.decode(value | {"sample_seed": seed}), value[self.label_column]
            except Exception as error:  # bounded by ATTEMPTS
                reason = str(error).strip().rstrip(".")
        raise DataError(f"{len(rows)} labelled rows in a row could not be decoded, the last because: {reason}.")

    def view(self, labels, **batch):
        companions = {name.removeprefix(PREFIX): batch.pop(name) for name in list(batch) if name.startswith(PREFIX)}
        companions = self.labelled_decoder.view(**companions)
        return (
            self.decoder.view(**batch)
            | {PREFIX + name: value for name, value in companions.items()}
            | {"labels": labels}
        )


__all__ = ["LabelledCompanions", "WithLabels", "labelled_rows"]
