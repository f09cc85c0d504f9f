"""What an evaluation finds: its metrics, its rows, the file that holds both, and the table that shows them."""

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from itertools import count

from ..training.checkpoints import write_json
from ..training.records import plain
from .conditions import DATA, DRAWN

RESULTS_FILE = "eval_results.json"
ROWS = {
    "chance": "Chance, or always the most frequent class",
    "raw_pixels": "Raw pixels",
    "bag_of_words": "Bag of words",
    "mfcc": "MFCC",
    "random_initialisation": "Random initialisation",
    "labels_alone": "The labels alone",
    "pretrained": "Pretrained",
    "all_labels": "All labels",
    "supervised": "Supervised",
}


@dataclass(frozen=True)
class Metric:
    """What a column of numbers is. kind: the Hub's name for it. unit: what is counted, such as nats. digits: in
    tables. task: the Hub's, None for classification of what the encoder reads. dataset: if a test brings its own. title: the
    column's in tables, None: its key. table: the name of a table of its own, for columns that describe one encoder, such as
    those of its stages, which others do not have."""

    name: str
    kind: str = "accuracy"
    unit: str = "%"
    digits: int = 1
    task: str | None = None
    dataset: str | None = None
    title: str | None = None
    table: str | None = None


def percent(fraction):
    return round(100 * fraction, 2)


def scores(metrics):
    """Of {column: a Metric's values} those that are scores of the whole encoder: no counts, no probabilities, no stages."""
    return {
        column: Metric(**values)
        for column, values in metrics.items()
        if values["unit"] and not column.startswith("unknown:") and not values.get("table")
    }


def column_title(column, metric):
    """Of a table, as Markdown: with the unit, if it is not percent."""
    unit = "" if metric.unit in ("%", "") else f" ({metric.unit})"
    return plain(metric.title or column.replace("_", " ")) + unit


def results_table(results, *others):
    """A Markdown table: one row an encoder, one column a protocol, on the test part; in percent where no unit is named. Below
    it, those of their own that metrics name.

    others: results of other seeds, whose numbers stand beside, unless all are alike.
    """
    tables = {}
    for name in dict.fromkeys(name for numbers in reversed(results["results"].values()) for name in numbers):
        metric = Metric(**results["metrics"][name])
        tables.setdefault(metric.table, {})[name] = metric
    main = [_table(tables.pop(None), results, *others)] if None in tables else []
    own = (
        f"{plain(title[0].upper() + title[1:])}:\n\n{_table(each, results, *others)}" for title, each in tables.items()
    )
    return "\n\n".join([*main, *own])


def _table(metrics, results, *others):
    """metrics: {column: Metric}; rows that have none of them are left out."""
    runs, columns = (results, *others), metrics.keys()
    rows = [row for row, numbers in results["results"].items() if columns & numbers.keys()]
    titles = [column_title(name, metric) for name, metric in metrics.items()]
    lines = ["| | " + " | ".join(titles) + " |", "|---" + "|---:" * len(columns) + "|"]
    for row in rows:
        cells = []
        for name in columns:
            found = [run["results"][row][name] for run in runs if name in run["results"].get(row, {})]
            found = [f"{value:.{metrics[name].digits}f}" for value in found]
            cells.append(" / ".join(found if len(set(found)) > 1 else found[:1]))
        title = "With unlabelled images" if row == "pretrained" and "labels_alone" in rows else row_title(row)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row_title(row):
    return ROWS.get(row, row.replace("_", " ").capitalize())


def evaluations(path):
    """What eval_results.json holds: a dict for each evaluation of the model, on whatever data, the one that counts first."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    further = found.pop("further", [])
    return [found, *further] if "metrics" in found else []


def keep(folder, results, drawn, data_was_read=True):
    """Write `results` to eval_results.json beside those of other evaluations; what the one that they belong to now holds.

    Numbers complete an earlier evaluation of the same model, on the same rows of the same data, if what both ran had the same
    settings; those that read no data complete any. All others stand beside it, under "further": first the data that were
    first evaluated on, of one data set first the evaluation of the most rows. drawn: a folder with the pictures, each of which
    gets a name that no other evaluation's picture has, and with further files.
    """
    path = folder / RESULTS_FILE
    if not data_was_read:
        own = {name: value for name, value in results["settings"].items() if name not in DRAWN}
        results = results | {"dataset": {}, "settings": own}
    results = json.loads(json.dumps(results))  # tuples as lists, as they are read
    others = evaluations(path)
    earlier = next((each for each in others if _completes(results, each)), None)
    place = others.index(earlier) if earlier else len(others)
    others[place : place + 1] = []
    taken = {name for each in others for name in each["pictures"]}
    own = set(earlier["pictures"]) if earlier else set()
    for file in sorted(path for path in drawn.rglob("*") if path.is_file()):
        name = file.relative_to(drawn).as_posix()
        if file.suffix == ".json":  # details, by row and by what was asked
            _join(folder / name, json.loads(file.read_text()))
            continue
        free = (f"{name[:-4]}_{number}.png" if number > 1 else name for number in count(1))
        name = next(each for each in free if each not in taken)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / name)
        own.add(name)
    results = _joined(earlier, results) if earlier else results
    results["pictures"] = sorted(own)
    others.insert(place, results)
    first = {}  # the data sets in the order in which they came
    for each in others:
        first.setdefault(_data_set(each), len(first))
    others.sort(key=lambda each: (first[_data_set(each)], -(each["settings"].get("max_samples") or math.inf)))
    write_json(path, others[0] | ({"further": others[1:]} if others[1:] else {}))
    return results


def _data_set(results):
    return tuple(results["dataset"].get(key) for key in ("name", "config", "train_split", "test_split"))


def _completes(results, earlier):
    """Whether both are of one model, on the same rows, and nothing that both ran had other settings."""
    same_model = earlier["model"] == results["model"] or earlier.get("weights", "") == results["weights"]
    if not same_model or earlier["feature"] != results["feature"]:
        return False
    shared = earlier["settings"].keys() & results["settings"].keys()  # no rows are drawn where no data are read
    if any(earlier["settings"][name] != results["settings"][name] for name in shared):
        return False
    # what needs no labels does not name their column
    both = DATA & earlier["dataset"].keys() & results["dataset"].keys()
    return all(earlier["dataset"][key] == results["dataset"][key] for key in both)


def _joined(earlier, results):
    rows = in_order(earlier["results"] | results["results"])
    joined = {name: earlier[name] | results[name] for name in ("settings", "dataset", "chosen", "metrics")}
    return results | joined | {"results": _by_row(earlier["results"], results["results"], rows)}


def _by_row(earlier, later, rows):
    return {row: earlier.get(row, {}) | later.get(row, {}) for row in rows}


def _join(path, details):
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, _by_row(earlier, details, earlier | details))


def in_order(rows):
    """Names of rows: those that a protocol brings, raw features, random initialisation, pretrained."""
    return sorted(rows, key=lambda row: list(ROWS).index(row) if row in ROWS else -1)


def metric_of(column, known):
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


__all__ = [
    "RESULTS_FILE",
    "ROWS",
    "Metric",
    "column_title",
    "evaluations",
    "in_order",
    "keep",
    "metric_of",
    "named_after",
    "percent",
    "results_table",
    "row_title",
    "scores",
]
