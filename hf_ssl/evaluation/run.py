"""What is the same for every kind of encoder: two splits with labels, the protocols run side by side, and the results
as a dict, a file and a table. images.py and text.py bring data, encoders, pictures and fine-tuning.

A protocol of another kind is a module with `run(encoders, source, output_dir)`, which gives {row: {column: number}}, with
SETTINGS, what a reader must know to repeat it, and METRICS, a Metric for each column. It stands in the table `EXTRA` of
text.py or pairs.py, or, with arguments of its own, in audio.py. Every process calls it; only the main one's numbers count.
"""

import json
import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import accelerate
import datasets
import torch
import transformers

from ..checkpoints import write_json
from ..data.loading import LABEL_COLUMNS, DataError, column_names, find_column, load_split
from ..errors import InputError
from .features import extract, frozen, take_samples
from .fine_tune import SETTINGS as FINE_TUNE
from .knn import SETTINGS as KNN
from .knn import knn_predict
from .linear_probe import SETTINGS as LINEAR_PROBE
from .linear_probe import linear_probe
from .logistic_regression import SETTINGS as LOGISTIC_REGRESSION
from .logistic_regression import cross_validated_accuracy
from .low_label import SETTINGS as LOW_LABEL
from .low_label import low_label
from .processes import process_state

logger = logging.getLogger(__name__)
SETTINGS = {
    "knn": KNN,
    "linear_probe": LINEAR_PROBE,
    "low_label": LOW_LABEL,
    "logistic_regression": LOGISTIC_REGRESSION,
    "fine_tune": FINE_TUNE,
}
PICTURES = {"neighbours", "tsne"}
# these need features; fine-tuning needs the data themselves
FROZEN = {"knn", "linear_probe", "low_label", "logistic_regression"} | PICTURES
ROWS = {
    "chance": "Chance, or always the most frequent class",
    "raw_pixels": "Raw pixels",
    "bag_of_words": "Bag of words",
    "mfcc": "MFCC",
    "random_initialisation": "Random initialisation",
    "pretrained": "Pretrained",
    "supervised": "Supervised",
}
BASELINE_FEATURES = {"raw_pixels", "bag_of_words", "mfcc"}  # rows without a network
RESULTS_FILE = "eval_results.json"
LIBRARIES = (torch, transformers, datasets, accelerate)


@dataclass(frozen=True)
class Metric:
    """What a column of numbers is. kind: the Hub's name for it. unit: what is counted, such as nats. digits: in
    tables. task: the Hub's, None for classification of what the encoder reads. dataset: if a test brings its own. title: the
    column's in tables, None: its key."""

    name: str
    kind: str = "accuracy"
    unit: str = "%"
    digits: int = 1
    task: str | None = None
    dataset: str | None = None
    title: str | None = None


METRICS = {
    "knn": Metric("k-nearest-neighbour accuracy"),
    "linear_probe": Metric("linear probe accuracy"),
    "logistic_regression": Metric("accuracy of logistic regression, 10-fold cross-validation"),
    "fine_tune": Metric("fine-tuned accuracy"),
}


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


