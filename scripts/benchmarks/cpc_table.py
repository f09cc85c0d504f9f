"""The tables of the CPC paper on any speech with phone labels: methods, steps predicted, and where negatives come from."""

import json
import subprocess
import sys
from pathlib import Path

from hf_ssl.errors import InputError

PRETRAIN = Path(__file__).parents[1] / "pretrain_cpc_audio.py"
PROTOCOLS = "phones,speakers,linear_probe"
SPEAKERS = {"Speakers": "speakers", "by the mean over time": "linear_probe"}
METHODS = {  # row of the results -> as the paper calls it
    "random_initialisation": "Random initialisation",
    "mfcc": "MFCC features",
    "pretrained": "CPC",
    "supervised": "Supervised",
}
# name of a row -> config, and flags that go with it; the run with 12 steps and mixed negatives stands in all tables
STEPS = {f"{k} steps": (f"prediction_steps={k},negative_policy=mixed", "") for k in (2, 4, 8, 12, 16)}
GROUPED = "--windows_per_speaker 8"
POLICIES = {
    name: (f"prediction_steps=12,negative_policy={policy}", flags)
    for name, policy, flags in (
        ("Mixed speaker", "mixed", ""),
        ("Same speaker", "same_speaker", GROUPED),
        ("Mixed speaker (excl.)", "mixed_excluding_current", ""),
        ("Same speaker (excl.)", "same_speaker_excluding_current", GROUPED),
        ("Current sequence only", "current", ""),
    )
}


def run(folder, flags, overrides, more, protocols):
    """The results of a run, which is made if it has not ended before."""
    results = folder / "eval_results.json"
    if not results.is_file():
        command = [sys.executable, str(PRETRAIN), "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
        command += ["--eval_protocols", protocols, "--config_overrides", overrides, *more.split(), *flags]
        subprocess.run(command, check=True)
    return json.loads(results.read_text())["results"]


def compare(output_dir, flags):
    """flags: of pretrain_cpc_audio.py, for all runs. Runs that have ended in `output_dir` are not made again."""
    if "--config_overrides" in flags:
        raise InputError("flags must not set --config_overrides: the rows of the tables differ by them.")
    folder = Path(output_dir)
    protocols = f"{PROTOCOLS},phones_hidden,supervised"
    first = run(folder / "12_steps", flags, *STEPS["12 steps"], protocols)
    found = {STEPS["12 steps"]: first}
    for name, variant in (STEPS | POLICIES).items():
        if variant not in found:
            found[variant] = run(folder / name.replace(" ", "_").lower(), flags, *variant, PROTOCOLS)
    columns = {"Phones": "phones", "one hidden layer": "phones_hidden"} | SPEAKERS
    print_table("Method", columns, {METHODS[row]: first[row] for row in METHODS if row in first})
    for title, variants in (("Steps predicted", STEPS), ("Negatives from", POLICIES)):
        rows = {name: found[variant]["pretrained"] for name, variant in variants.items()}
        print_table(title, {"Phones": "phones"} | SPEAKERS, rows)


def print_table(title, columns, rows):
    """rows: {name: {column's key: number}}."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, numbers in rows.items():
        cells = [f"{numbers[key]:.1f}" if key in numbers else "" for key in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")
