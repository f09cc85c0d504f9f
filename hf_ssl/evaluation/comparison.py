"""Runs side by side, from what they have written: which can be compared, and a table of each group that can.

A run is read once for each of its evaluations. Those on the same data, rows and settings form a group; runs of one method that
differ in their seed alone become a row of it, mean and range. What is not comparable has a table of its own, which says why.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..methods import METHODS
from ..training.checkpoints import RUN_FILE
from ..training.records import NOT_TRAINING, plain, public_run
from .conditions import differences, measured_on
from .encoders.loading import PAIRS, modality_of
from .results import RESULTS_FILE, Metric, column_title, evaluations, in_order, row_title, scores

MODALITIES = {"image": "images", "text": "text", "audio": "speech", PAIRS: "pairs"}  # in names of files
ASIDE = {  # arguments that two runs of one recipe may have different
    *NOT_TRAINING, "seed", "cpu_threads", "dataloader_num_workers", "logging_steps", "save_steps", "save_total_limit",
    "eval_protocols", "test_split", "test_fraction", "group_column", "label_column",
}  # fmt: skip
SORTED_BY = "linear_probe"
ALIKE = 0.1  # points between baselines that are the same: one CPU rounds otherwise than another


@dataclass(frozen=True)
class MeasuredRun:
    """One evaluation of one run. recipe: what it was trained with, but for the seed; {} of a recorded default run. facts: of
    run.json, as far as they were kept. evaluation: `results` and `metrics`, and, where known, `dataset` and `settings`."""

    method: str
    recipe: dict
    seed: int
    facts: dict
    evaluation: dict

    @property
    def modality(self):
        return modality_of(METHODS[self.method])

    @property
    def learns_from_labels(self):
        return METHODS[self.method].learns_from_labels


def released_runs(folder):
    """A MeasuredRun for each evaluation of the release in `folder`. Raises InputError if it holds none."""
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"runs: '{folder}' is no folder, and no method: expected some of {', '.join(METHODS)}.")
    for name in (RUN_FILE, RESULTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"'{folder}' is no evaluated run: it has no {name}.")
    run = public_run(json.loads((folder / RUN_FILE).read_text()))
    method = run["config"]["model_type"].removeprefix("ssl_")
    if method not in METHODS:
        raise InputError(f"'{folder}' is a run of '{method}': expected one of {', '.join(METHODS)}.")
    arguments = run["arguments"]
    recipe = {name: value for name, value in arguments.items() if name not in ASIDE}
    found = [each for each in evaluations(folder / RESULTS_FILE) if each["dataset"]]
    return [MeasuredRun(method, recipe, arguments["seed"], run.get("facts", {}), each) for each in found]


def recorded_runs(method, record):
    """The default runs in `record`, the content of model_cards/results/<method>.json."""
    shared = {name: record[name] for name in ("metrics", "dataset", "settings") if name in record}
    return [
        MeasuredRun(method, {}, run["seed"], run.get("run", {}), shared | {"results": run["results"]})
        for run in record["runs"]
    ]


def compare(runs):
    """The groups of `runs`, as JSON holds them: those of a modality together, the largest first."""
    groups = []
    for run in runs:
        group = next((each for each in groups if all(_comparable(run, other) for other in each)), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    order = list(MODALITIES)
    groups.sort(key=lambda group: (order.index(group[0].modality), -len({run.method for run in group})))
    first = {}
    return [_comparison(group, first.setdefault(group[0].modality, group)) for group in groups]


def _comparable(run, other):
    if run.modality != other.modality or run.learns_from_labels != other.learns_from_labels:
        return False
    if "dataset" not in run.evaluation or "dataset" not in other.evaluation:
        return run.method == other.method and run.evaluation.keys() == other.evaluation.keys()
    return not differences(run.evaluation, other.evaluation)


def _comparison(group, first):
    metrics = {column: values for run in group for column, values in run.evaluation["metrics"].items()}
    rows = {}
    for run in sorted(group, key=lambda run: run.seed):
        rows.setdefault((run.method, json.dumps(run.recipe)), []).append(run)
    columns = [column for column in scores(metrics) if any(column in _pretrained(run) for run in group)]
    methods = [_method(label, own, columns) for label, own in zip(_labels(rows), rows.values(), strict=True)]
    ranked = [SORTED_BY, *columns] if SORTED_BY in columns else columns
    for column in reversed(ranked[:1]):
        best = 1 if metrics[column]["kind"] == "loss" else -1
        methods.sort(key=lambda each: best * mean(each["results"]["pretrained"].get(column, [-best * 1e9])))
    evaluation = group[0].evaluation
    is_known = "dataset" in evaluation
    return {
        "modality": MODALITIES[group[0].modality],
        "measured_on": measured_on(evaluation, group[0].modality) if is_known else None,
        "why_apart": None if group is first else _why_apart(group[0], first[0]),
        "metrics": {column: metrics[column] for column in columns},
        "methods": methods,
    }


def _pretrained(run):
    return run.evaluation["results"].get("pretrained", {})


def _method(label, runs, columns):
    """One row: the numbers of its seeds."""
    names = in_order(dict.fromkeys(row for run in runs for row in run.evaluation["results"]))
    results = {row: {} for row in names}
    for run in runs:
        for row, numbers in run.evaluation["results"].items():
            for column in columns:
                if column in numbers:
                    results[row].setdefault(column, []).append(numbers[column])
    timed = [run.facts for run in runs if "seconds" in run.facts]
    unfinished = [run.facts for run in runs if run.facts.get("steps", 0) < run.facts.get("max_steps", 0)]
    return {
        "method": runs[0].method,
        "label": label,
        "seeds": [run.seed for run in runs],
        "minutes": [round(facts["seconds"] / 60, 2) for facts in timed],
        "machines": list(dict.fromkeys(facts["hardware"]["name"] for facts in timed)),
        "seen": [facts["samples_seen"] for facts in timed],
        "unit": timed[0]["unit"] if timed else "",
        "unfinished": [f"{facts['steps']} of {facts['max_steps']} steps" for facts in unfinished],
        "results": {row: numbers for row, numbers in results.items() if numbers},
    }


def _labels(rows):
    """A name for each (method, recipe): the method's, and, of several recipes, what is otherwise than in the others."""
    labels = []
    for method, recipe in rows:
        others = [json.loads(other) for name, other in rows if name == method]
        own, trained = json.loads(recipe), [other for other in others if other]
        if not own:
            labels.append(f"{method}, recorded" if trained else method)
            continue
        keys = [key for key in own if any(own[key] != other.get(key) for other in trained)]
        labels.append(", ".join([method, *(f"{key} {plain(own[key])}" for key in keys)]))
    return labels


