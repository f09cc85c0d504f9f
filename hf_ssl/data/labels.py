"""Labels of some rows, for semi-supervised methods: of the rows of a batch themselves, or of labelled rows beside them.

A label is a class number from 0 on; None and -1 say that there is none.
"""

import datasets
import numpy as np
import torch

from ..methods._random import COMPANION_STREAM, fold_in, uniform
from .loader import ATTEMPTS, RowDecoder, without_augmentation
from .loading import LABEL_COLUMNS, DataError, find_column

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


def class_numbers(data, label_column=None):
    """(the number of each row's class, (n,) int64, -1 where it has none; the names of the classes; the label column).

    Labels may be names or numbers; None and -1 say that there is none. label_column: None for the usual one. Raises DataError
    if no row has a label, or a class that the column declares has no row.
    """
    if not isinstance(data, datasets.Dataset):
        raise DataError("Labels are drawn from rows, which a stream does not number: leave out --streaming.")
    column = find_column(data, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
    kind, values = data.features[column], data[column][:]
    wrong = [value for value in values if not isinstance(value, int | str | None) or isinstance(value, bool)]
    if wrong:
        raise DataError(f"label_column '{column}' holds {wrong[0]!r}: expected names or numbers of classes.")
    values = [None if value == -1 else value for value in values]
    present = {value for value in values if value is not None}
    if not present:
        raise DataError(
            f"label_column '{column}' labels none of {len(data)} rows: expected names or numbers of classes in some of them."
        )
    if isinstance(kind, datasets.ClassLabel):
        classes, names = range(len(kind.names)), kind.names
        if lacking := [names[number] for number in classes if number not in present]:
            raise DataError(
                f"label_column '{column}' labels no row of {len(lacking)} of its {len(names)} classes, such as "
                f"'{lacking[0]}': expected at least one of each."
            )
    else:
        classes = sorted(present, key=lambda value: (isinstance(value, str), value))
        names = [str(value) for value in classes]
    if len(names) < 2:
        raise DataError(f"label_column '{column}' names one class, '{names[0]}': expected at least two.")
    numbers = {value: number for number, value in enumerate(classes)} | {None: -1}
    return np.array([numbers[value] for value in values]), names, column


def draw_labels(numbers, count, seed):
    """The positions of `count` labelled rows, ascending, in equal parts of each class, as far as it has so many; what cannot be
    dealt out equally goes to classes drawn at random. numbers: as of `class_numbers`. Raises DataError."""
    classes, labelled = numbers.max() + 1, int((numbers >= 0).sum())
    if count < classes:
        raise DataError(f"labels={count} is fewer than the {classes} classes: expected at least one of each.")
    if count > labelled:
        raise DataError(f"labels={count} is more than the {labelled} rows that have a label.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.flatnonzero(numbers >= 0))
    own = numbers[order]
    place = np.zeros(len(order), int)  # of a row among those of its class
    for number in range(classes):
        place[own == number] = np.arange((own == number).sum())
    first = np.lexsort((generator.permutation(classes)[own], place))  # round by round, a row of each class
    return np.sort(order[first[:count]])


def wrong_labels(numbers, fraction, seed):
    """The class numbers, all at least 0, `fraction` of them replaced by any class at random, the right one too."""
    generator = np.random.default_rng((seed, 1))
    replaced = generator.permutation(len(numbers))[: round(fraction * len(numbers))]
    numbers = numbers.copy()
    numbers[replaced] = generator.integers(numbers.max() + 1, size=len(replaced))
    return numbers


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


class UnseenRows:
    """Rows of which a batch has nothing but `sample_seeds`: what companions are drawn by, where these alone are looked at."""

    def decode(self, row):
        return None

    def collate(self, items, sample_seeds):
        return {"sample_seeds": sample_seeds}

    def view(self, sample_seeds):
        return {"sample_seeds": sample_seeds}


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


__all__ = [
    "LabelledCompanions",
    "UnseenRows",
    "WithLabels",
    "class_numbers",
    "draw_labels",
    "labelled_rows",
    "wrong_labels",
]
