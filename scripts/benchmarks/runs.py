"""The runs that a table is made of: each is made once, and taken up again where it broke off."""

import json
import subprocess
import sys
from pathlib import Path

from hf_ssl.errors import InputError
from hf_ssl.hub.transfer import EVAL_RESULTS

SCRIPTS = Path(__file__).parents[1]


def check_flags(flags, own):
    """Raises InputError if `flags`, which the user gives for all runs, set one of `own`, which the table sets."""
    for flag in flags:
        if (name := flag.partition("=")[0]) in own:
            raise InputError(f"flags must not set {name}, found '{flag}': the runs of the table have their own.")


def finish(script, folder, settings, flags):
    """Make a run of pretrain_<script>.py that has not ended before, or what is left of it. settings: of its config."""
    if (folder / EVAL_RESULTS).is_file():
        made = json.loads((folder / "pretraining/config.json").read_text())
        for name, value in settings.items():
            if made[name] != value:
                raise InputError(
                    f"The run in '{folder}' has {name} {made[name]}, expected {value}: name another folder."
                )
        return
    overrides = ",".join(f"{name}={value}" for name, value in settings.items())
    command = [sys.executable, str(SCRIPTS / f"pretrain_{script}.py"), "--output_dir", str(folder)]
    command += ["--resume_from_checkpoint", "auto", "--config_overrides", overrides, *flags]
    if code := subprocess.run(command).returncode:
        raise InputError(
            f"The run in '{folder}' ended with code {code}, for the reason above; another start goes on with it."
        )


def read_results(folder):
    """{row: {protocol: percent}} of a run, or of none that has been measured."""
    file = folder / EVAL_RESULTS
    return json.loads(file.read_text())["results"] if file.is_file() else {}


def print_table(title, columns, rows):
    """columns: {heading: key}. rows: {name: {key: number}}."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, numbers in rows.items():
        cells = [f"{numbers[key]:.1f}" if key in numbers else "" for key in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")
