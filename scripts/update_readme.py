"""Write the README's table and picture of the zoo from METHODS and the recorded results; record the results of finished runs.

python scripts/update_readme.py                                      # table and picture alone
python scripts/update_readme.py runs/mae-0 runs/mae-1 runs/mae-2     # first copy what these default runs measured
python scripts/update_readme.py --example runs/mae-0                 # copy a card alone, of a run that is recorded
python scripts/update_readme.py --block long runs/long               # these runs' table in the block <!-- results:long -->

model_cards/results/<method>.json holds one default run a seed, and the card of the run of the lowest seed becomes
model_cards/examples/<method>.md. A block stands in README.md or in a page of docs/; one with the name of a method holds the
table of its default runs, which are recorded too.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from hf_ssl.cli import information
from hf_ssl.cli.information import papers, proof_rows, recorded
from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation import PAIRS, Metric, modality_of, results_table
from hf_ssl.evaluation.comparison import MODALITIES, compare, mean, recorded_runs
from hf_ssl.evaluation.conditions import conditions, differences
from hf_ssl.evaluation.plots import save_comparison
from hf_ssl.evaluation.results import column_title
from hf_ssl.hub.card import render_card
from hf_ssl.hub.transfer import EVAL_RESULTS
from hf_ssl.methods import METHODS
from hf_ssl.training.checkpoints import RUN_FILE, write_json

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "model_cards/examples"
README, BEGIN, END = ROOT / "README.md", "<!-- zoo -->\n", "<!-- /zoo -->"
LABELS = "<!-- labels -->\n", "<!-- /labels -->"
PROOFS = {
    "image": "linear_probe",
    "text": "linear_probe",
    "audio": "phones",
    PAIRS: "zero_shot",
}  # what the table shows


def read_run(folder):
    """(method, run, results) of a finished run."""
    for name in (RUN_FILE, EVAL_RESULTS):
        if not (folder / name).is_file():
            raise InputError(f"folder '{folder}' is no evaluated run: {name} is missing.")
    run, results = (json.loads((folder / name).read_text()) for name in (RUN_FILE, EVAL_RESULTS))
    return run["config"]["model_type"].removeprefix("ssl_"), run, results


def record(folder):
    """Keep what a finished default run measured, beside the runs of other seeds."""
    method, run, results = read_run(folder)
    facts, arguments = run["facts"], run["arguments"]
    if facts["steps"] < facts["max_steps"]:
        raise InputError(f"The run in '{folder}' has not ended: {facts['steps']} of {facts['max_steps']} steps.")
    flags = {argument.partition("=")[0] for argument in facts["command"] if argument.startswith("--")}
    if facts["precision"] != "fp32" or facts["processes"] != 1:
        raise InputError(
            f"The run in '{folder}' is of {facts['processes']} processes in {facts['precision']}: only default runs, of one in "
            "fp32, are recorded."
        )
    if other := sorted(flags - {"--seed", "--output_dir", "--resume_from_checkpoint"}):
        raise InputError(
            f"The run in '{folder}' is not a default one, it has {other[0]}: only default runs are recorded."
        )
    names = ("samples_seen", "unit", "seconds", "hardware", "processes", "precision", "versions")
    measured = {name: facts[name] for name in names}
    kept = {"seed": arguments["seed"], "run": measured, "results": results["results"]}
    before, under = recorded(method), conditions(results)
    others = [other for other in before.get("runs", []) if other["seed"] != kept["seed"]]
    if others and ("dataset" not in before or differences(under, before)):
        print(
            f"{method}: the other recorded runs were measured on other rows or with other settings, and are dropped."
        )
        before, others = {}, []
    whole = {
        "preset": arguments["backbone"],
        "runs": sorted([*others, kept], key=lambda each: each["seed"]),
        "metrics": before.get("metrics", {}) | results["metrics"],
        **under,
    }
    write_json(information.RESULTS / f"{method}.json", whole)


def write_example(folder):
    """Copy the card of a recorded run, with its pictures and without its metadata, where it can be read in the repository.

    Of the runs of a method the one of the lowest seed gives the example.
    """
    method, run, results = read_run(folder)
    seed, runs = run["arguments"]["seed"], recorded(method).get("runs", [])
    if results["results"] not in [each["results"] for each in runs if each["seed"] == seed]:
        raise InputError(f"The run in '{folder}' is not the recorded one of seed {seed}: record it first.")
    if seed != min(each["seed"] for each in runs):
        return
    body = render_card(folder, f"outputs/{method}").split("\n---\n", 1)[1]
    pictures = EXAMPLES / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob(f"{method}_*.png"):
        old.unlink()
    for name in re.findall(r"\]\(images/([^)]+)\)", body):
        shutil.copyfile(folder / "images" / name, pictures / f"{method}_{name}")
    body = re.sub(r" --output_dir[= ]('[^']*'|\S+)", "", body)  # a place of no interest here
    body = body.replace("](images/", f"](images/{method}_")
    body = re.sub(r"\[([^\]]+)\]\((?:pretraining/)?[a-z]+\.json\)", r"`\1`", body)  # files that are not here
    intro = f"The card that `hf-ssl pretrain {method}` left with seed {seed}, without its metadata.\n"
    (EXAMPLES / f"{method}.md").write_text(intro + body.rstrip() + "\n")


def save_picture():
    """The README's picture of all image methods, from the recorded runs."""
    names = [name for name, model in METHODS.items() if recorded(name) and not model.learns_from_labels]
    runs = [run for name in names for run in recorded_runs(name, recorded(name))]
    images = [each for each in compare(runs) if each["modality"] == "images"]
    save_comparison(ROOT / "model_cards/images/comparison_images.png", images)


