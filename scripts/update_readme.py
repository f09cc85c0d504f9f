"""Write the README's table of the zoo from METHODS and the recorded results; record the results of finished runs.

python scripts/update_readme.py                                      # the table alone
python scripts/update_readme.py runs/mae-0 runs/mae-1 runs/mae-2     # first copy what these default runs measured
python scripts/update_readme.py --block long runs/long               # these runs' table in the block <!-- results:long -->

model_cards/results/<method>.json holds one default run a seed. A block stands in README.md or in a page of docs/; one with the
name of a method holds the table of its default runs, which are recorded too.
"""

import argparse
import json
import re
from pathlib import Path

from hf_ssl.cli import information
from hf_ssl.cli.information import changes, papers, recorded
from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation import results_table
from hf_ssl.hub.transfer import EVAL_RESULTS
from hf_ssl.methods import METHODS
from hf_ssl.training.checkpoints import RUN_FILE, write_json

ROOT = Path(__file__).parents[1]
README, BEGIN, END = ROOT / "README.md", "<!-- zoo -->\n", "<!-- /zoo -->"
MOST_PROOFS = 4  # columns of an evaluation that the table of the zoo shows


def record(folder):
    """Keep what a finished default run measured, beside the runs of other seeds."""
    folder = Path(folder)
    for name in (RUN_FILE, EVAL_RESULTS):
        if not (folder / name).is_file():
            raise InputError(f"folder '{folder}' is no evaluated run: {name} is missing.")
    run, results = (json.loads((folder / name).read_text()) for name in (RUN_FILE, EVAL_RESULTS))
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
    method = run["config"]["model_type"].removeprefix("ssl_")
    others = [other for other in recorded(method).get("runs", []) if other["seed"] != kept["seed"]]
    whole = {
        "preset": arguments["backbone"],
        "runs": sorted([*others, kept], key=lambda each: each["seed"]),
        "metrics": recorded(method).get("metrics", {}) | results["metrics"],
    }
    write_json(information.RESULTS / f"{method}.json", whole)


def zoo_table():
    lines = [
        "| method | paper | proof: random initialisation → pretrained, seeds 0 / 1 / 2 | speed |",
        "|---|---|---|---|",
    ]
    for name in METHODS:
        links = ", ".join(f"[{label or f'arXiv:{number}'}]({link})" for label, link, number in papers(name))
        runs = recorded(name).get("runs", [])
        proof = ", ".join(changes(name)[:MOST_PROOFS])
        cells = [f"[`{name}`](hf_ssl/methods/{name}.py)", links, proof, _speed(runs[0]["run"]) if runs else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _speed(run):
    speed = f"{run['samples_seen'] / run['seconds']:,.0f} {run['unit']}/s"
    return f"{speed} on {run['hardware']['name']}, {run['seconds'] / 60:.1f} min"


def updated(readme):
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InputError(f"README.md has no place for the table: expected {BEGIN.strip()} and {END}.")
    return before + BEGIN + zoo_table() + END + after


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
    table = results_table(*(json.loads((Path(folder) / EVAL_RESULTS).read_text()) for folder in folders))
    paragraphs = [part for part in re.split(r"\n\n+", text.strip()) if part and not part.startswith("|")]
    return before + found + "\n\n".join([*paragraphs[:1], table, *paragraphs[1:]]) + "\n" + end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="Folders of finished runs whose results are recorded.")
    parser.add_argument("--block", help="The table that these runs, of several seeds, fill.")
    args = parser.parse_args()
    for folder in args.runs if args.block is None or args.block in METHODS else []:
        record(folder)
    if not README.is_file():
        raise InputError(f"README.md was not found in {ROOT}: this script is for a checkout.")
    if args.block:
        page = page_of(args.block)
        page.write_text(filled(page.read_text(), args.block, args.runs))
    README.write_text(updated(README.read_text()))


if __name__ == "__main__":
    run_script(main)
