"""The tables of the CPC paper on any speech with labels of phones and speakers: methods, steps predicted, negatives."""

import json
from pathlib import Path

from hf_ssl.evaluation import evaluate_audio
from hf_ssl.hub.card import write_card
from hf_ssl.training.checkpoints import RUN_FILE

from .runs import check_flags, finish, print_table, read_results

SPEAKER_COLUMNS = {"Speakers": "speakers", "by the mean over time": "linear_probe"}
PROTOCOLS, METHOD_PROTOCOLS = ("phones", "linear_probe"), ("phones_hidden", "speakers", "supervised")
ROWS = {  # row of the results -> as the paper calls it
    "random_initialisation": "Random initialisation",
    "mfcc": "MFCC features",
    "pretrained": "CPC",
    "supervised": "Supervised",
}
COMPARED = "12 steps"  # the run that stands for CPC among the methods
# name of a row -> config, and flags that go with it; the run with 12 steps and mixed negatives stands in all tables
STEPS = {f"{k} steps": ({"prediction_steps": k, "negative_policy": "mixed"}, "") for k in (2, 4, 8, 12, 16)}
GROUPED = "--windows_per_speaker 8"
POLICIES = {
    name: ({"prediction_steps": 12, "negative_policy": policy}, flags)
    for name, policy, flags in (
        ("Mixed speaker", "mixed", ""),
        ("Same speaker", "same_speaker", GROUPED),
        ("Mixed speaker (excl.)", "mixed_excluding_current", ""),
        ("Same speaker (excl.)", "same_speaker_excluding_current", GROUPED),
        ("Current sequence only", "current", ""),
    )
}
OWN_FLAGS = ("--config_overrides", "--output_dir", "--eval_protocols", "--windows_per_speaker")


def results(folder, protocols, baselines):
    """What `protocols` find of a run; those that have not been run yet are."""
    found = read_results(folder)
    if lacking := [name for name in protocols if name not in found and name not in found.get("pretrained", {})]:
        used = json.loads((folder / RUN_FILE).read_text())["arguments"]
        places = ("train_split", "test_split", "audio_column", "streaming", "seed")
        evaluate_audio(
            str(folder), used["dataset_name"], used["dataset_config_name"], protocols=lacking, output_dir=folder,
            label_column=used["speaker_column"] or used["label_column"], baselines=baselines,
            **{place: used[place] for place in places},
        )  # fmt: skip
        write_card(folder)
        found = read_results(folder)
    return found


def compare(output_dir, flags):
    """flags: of pretrain_cpc_audio.py, for all runs. Runs that have ended in `output_dir` are not made again."""
    check_flags(flags, OWN_FLAGS)
    found = {}
    for name, (settings, more) in (STEPS | POLICIES).items():
        if (variant := tuple(settings.values())) not in found:
            folder = Path(output_dir) / name.replace(" ", "_").lower()
            finish("cpc_audio", folder, settings, ["--eval_protocols", "none", *more.split(), *flags])
            compared = name == COMPARED
            protocols = (*PROTOCOLS, *METHOD_PROTOCOLS) if compared else PROTOCOLS
            found[variant] = results(folder, protocols, compared)
    methods = found[tuple(STEPS[COMPARED][0].values())]
    columns = {"Phones": "phones", "one hidden layer": "phones_hidden"} | SPEAKER_COLUMNS
    print_table("Method", columns, {row: methods[key] for key, row in ROWS.items() if key in methods})
    for title, variants in (("Steps predicted", STEPS), ("Negatives from", POLICIES)):
        rows = {name: found[tuple(settings.values())]["pretrained"] for name, (settings, _) in variants.items()}
        print_table(title, {"Phones": "phones", "Speakers, by the mean over time": "linear_probe"}, rows)
