"""Contract C3: every method's default run, on the data that ships with the package, beats its random initialisation.

Minutes each, so marked slow: `make proofs`. What such runs have recorded is read each time. The margins are points of
accuracy on the test part; of methods that learn from labels, over the same network trained on these labels alone.
"""

import importlib
import json

import pytest
from test_scripts import run

from hf_ssl.cli.information import proof_rows, recorded
from hf_ssl.methods import METHODS

MARGINS = {
    "amdim": {"linear_probe": 5.0, "knn": 9.0},
    "autoencoder": {"linear_probe": 5.0, "knn": 9.0},
    "barlow_twins": {"linear_probe": 4.0, "knn": 5.0},
    "bert": {"linear_probe": 5.0, "nsp_accuracy": 5.0},
    "bigan": {"linear_probe": 2.5, "knn": 3.0},
    "clip": {"zero_shot": 10.0, "image_to_text@5": 10.0},  # of emoji that training has not shown
    "cmc": {"linear_probe": 1.5, "knn": 15.0},  # of 236 emoji
    "colorization": {"linear_probe": 6.0, "knn": 8.0},  # of 236 emoji too, so is split_brain's
    "context_encoder": {"linear_probe": 4.0, "knn": 3.0},
    "cpc_audio": {"phones": 10.0, "linear_probe": 1.0},
    "cpc_text": {"linear_probe": 5.0, "next_sentence_1": 4.0},  # chance is 1
    "deep_cluster": {"linear_probe": 5.0, "knn": 9.0},
    "deep_infomax": {"linear_probe": 2.5, "knn": 3.0},
    "entropy_minimization": {"accuracy": 0.2},  # it is known to be weak
    "exemplar": {"linear_probe": 1.5, "knn": 4.0},
    "fixmatch": {"accuracy": 2.5},
    "instance_discrimination": {"linear_probe": 4.0, "knn": 6.0},
    "jigsaw": {"linear_probe": 1.0, "knn": 1.5},
    "mae": {"linear_probe": 5.0, "knn": 5.0},
    "mean_teacher": {"accuracy": 3.0},
    "mixmatch": {"accuracy": 3.0},
    "moco": {"linear_probe": 4.0, "knn": 5.0},
    "nat": {"linear_probe": 3.0, "knn": 4.0},
    "pi_model": {"accuracy": 4.5},
    "pirl": {"linear_probe": 3.0, "knn": 6.0},
    "pseudo_label": {"accuracy": 1.0},
    "relative_position": {"linear_probe": 1.5},
    "rotation": {"linear_probe": 4.0, "knn": 7.0},
    "s4l": {"accuracy": 0.2},  # reported, as entropy minimisation is
    "simclr": {"linear_probe": 4.0, "knn": 5.0},
    "split_brain": {"linear_probe": 1.5, "knn": 0.5},  # random weights differ much
    "temporal_ensembling": {"accuracy": 2.0},
    "uda": {"accuracy": 2.0},
    "vat": {"accuracy": 0.8},
    "word2vec": {"linear_probe": 10.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_the_default_run_beats_random_initialisation(name, seed, tmp_path):
    code, _, err = run(f"pretrain_{name}.py", "--output_dir", tmp_path / "run", "--seed", seed, timeout=1800)
    assert code == 0, err
    results = json.loads((tmp_path / "run/eval_results.json").read_text())["results"]
    check_margins(name, results)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_runs_beat_random_initialisation(name):
    """Their numbers are those of the card and the README, and of the preset that a run takes by default."""
    runs = recorded(name)["runs"]
    assert [recording["seed"] for recording in runs] == [0, 1, 2]
    presets = importlib.import_module(f"hf_ssl.scripts.pretrain_{name}").PRESETS
    assert recorded(name)["preset"] == next(iter(presets))
    for recording in runs:
        check_margins(name, recording["results"])


def check_margins(name, results):
    for protocol, margin in MARGINS[name].items():
        gain = results["pretrained"][protocol] - results[proof_rows(name)[0]][protocol]
        assert gain >= margin, f"{protocol}: {results}"
    if name == "bert":  # on documents that it has not seen
        assert results["pretrained"]["mlm_loss"] < results["unigrams"]["mlm_loss"] - 0.3, results
        assert results["pretrained"]["nsp_p_value"] < 1e-3, results


def test_every_method_has_a_margin():
    assert MARGINS.keys() == METHODS.keys()
