"""Where the data of an evaluation come from, and the two labelled splits that most protocols ask for."""

import logging
from dataclasses import dataclass, field
from functools import partial

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..data.holdout import check_fraction, hold_out
from ..data.loading import LABEL_COLUMNS, DataError, column_names, find_column, load_split, say_once
from ..errors import InputError
from ..training.records import public_place
from .features import take_samples

logger = logging.getLogger(__name__)
SHARED = 0.05  # of the test rows, from which on they are said to be training rows
NUMBERED = ("int", "uint", "string", "large_string", "date", "timestamp")  # types of labels
BLOCK = 1000  # rows of a stream that are looked at together
COMPARED = 16  # random mixtures of the features by which rows are taken to be the same


@dataclass
class Source:
    """Where data come from, as the arguments of `load_split` say it. columns: the input columns, if they were named.
    max_samples: rows drawn from each split. sample: the embedded data set that is taken if there is no name. word_files: tests
    of word vectors that the user brings. test_fraction: the part of train_split that is held out and tested on instead of a
    test_split; group_column: whose rows stay together in it. found: what protocols learn of the data and results should say."""

    sample: str
    dataset_name: str | None = None
    config_name: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    columns: tuple = ()
    streaming: bool = False
    max_samples: int | None = None
    seed: int = 0
    word_files: tuple = ()
    test_fraction: float | None = None
    group_column: str | None = None
    label_column: str | None = None
    was_read: bool = False
    rows: dict = field(default_factory=dict)  # of the splits that were read, all of them
    found: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.max_samples is not None and self.max_samples < 1:
            raise InputError(f"max_samples must be at least 1, found {self.max_samples}.")
        if not 0 <= self.seed < 2**32:  # what NumPy and scikit-learn take
            raise InputError(f"seed must be at least 0 and below 2**32, found {self.seed}.")

    def hold_out(self, test_fraction, group_column, label_column):
        """Test on a part of `train_split`, unless test_fraction is None. Raises InputError."""
        check_fraction(test_fraction, group_column, self.streaming)
        self.test_fraction, self.group_column, self.label_column = test_fraction, group_column, label_column

    def train_rows(self):
        return self._load(self.train_split) if self.test_fraction is None else self._parts()[0]

    def test_rows(self):
        """Without a split "test" the split "validation", and `test_split` says so."""
        if self.test_fraction is not None:
            return self._parts()[1]
        try:
            return self._load(self.test_split)
        except DataError as error:
            if self.test_split == "test":
                try:
                    rows = self._load("validation")
                    self.test_split = "validation"
                    return rows
                except DataError:
                    pass  # what was asked for is the better thing to name
            raise DataError(
                f"{error} Name another by test_split, or hold some rows out: test_fraction 0.2."
            ) from error

    def _parts(self):
        rows = self._load(self.train_split)
        return hold_out(rows, self.test_fraction, self.seed, self.label_column, self.group_column)

    def find_label(self, train, label_column=None, usual=()):
        """The name of the label column. usual: as for `labelled_rows`."""
        label_column = label_column or next((name for name in usual if name in column_names(train)), None)
        return find_column(train, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))

    def labelled_rows(self, label_column=None, usual=()):
        """(train, test, names of the classes or None, name of the label column). usual: columns that, if they are there, are
        taken before any other; their numbers may be anything. Rows without a label are left out."""
        train, test = self.train_rows(), self.test_rows()
        label_column = self.find_label(train, label_column, usual)
        if self.streaming and not isinstance((train.features or {}).get(label_column), datasets.ClassLabel):
            train, test = self.drawn(train), self.drawn(test)  # whose labels are read once more
        train, test, names = numbered_classes(train, test, label_column, label_column in usual)
        sizes = [f"{len(rows)} rows" if isinstance(rows, datasets.Dataset) else "a stream" for rows in (train, test)]
        where = self.test_split if self.test_fraction is None else f"{self.test_fraction:g} of {self.train_split}"
        classes = f", {len(names)} classes" if names else ""
        say_once(
            f"Evaluation: {sizes[0]} of '{self.train_split}' to train on, {sizes[1]} of '{where}' to test on, labels of "
            f"'{label_column}'{classes}."
        )
        return train, test, names, label_column

    def drawn(self, data):
        """At most max_samples of its rows."""
        return data if self.max_samples is None else take_samples(data, self.max_samples, self.seed)

    def _load(self, split):
        self.was_read = True
        options = {"sample": self.sample, "config_name": self.config_name, "streaming": self.streaming}
        data = load_split(self.dataset_name, split, **options)
        if isinstance(data, datasets.Dataset):
            self.rows[split] = len(data)
        return data

    @property
    def description(self):
        place = public_place(self.dataset_name)  # now, since elsewhere a folder may look like an id of the Hub
        test_split = self.test_split if self.test_fraction is None else self.train_split
        description = {"name": self.dataset_name, "local": place["local"], "config": self.config_name}
        description |= {"train_split": self.train_split, "test_split": test_split}
        if self.test_fraction is not None:
            description |= {"test_fraction": self.test_fraction, "group_column": self.group_column}
        counted = {"train_split_rows": self.train_split, "test_split_rows": test_split}
        return description | {key: self.rows[split] for key, split in counted.items() if split in self.rows}