def run_protocols(
    encoders, data, source, protocols, *, draw, tuner=None, extra=None, fractions=(), settings=None, metrics=None, output_dir=None
):  # fmt: skip
    """Run `protocols` on `encoders`, {row: encoder}, with "pretrained" among them; the results, None but on the main process.

    data: Splits, None if no protocol needs labels. draw(features) saves pictures and names them. tuner() gives a function
    of (encoder, fraction of the labels) to {end of the column's name: number}. extra: modules by the name of their
    protocol. settings, metrics: what is added to, or stands instead of, SETTINGS and METRICS.
    """
    state, extra = process_state(), extra or {}
    encoder, numbers, chosen, drawn = encoders["pretrained"], {row: {} for row in encoders}, {}, []
    with ExitStack() as stack:
        for each in encoders.values():
            stack.enter_context(frozen(each.model.to(state.device)))
        features = {}
        if FROZEN & set(protocols):
            for row, each in encoders.items():
                features[row] = [
                    extract(each, split, data.columns, data.label_column, description=f"{ROWS[row]}, {name}")
                    for name, split in (("train", data.train), ("test", data.test))
                ]
        for name in [name for name in extra if name in protocols]:
            for row, found in extra[name].run(encoders, source, output_dir).items():
                numbers.setdefault(row, {}).update(found)
        if not state.is_main_process:  # all that needs every process is done
            return None
        if features:
            _frozen_protocols(features, protocols, data, source.seed, numbers, chosen)
            drawn = draw(features)
        if "fine_tune" in protocols:
            _fine_tune_protocol(encoders, tuner(), fractions, numbers)

    tables = SETTINGS | {name: module.SETTINGS for name, module in extra.items()} | (settings or {})
    known = METRICS | {column: metric for module in extra.values() for column, metric in module.METRICS.items()}
    known |= metrics or {}
    description = (data.description if data else source.description) | source.found
    if features:
        train, test = features["pretrained"]
        description |= {"train_rows": len(train.labels), "test_rows": len(test.labels)}
        description |= {f"broken_{encoder.kind}s": train.skipped + test.skipped, "classes": data.classes(train, test)}
        if encoder.kind != "image":
            description[f"truncated_{encoder.kind}s"] = train.too_long + test.too_long
    results = {
        "model": encoder.name,
        "feature": encoder.feature,
        "dataset": description,
        "settings": {"seed": source.seed, "max_samples": source.max_samples}
        | {name: tables[name] for name in tables if name in protocols},
        "chosen": chosen,
        "results": {row: numbers[row] for row in _in_order(numbers) if numbers[row]},
        "metrics": {name: asdict(_metric(name, known)) for found in numbers.values() for name in found},
        "pictures": drawn,
        "versions": {library.__name__: str(library.__version__) for library in LIBRARIES},
    }
    if output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        results = _merged(Path(output_dir) / RESULTS_FILE, results, source.was_read)
        write_json(Path(output_dir) / RESULTS_FILE, results)
    return results


