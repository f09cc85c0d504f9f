"""Put runs side by side: one table of each group that can be compared, and one plot of each modality, from their files alone.

hf-ssl compare runs/*                              # finished runs; those that differ in their seed alone become one row
hf-ssl compare mae moco simclr                     # the recorded default runs of these methods; without any name, of all
hf-ssl compare mae moco --max_steps 200            # train each for 200 steps first, into OUTPUT_DIR/runs
hf-ssl compare mae moco --max_steps 200 --output_dir runs/compared \\
    --dataset_name path/to/images --test_fraction 0.2   # with flags of hf-ssl pretrain

Leaves comparison.md, comparison.json and comparison_<modality>.png. A training that was stopped goes on; one that is finished is
kept.
"""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

from hf_ssl.cli import set_up_logging
from hf_ssl.cli.information import recorded
from hf_ssl.cli.main import launch_flags
from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation.comparison import compare, comparison_page, recorded_runs, released_runs
from hf_ssl.evaluation.plots import save_comparison
from hf_ssl.evaluation.results import RESULTS_FILE
from hf_ssl.methods import METHODS
from hf_ssl.training.checkpoints import RUN_FILE, write_json

logger = logging.getLogger("hf_ssl")


def train_method(method, flags, folder):
    """Run `hf-ssl pretrain` with these flags, unless `folder` holds that run already, finished and evaluated."""
    command = ["pretrain", method, *flags, "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
    if (folder / RUN_FILE).is_file():
        facts = json.loads((folder / RUN_FILE).read_text()).get("facts", {})
        _, own = launch_flags(command[2:])
        if (begun := facts.get("command", ["", *own])[1:]) != own:
            raise InputError(
                f"'{folder}' holds a run with other flags ({' '.join(begun)}): choose another output_dir for this comparison."
            )
        if facts.get("steps") == facts.get("max_steps") and (folder / RESULTS_FILE).is_file():
            logger.info("%s is there already: %s", method, folder)
            return
    logger.info("hf-ssl %s", " ".join(command))
    if code := subprocess.run([sys.executable, "-m", "hf_ssl", *command]).returncode:
        raise InputError(f"The training of {method} ended with exit code {code}; nothing was compared.")


def find_runs(names):
    """A MeasuredRun for each evaluation of the named releases and recorded methods; what is neither is named and left out."""
    runs = []
    for name in names:
        if name not in METHODS:
            try:
                runs += released_runs(name)
            except InputError as error:
                if not Path(name).exists():
                    raise
                logger.warning("Left out: %s", error)
        elif record := recorded(name):
            runs += recorded_runs(name, record)
        else:
            logger.warning("Left out: no default run of %s has been recorded.", name)
    if not runs:
        raise InputError(
            "runs: no evaluated run was found: expected folders that hf-ssl pretrain has left, or methods."
        )
    return runs


def write_comparison(comparisons, output_dir):
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "comparison.json", comparisons)
    for modality in dict.fromkeys(each["modality"] for each in comparisons):
        own = [each for each in comparisons if each["modality"] == modality]
        save_comparison(output_dir / f"comparison_{modality}.png", own)
    (output_dir / "comparison.md").write_text(comparison_page(comparisons))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="*", help="Folders of runs, or methods; none: all methods that have recorded runs."
    )
    parser.add_argument("--max_steps", type=int, help="Train the named methods for so many steps each.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison"))
    args, flags = parser.parse_known_args()
    set_up_logging()
    if flags and args.max_steps is None:
        raise InputError(f"{flags[0]} is a flag of the training: give --max_steps, the budget of each method, too.")
    names = args.runs or [name for name in METHODS if recorded(name)]
    if args.max_steps is not None:
        if others := [name for name in names if name not in METHODS]:
            raise InputError(f"max_steps trains methods: expected some of {', '.join(METHODS)}, found '{others[0]}'.")
        folders = {name: args.output_dir / "runs" / f"{name}-{args.max_steps}" for name in names}
        for name, folder in folders.items():
            train_method(name, ["--max_steps", str(args.max_steps), *flags], folder)
        names = folders.values()
    comparisons = compare(find_runs(names))
    write_comparison(comparisons, args.output_dir)
    print(comparison_page(comparisons).partition("\n\n")[2], end="")
    logger.info("The comparison is in %s", args.output_dir)


if __name__ == "__main__":
    run_script(main)