@dataclass
class Splits:
    """Two splits with only their input columns, undecoded, and a label column. names: of the classes, or None."""

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset
    columns: tuple
    label_column: str
    names: list | None
    description: dict = field(default_factory=dict)
    warned: bool = False

    def counts(self, encoder, train, test):
        """The rows that numbers stand on, and those that were left out. train, test: the encoder's Features."""
        counts = {"train_rows": len(train.labels), "test_rows": len(test.labels)}
        counts |= {f"broken_{encoder.kind}s": train.skipped + test.skipped, "classes": self.classes(train, test)}
        counts["rows_not_finite"] = train.not_finite + test.not_finite
        if encoder.kind != "image":
            counts[f"truncated_{encoder.kind}s"] = train.too_long + test.too_long
        return counts

    def warn(self, train, test):
        """`warn_of_parts`, once, whichever protocols ask for it."""
        if not self.warned:
            warn_of_parts(train, test, self.names)
        self.warned = True

    def classes(self, train, test):
        """Their number. train, test: with `labels`."""
        return len(self.names) if self.names else int(max(train.labels.max(), test.labels.max())) + 1


def numbered_classes(train, test, label_column, are_names=False):
    """Names and sparse numbers become class numbers, the same in both splits, and rows without a label are left out:
    (train, test, names or None). Numbers that count from 0 without a gap stay as they are, and so do floats. are_names:
    numbers are treated as strings are. The column of a stream is read once for it."""
    kind = (train.features or {}).get(label_column)
    if isinstance(kind, datasets.ClassLabel):
        return train, test, kind.names
    if kind is not None and not getattr(kind, "dtype", "float").startswith(NUMBERED):
        return train, test, None
    values = [_distinct(split, label_column) for split in (train, test)]
    missing = [None in found for found in values]
    values = {value for found in values for value in found if value is not None}
    numbers = all(isinstance(value, int) for value in values)
    if not all(isinstance(value, int | str) for value in values) or (numbers and min(values, default=0) < 0):
        return train, test, None  # floats, or -1, for labels that are kept secret
    names = None
    if are_names or not numbers or max(values, default=0) + 1 > len(values):
        names = sorted({str(value) for value in values}, key=int if numbers and not are_names else None)
    if names is None and not any(missing):
        return train, test, None
    number = partial(_numbered, label_column=label_column, names=names)
    return number(train), number(test), names


def _labels(table, column):
    """A column of an Arrow table; what is no number as strings."""
    values, kind = table[column], table[column].type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return values if plain or pa.types.is_null(kind) else pc.cast(values, pa.string())


def _distinct(split, column):
    """The values of a column, None among them."""
    rows = split.select_columns([column]).with_format("arrow")
    tables = [rows[:]] if isinstance(split, datasets.Dataset) else rows.iter(BLOCK)
    return {value for table in tables for value in _labels(table, column).unique().to_pylist()}


def _numbered(split, label_column, names):
    """The rows that have a label, as its place in `names`; names: None to leave labels as they are."""
    classes = datasets.ClassLabel(names=names) if names else None
    if isinstance(split, datasets.Dataset):
        labelled = np.flatnonzero(
            _labels(split.select_columns([label_column]).with_format("arrow")[:], label_column).is_valid()
        )
        if len(labelled) < len(split):
            say_once(
                f"{len(split) - len(labelled)} of {len(split)} rows have no '{label_column}' and are left out.",
                logging.WARNING,
            )
            split = split.select(labelled)
        return (
            split.cast_column(label_column, datasets.Value("string")).cast_column(label_column, classes)
            if names
            else split
        )

    def number(table):
        table = table.filter(table[label_column].is_valid())
        if names is None:
            return table
        numbers = pc.index_in(pc.cast(table[label_column], pa.string()), pa.array(names))
        return table.set_column(table.column_names.index(label_column), label_column, pc.cast(numbers, pa.int64()))

    features = split.features and datasets.Features(split.features | ({label_column: classes} if names else {}))
    return split.with_format("arrow").map(number, batched=True, features=features).with_format(None)


def warn_of_parts(train, test, names=None):
    """Tell of a test that measures something else: classes that are not trained on, and rows that are. train, test: Features."""
    unknown = np.setdiff1d(test.labels, train.labels)
    if len(unknown):
        rows, shown = int(np.isin(test.labels, unknown).sum()), [names[i] if names else int(i) for i in unknown[:3]]
        logger.warning(
            "%d of %d test rows are of %d classes that no training row has (%s%s) and count as wrong: rows sorted by class are "
            "split at random by test_fraction.",
            rows, len(test.labels), len(unknown), ", ".join(map(str, shown)), " ..." * (len(unknown) > 3),
        )  # fmt: skip
    if (shared := _shared_rows(train.features, test.features)) > SHARED * len(test.labels):
        logger.warning(
            "%d of %d test rows are training rows too, so that the numbers say little of new ones: choose other splits, or "
            "test_fraction.", shared, len(test.labels),
        )  # fmt: skip


def _shared_rows(train, test):
    """How many test rows have the features of a training row, to rounding; 0 where features tell rows apart too badly."""
    mixed = torch.randn(train.shape[1], COMPARED, generator=torch.Generator().manual_seed(0))
    train, test = train @ mixed, test @ mixed
    mean, spread = train.mean(0), train.std() + 1e-30
    rows = [[row.tobytes() for row in ((part - mean) / spread * 1e3).round().long().numpy()] for part in (train, test)]
    known = set(rows[0])
    return sum(row in known for row in rows[1]) if len(known) > len(rows[0]) / 2 else 0


__all__ = ["Source", "Splits", "numbered_classes", "warn_of_parts"]