def zoo_table():
    """A row for each method: what it reads, one measure of it beside raw features and random weights, and the minutes."""
    lines = [
        "| method | reads | paper | measured by | raw features | random weights | pretrained | minutes |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for name in METHODS:
        if not METHODS[name].learns_from_labels:
            cells = [_page(name), MODALITIES[modality_of(METHODS[name])], _links(name), *_proof(name, recorded(name))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def labels_table():
    """A row for each method that learns from few labels: its accuracy beside that of the network trained with labels alone."""
    lines = [
        "| method | paper | the labels alone | with unlabelled images | all labels | minutes |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in METHODS:
        if METHODS[name].learns_from_labels:
            runs = recorded(name).get("runs", [])
            rows = [
                [run["results"][row]["accuracy"] for run in runs]
                for row in ("labels_alone", "pretrained", "all_labels")
            ]
            cells = [f"{mean(values):.1f}" if values else "" for values in rows]
            minutes = f"{max(1, mean([run['run']['seconds'] / 60 for run in runs])):.0f}" if runs else ""
            lines.append(f"| {' | '.join([_page(name), _links(name), *cells, minutes])} |")
    return "\n".join(lines) + "\n"


def _page(name):
    """A method's name, with a link to its card, or, where no run is recorded, to its file."""
    example = f"model_cards/examples/{name}.md"
    return f"[`{name}`]({example if (ROOT / example).is_file() else f'hf_ssl/methods/{name}.py'})"


def _links(name):
    return ", ".join(f"[{label or f'arXiv:{number}'}]({link})" for label, link, number in papers(name))


def _proof(name, record):
    """The column of the proof in words, its means over the seeds in each row, and the minutes of a run."""
    runs, column = record.get("runs", []), PROOFS[modality_of(METHODS[name])]
    if not runs:
        return [""] * 5
    raw = next(
        (row for row in runs[0]["results"] if row not in proof_rows(name) and column in runs[0]["results"][row]), ""
    )
    rows = [[run["results"].get(row, {}) for run in runs] for row in (raw, *proof_rows(name))]
    values = [[numbers[column] for numbers in row if column in numbers] for row in rows]
    means = [mean(each) if each else None for each in values]
    best = max(each for each in means if each is not None)
    cells = ["" if each is None else f"**{each:.1f}**" if each == best else f"{each:.1f}" for each in means]
    minutes = [run["run"]["seconds"] / 60 for run in runs if "run" in run]
    title = column_title(column, Metric(**record["metrics"][column]))
    return [title, *cells, f"{max(1, mean(minutes)):.0f}"]


def updated(readme):
    """The README with its table of the zoo, and the tables of the default runs of single methods, as they are recorded now."""
    readme = _between(readme, BEGIN, END, zoo_table())
    readme = _between(readme, *LABELS, labels_table())
    for name in re.findall(r"<!-- recorded:(\w+) -->", readme):
        record = recorded(name)
        runs = [run | {"metrics": record["metrics"]} for run in record["runs"]]
        readme = _between(
            readme, f"<!-- recorded:{name} -->\n", f"<!-- /recorded:{name} -->", results_table(*runs) + "\n"
        )
    return readme


def _between(text, begin, end, inside):
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"README.md has no place for a table: expected {begin.strip()} and {end}.")
    return before + begin + inside + end + after


def page_of(block, root=ROOT):
    """The page that has a block, README.md or one of docs/."""
    begin, end = marks(block)
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    found = [page for page in pages if page.is_file() and begin in (text := page.read_text()) and end in text]
    if len(found) != 1:
        places = ", ".join(page.relative_to(root).as_posix() for page in found) or "none"
        raise InputError(f"block '{block}': expected one page with {begin.strip()} and {end}, found {places}.")
    return found[0]


def marks(block):
    return f"<!-- results:{block} -->\n", f"<!-- /results:{block} -->"


def filled(page, block, folders):
    """The text of a page with the table of `block` made of the results of these runs, the text around it as it was."""
    begin, end = marks(block)
    before, found, rest = page.partition(begin)
    text, _, after = rest.partition(end)
    table = results_table(*(json.loads((folder / EVAL_RESULTS).read_text()) for folder in folders))
    paragraphs = [part for part in re.split(r"\n\n+", text.strip()) if part and not part.startswith("|")]
    return before + found + "\n\n".join([*paragraphs[:1], table, *paragraphs[1:]]) + "\n" + end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="Folders of finished runs whose results are recorded.")
    parser.add_argument("--example", action="store_true", help="Copy the cards alone.")
    parser.add_argument("--block", help="The table that these runs, of several seeds, fill.")
    args = parser.parse_args()
    for folder in args.runs if args.block is None or args.block in METHODS else []:
        if not args.example:
            record(folder)
        write_example(folder)
    if not README.is_file():
        raise InputError(f"README.md was not found in {ROOT}: this script is for a checkout.")
    if args.block:
        page = page_of(args.block)
        page.write_text(filled(page.read_text(), args.block, args.runs))
    README.write_text(updated(README.read_text()))
    save_picture()


if __name__ == "__main__":
    run_script(main)