def results_table(results, *others):
    """A Markdown table: one row an encoder, one column a protocol, on the test part; in percent where no unit is named.

    others: results of other seeds, whose numbers stand beside, unless all are alike.
    """
    rows, runs = results["results"], (results, *others)
    columns = list(dict.fromkeys(name for numbers in reversed(rows.values()) for name in numbers))
    metrics = {name: Metric(**results["metrics"][name]) for name in columns}
    units = {name: "" if metric.unit in ("%", "") else f" ({metric.unit})" for name, metric in metrics.items()}
    titles = [(metrics[name].title or name.replace("_", " ")) + unit for name, unit in units.items()]
    lines = ["| | " + " | ".join(titles) + " |", "|---" + "|---:" * len(columns) + "|"]
    for row in rows:
        cells = []
        for name in columns:
            found = [run["results"][row][name] for run in runs if name in run["results"].get(row, {})]
            found = [f"{value:.{metrics[name].digits}f}" for value in found]
            cells.append(" / ".join(found if len(set(found)) > 1 else found[:1]))
        lines.append(f"| {ROWS.get(row, row.replace('_', ' ').capitalize())} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check_protocols(protocols, known, output_dir):
    """Raise InputError, in one sentence, if one of `protocols` is not in `known` or lacks a folder for its picture."""
    for protocol in protocols:
        if protocol not in known:
            raise InputError(f"Protocol '{protocol}' is unknown: expected some of {', '.join(known)}.")
        if protocol in PICTURES and output_dir is None:
            raise InputError(f"Protocol '{protocol}' draws a picture: give output_dir, the folder to save it in.")


def percent(fraction):
    return round(100 * fraction, 2)


def _merged(path, results, data_was_read=True):
    """`results` with the numbers of an earlier evaluation of the same model on the same rows, which a new one completes, if
    what both ran had the same settings; one that read no data completes any."""
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    if "metrics" not in earlier or any(earlier[key] != results[key] for key in ("model", "feature")):
        return results
    splits = {"name", "config", "train_split", "test_split", "passages", "max_length"}
    splits |= {"text_columns", "audio_column", "label_column"}
    drawn = {"seed", "max_samples"}
    # what needs no labels does not name their column
    both = splits & earlier["dataset"].keys() & results["dataset"].keys()
    if not data_was_read:
        own = {name: value for name, value in results["settings"].items() if name not in drawn}
        results = results | {"dataset": {}, "settings": own}
    elif any(earlier["dataset"][key] != results["dataset"][key] for key in both):
        return results
    elif any(earlier["settings"].get(key) != results["settings"].get(key) for key in drawn):
        return results
    again = earlier["settings"].keys() & results["settings"].keys() - drawn
    now = json.loads(json.dumps(results["settings"]))  # tuples as lists, as they are read
    if changed := [name for name in sorted(again) if earlier["settings"][name] != now[name]]:
        logger.warning("Results in %s that were made with other settings of %s give way.", path, ", ".join(changed))
        return results
    rows = _in_order(earlier["results"] | results["results"])
    return results | {
        "settings": earlier["settings"] | results["settings"],
        "dataset": earlier["dataset"] | results["dataset"],
        "chosen": earlier["chosen"] | results["chosen"],
        "results": {row: earlier["results"].get(row, {}) | results["results"].get(row, {}) for row in rows},
        "metrics": earlier["metrics"] | results["metrics"],
        "pictures": sorted({*earlier["pictures"], *results["pictures"]}),
    }


def _in_order(rows):
    """Names of rows: those that a protocol brings, raw features, random initialisation, pretrained."""
    return sorted(rows, key=lambda row: list(ROWS).index(row) if row in ROWS else -1)


def _metric(column, known):
    """The Metric of a column; linear_probe_1% is linear_probe's on a part of the labels, similarity:simlex999 is
    similarity's on a file of that name."""
    stem, colon, file = column.partition(":")
    if colon:
        return Metric(**asdict(known[stem]) | {"name": f"{known[stem].name}, {file}", "dataset": file})
    stem, _, part = column.rpartition("_")
    if column in known or not part.endswith("%"):
        return known[column]
    metric = known[stem]
    title = metric.title and f"{metric.title} {part}"
    return Metric(**asdict(metric) | {"name": f"{metric.name} with {part} of the labels", "title": title})


def named_after(metrics, label_column):
    """`metrics` of labels, whose names and titles then tell the column of these."""
    return {
        column: replace(
            metric, name=f"{metric.name}, {label_column}", title=f"{column.replace('_', ' ')} ({label_column})"
        )
        for column, metric in metrics.items()
    }


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


def _frozen_protocols(features, protocols, data, seed, numbers, chosen):
    """Adds {row: {column: percent}} to `numbers`, {row: the probe's chosen settings} to `chosen`."""
    for row, (train, test) in features.items():
        classes = data.classes(train, test)
        rows = (train.features, train.labels, test.features, test.labels, classes)
        if "knn" in protocols:
            predicted = knn_predict(*rows[:3], classes=classes)
            numbers[row]["knn"] = percent((predicted == test.labels).float().mean().item())
        if "linear_probe" in protocols:
            probe = linear_probe(*rows, seed=seed)
            numbers[row]["linear_probe"] = percent(probe.accuracy)
            chosen[row] = {"learning_rate": probe.learning_rate, "weight_decay": probe.weight_decay}
        if "low_label" in protocols:
            for fraction, accuracy in low_label(*rows, seed=seed).items():
                numbers[row][f"linear_probe_{fraction:.0%}"] = percent(accuracy)
        if "logistic_regression" in protocols:
            numbers[row]["logistic_regression"] = percent(cross_validated_accuracy(train.features, train.labels, seed))


def _fine_tune_protocol(encoders, tune, fractions, numbers):
    """Adds the columns fine_tune_1%, fine_tune_10% and fine_tune, or, say, fine_tune_f1_1%, to `numbers`."""
    for row in [row for row in encoders if row not in BASELINE_FEATURES]:
        for fraction in fractions:
            part = "" if fraction == 1 else f"_{fraction:.0%}"
            for end, value in tune(encoders[row], fraction).items():
                numbers[row][f"fine_tune{end}{part}"] = percent(value)


__all__ = [
    "METRICS",
    "PICTURES",
    "RESULTS_FILE",
    "SETTINGS",
    "Metric",
    "Source",
    "Splits",
    "check_protocols",
    "numbered_classes",
    "percent",
    "results_table",
    "run_protocols",
]