def _why_apart(run, other):
    if run.learns_from_labels != other.learns_from_labels:
        return f"these have {'' if run.learns_from_labels else 'not '}learnt from labels"
    evaluation, first = run.evaluation, other.evaluation
    if "dataset" not in evaluation or "dataset" not in first:
        return "the record does not say on which rows and with which settings it was measured"
    return "; ".join(
        f"{what} {plain(own)}, there {plain(other)}" for what, own, other in differences(evaluation, first)
    )


def mean(values):
    return sum(values) / len(values)


def references(comparison):
    """[(row, labels of the methods it belongs to, {column: values})] of all rows but the pretrained, those of a name and of equal
    numbers as one."""
    found = []
    for method in comparison["methods"]:
        for row, numbers in method["results"].items():
            if row == "pretrained":
                continue
            alike = (each for each in found if each[0] == row and _are_alike(each[2], numbers))
            if (same := next(alike, None)) is None:
                found.append(same := (row, [], {}))
            same[1].append(method["label"])
            for column, values in numbers.items():
                same[2].setdefault(column, []).extend(values)
    return sorted(found, key=lambda each: in_order({each[0] for each in found}).index(each[0]))


def _are_alike(numbers, others):
    shared = numbers.keys() & others.keys()
    return bool(shared) and all(abs(mean(numbers[column]) - mean(others[column])) <= ALIKE for column in shared)


def comparison_table(comparison):
    """A Markdown table of one group: methods, best first, then what they stand beside."""
    metrics = {column: Metric(**values) for column, values in comparison["metrics"].items()}
    titles = [column_title(column, metric) for column, metric in metrics.items()]
    lines = ["| | " + " | ".join([*titles, "seeds", "seen", "minutes"]) + " |"]
    lines.append("|---" + "|---:" * (len(titles) + 3) + "|")

    def line(title, numbers, *others):
        cells = [_cell(numbers.get(column, []), metric.digits) for column, metric in metrics.items()]
        lines.append(f"| {' | '.join([title, *cells, *others])} |")

    for method in comparison["methods"]:
        seeds, seen = ", ".join(map(str, method["seeds"])), _cell(method["seen"], 0)
        others = seeds, f"{seen} {method['unit']}".strip(), _cell(method["minutes"], 1)
        line(f"**{method['label']}**", method["results"]["pretrained"], *others)
    found = references(comparison)
    several = {row for row, count in Counter(row for row, *_ in found).items() if count > 1}
    for row, labels, numbers in found:
        line(f"{row_title(row)} ({'; '.join(labels)})" if row in several else row_title(row), numbers, "", "", "")
    return "\n".join(lines)


def _cell(values, digits):
    """The mean, and the range where the values differ."""
    if not values:
        return ""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), mean(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def comparison_notes(comparison):
    """What a reader must know of the numbers, in sentences."""
    methods, notes = comparison["methods"], []
    if any(len(method["seeds"]) > 1 for method in methods):
        notes.append("Of several seeds the mean, and in brackets the lowest and the highest.")
    machines = {}
    for method in methods:
        for machine in method["machines"]:
            machines.setdefault(machine, []).append(method["label"])
    if len(machines) > 1:
        where = "; ".join(f"{', '.join(labels)} on {plain(machine)}" for machine, labels in machines.items())
        notes.append(f"Minutes of different machines do not compare: {where}.")
    for method in methods:
        notes += [f"{method['label']} has not ended: {reached}." for reached in method["unfinished"]]
    return notes


def comparison_page(comparisons):
    """All groups as Markdown, with the picture of each modality."""
    parts, titles = ["# Comparison"], set()
    for comparison in comparisons:
        modality = comparison["modality"]
        labels = ", ".join(method["label"] for method in comparison["methods"])
        if modality not in titles:
            titles.add(modality)
            parts += [f"## {modality.capitalize()}", f"![{modality}](comparison_{modality}.png)"]
        else:
            parts.append(f"Not comparable with the first table: {labels}: {comparison['why_apart']}.")
        if comparison["measured_on"]:
            parts.append(f"Measured on {comparison['measured_on']}; test part, in percent where no unit is named:")
        parts.append(comparison_table(comparison))
        parts += comparison_notes(comparison)
    return "\n\n".join(parts) + "\n"


__all__ = [
    "MODALITIES",
    "MeasuredRun",
    "compare",
    "comparison_page",
    "comparison_table",
    "mean",
    "recorded_runs",
    "references",
    "released_runs",
]
