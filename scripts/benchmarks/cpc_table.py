"""The tables of the CPC paper on any speech with phone labels: methods, steps predicted, and where negatives come from."""

import json
import subprocess
import sys
from pathlib import Path

from hf_ssl.checkpoints import RUN_FILE
from hf_ssl.errors import InputError
from hf_ssl.evaluation import evaluate_audio
from hf_ssl.transfer import EVAL_RESULTS

PRETRAIN = Path(__file__).parents[1] / "pretrain_cpc_audio.py"
SPEAKERS = {"Speakers": "speakers", "by the mean over time": "linear_probe"}
PROTOCOLS, METHOD_PROTOCOLS = ("phones", "linear_probe"), ("phones_hidden", "speakers", "supervised")
METHODS = {  # row of the results -> as the paper calls it
    "random_initialisation": "Random initialisation",
    "mfcc": "MFCC features",
    "pretrained": "CPC",
    "supervised": "Supervised",
}
COMPARED = "12 steps"  # the run that stands for CPC among the methods
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


def run(folder, flags, overrides, more):
    """Make a run that has not been evaluated before, or what is left of it."""
    if not (folder / EVAL_RESULTS).is_file():
        command = [sys.executable, str(PRETRAIN), "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
        command += ["--eval_protocols", "none", "--config_overrides", overrides, *more.split(), *flags]
        subprocess.run(command, check=True)


def results(folder, protocols, baselines):
    """What `protocols` found of a run; they are run if they have not been."""
    if not (folder / EVAL_RESULTS).is_file():
        used = json.loads((folder / RUN_FILE).read_text())["arguments"]
        places = ("train_split", "test_split", "audio_column", "label_column", "streaming", "seed")
        evaluate_audio(
            str(folder), used["dataset_name"], used["dataset_config_name"], protocols=protocols, output_dir=folder,
            baselines=baselines, **{place: used[place] for place in places},
        )  # fmt: skip
    return json.loads((folder / EVAL_RESULTS).read_text())["results"]


def compare(output_dir, flags):
    """flags: of pretrain_cpc_audio.py, for all runs. Runs that have ended in `output_dir` are not made again."""
    if "--config_overrides" in flags:
        raise InputError("flags must not set --config_overrides: the rows of the tables differ by them.")
    found = {}
    for name, variant in (STEPS | POLICIES).items():
        if variant not in found:
            folder = Path(output_dir) / name.replace(" ", "_").lower()
            run(folder, flags, *variant)
            compared = name == COMPARED
            found[variant] = results(folder, (*PROTOCOLS, *METHOD_PROTOCOLS) if compared else PROTOCOLS, compared)
    methods = found[STEPS[COMPARED]]
    columns = {"Phones": "phones", "one hidden layer": "phones_hidden"} | SPEAKERS
    print_table("Method", columns, {METHODS[row]: methods[row] for row in METHODS if row in methods})
    for title, variants in (("Steps predicted", STEPS), ("Negatives from", POLICIES)):
        rows = {name: found[variant]["pretrained"] for name, variant in variants.items()}
        print_table(title, {"Phones": "phones", "Speakers, by the mean over time": "linear_probe"}, rows)


def print_table(title, columns, rows):
    """rows: {name: {column's key: number}}."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, numbers in rows.items():
        cells = [f"{numbers[key]:.1f}" if key in numbers else "" for key in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")
