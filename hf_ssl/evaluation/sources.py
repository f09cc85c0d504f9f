"""Where the data of an evaluation come from, and the two labelled splits that most protocols ask for."""

from dataclasses import dataclass, field

import datasets

from ..data.loading import LABEL_COLUMNS, DataError, column_names, find_column, load_split
from .features import take_samples


@dataclass
class Source:
    """Where data come from, as the arguments of `load_split` say it. columns: the input columns, if they were named.
    max_samples: rows drawn from each split. sample: the embedded data set that is taken if there is no name. word_files: tests
    of word vectors that the user brings. found: what protocols learn of the data and the results should say."""

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
    was_read: bool = False
    found: dict = field(default_factory=dict)

    def train_rows(self):
        return self._load(self.train_split)

    def test_rows(self):
        """Without a split "test" the split "validation", and `test_split` says so."""
        try:
            return self._load(self.test_split)
        except DataError:
            if self.test_split != "test":
                raise
            rows = self._load("validation")
            self.test_split = "validation"
            return rows

    def labelled_rows(self, label_column=None, usual=()):
        """(train, test, names of the classes or None, name of the label column). usual: columns that, if they are there, are
        taken before any other; their numbers may be anything."""
        train, test = self.train_rows(), self.test_rows()
        label_column = label_column or next((name for name in usual if name in column_names(train)), None)
        label_column = find_column(train, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
        return *numbered_classes(train, test, label_column, label_column in usual), label_column

    def drawn(self, data):
        """At most max_samples of its rows."""
        return data if self.max_samples is None else take_samples(data, self.max_samples, self.seed)

    def _load(self, split):
        self.was_read = True
        options = {"sample": self.sample, "config_name": self.config_name, "streaming": self.streaming}
        return load_split(self.dataset_name, split, **options)

    @property
    def description(self):
        description = {"name": self.dataset_name, "config": self.config_name}
        return description | {"train_split": self.train_split, "test_split": self.test_split}


@dataclass
class Splits:
    """Two splits with only their input columns, undecoded, and a label column. names: of the classes, or None."""

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset
    columns: tuple
    label_column: str
    names: list | None
    description: dict = field(default_factory=dict)

    def classes(self, train, test):
        """Their number. train, test: with `labels`."""
        return len(self.names) if self.names else int(max(train.labels.max(), test.labels.max())) + 1


def numbered_classes(train, test, label_column, are_names=False):
    """A column of strings becomes one of class numbers, the same in both splits; (train, test, names or None). are_names:
    numbers are treated as strings are."""
    features = train.features or {}
    kind = features.get(label_column)
    if isinstance(kind, datasets.ClassLabel):
        return train, test, kind.names
    if (
        isinstance(train, datasets.Dataset)
        and isinstance(kind, datasets.Value)
        and (are_names or kind.dtype == "string")
    ):
        train, test = (split.cast_column(label_column, datasets.Value("string")) for split in (train, test))
        names = sorted(set(train.unique(label_column)) | set(test.unique(label_column)))
        classes = datasets.ClassLabel(names=names)
        return train.cast_column(label_column, classes), test.cast_column(label_column, classes), names
    return train, test, None


__all__ = ["Source", "Splits", "numbered_classes"]
