"""What an evaluation finds: its metrics, its rows, the file that holds both, and the table that shows them."""

import json
import logging
from dataclasses import asdict, dataclass, replace

logger = logging.getLogger(__name__)
RESULTS_FILE = "eval_results.json"
ROWS = {
    "chance": "Chance, or always the most frequent class",
    "raw_pixels": "Raw pixels",
    "bag_of_words": "Bag of words",
    "mfcc": "MFCC",
    "random_initialisation": "Random initialisation",
    "pretrained": "Pretrained",
    "supervised": "Supervised",
}


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


def percent(fraction):
    return round(100 * fraction, 2)


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


def merged(path, results, data_was_read=True):
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
    rows = in_order(earlier["results"] | results["results"])
    return results | {
        "settings": earlier["settings"] | results["settings"],
        "dataset": earlier["dataset"] | results["dataset"],
        "chosen": earlier["chosen"] | results["chosen"],
        "results": {row: earlier["results"].get(row, {}) | results["results"].get(row, {}) for row in rows},
        "metrics": earlier["metrics"] | results["metrics"],
        "pictures": sorted({*earlier["pictures"], *results["pictures"]}),
    }


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
    "in_order",
    "merged",
    "metric_of",
    "named_after",
    "percent",
    "results_table",
]
