"""Write the README's table of the zoo from METHODS and the recorded results; record the results of finished runs.

python scripts/update_readme.py                                      # the table alone
python scripts/update_readme.py outputs/mae outputs/moco             # first copy what these runs measured
python scripts/update_readme.py --block clip runs/0 runs/1 runs/2    # these runs' table in the block <!-- results:clip -->

A method's own block has the method's name; of its runs the first is recorded too.
What is recorded of a method is the last run that was given here: model_cards/results/<method>.json.
"""

import argparse
import importlib
import json
import re
from pathlib import Path

from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation import Metric, results_table
from hf_ssl.hub.transfer import EVAL_RESULTS
from hf_ssl.methods import METHODS
from hf_ssl.training.checkpoints import RUN_FILE, write_json
from hf_ssl.training.records import command_line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "model_cards" / "results"
README, BEGIN, END = ROOT / "README.md", "<!-- zoo -->\n", "<!-- /zoo -->"
PAPER = re.compile(r"(?:(\w+(?: et al\.| and \w+)? \d{4})[,:]?\s+)?(https://arxiv\.org/abs/([\d.]+\d))")
ROWS = ("random_initialisation", "pretrained")
MOST_PROOFS = 4  # columns of an evaluation that the table of the zoo shows


def record(folder):
    """Keep what a finished run measured."""
    folder = Path(folder)
    for name in (RUN_FILE, EVAL_RESULTS):
        if not (folder / name).is_file():
            raise InputError(f"folder '{folder}' is no evaluated run: {name} is missing.")
    run, results = (json.loads((folder / name).read_text()) for name in (RUN_FILE, EVAL_RESULTS))
    facts = run["facts"]
    if facts["steps"] < facts["max_steps"]:
        raise InputError(f"The run in '{folder}' has not ended: {facts['steps']} of {facts['max_steps']} steps.")
    names = ("samples_seen", "unit", "seconds", "hardware", "processes", "precision", "versions")
    measured = {name: facts[name] for name in names}
    kept = {
        "command": command_line(facts),
        "seed": run["arguments"]["seed"],
        "run": measured,
        "results": results["results"],
        "metrics": results["metrics"],
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{run['config']['model_type'].removeprefix('ssl_')}.json", kept)


def zoo_table():
    lines = [
        "| method | paper | script | card | proof: random initialisation → pretrained | speed |",
        "|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        docstring = importlib.import_module(f"hf_ssl.methods.{name}").__doc__
        papers = ", ".join(
            f"[{label or f'arXiv:{number}'}]({link})" for label, link, number in PAPER.findall(docstring)
        )
        file = RESULTS / f"{name}.json"
        recorded = json.loads(file.read_text()) if file.is_file() else {}
        cells = [
            f"[`{name}`](hf_ssl/methods/{name}.py)",
            papers,
            f"[pretrain_{name}.py](scripts/pretrain_{name}.py)",
            f"[{name}.md](model_cards/{name}.md)",
            _proof(recorded.get("results", {}), recorded.get("metrics", {})),
            _speed(recorded.get("run")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _proof(results, metrics):
    before, after = (results.get(row, {}) for row in ROWS)
    known = {name: Metric(**{"name": name} | metrics.get(name, {})) for name in after if name in before}
    changes = []
    for name, metric in known.items():
        if metric.unit and not name.startswith("unknown:"):  # no counts or probabilities
            numbers = f"{before[name]:.{metric.digits}f} → {after[name]:.{metric.digits}f}"
            changes.append(
                f"{metric.title or name.replace('_', ' ')} {numbers}"
                + (f" {metric.unit}" if metric.unit != "%" else "")
            )
    return ", ".join(changes[:MOST_PROOFS])


def _speed(run):
    if not run:
        return ""
    speed = f"{run['samples_seen'] / run['seconds']:,.0f} {run['unit']}/s"
    return f"{speed} on {run['hardware']['name']}, {run['seconds'] / 60:.1f} min"


def updated(readme):
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InputError(f"README.md has no place for the table: expected {BEGIN.strip()} and {END}.")
    return before + BEGIN + zoo_table() + END + after


def filled(readme, block, folders):
    """With the table of `block` made of the results of these runs, the text around it as it was."""
    begin, end = f"<!-- results:{block} -->\n", f"<!-- /results:{block} -->"
    before, found, rest = readme.partition(begin)
    text, ended, after = rest.partition(end)
    if not (found and ended):
        raise InputError(f"README.md has no block '{block}': expected {begin.strip()} and {end}.")
    table = results_table(*(json.loads((Path(folder) / EVAL_RESULTS).read_text()) for folder in folders))
    told = [part for part in re.split(r"\n\n+", text.strip()) if part and not part.startswith("|")]
    return before + found + "\n\n".join([*told[:1], table, *told[1:]]) + "\n" + end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="Folders of finished runs whose results are recorded.")
    parser.add_argument("--block", help="The README's table that these runs, of several seeds, fill.")
    args = parser.parse_args()
    recorded = args.runs[: args.block in METHODS] if args.block else args.runs
    for folder in recorded:
        record(folder)
    readme = README.read_text()
    README.write_text(updated(filled(readme, args.block, args.runs) if args.block else readme))


if __name__ == "__main__":
    run_script(main)
