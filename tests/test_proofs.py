"""Contract C3: every method's default run, on the data that ships with the package, beats its random initialisation.

Minutes each, so marked slow: `make proofs`. The margins are points of accuracy on the test part.
"""

import json

import pytest
from test_scripts import run

from hf_ssl.data import load_split
from hf_ssl.evaluation.language_model import evaluate_language_model, load_language_model

MARGINS = {
    "mae": {"linear_probe": 5.0, "knn": 5.0},
    "moco": {"linear_probe": 4.0, "knn": 5.0},
    "simclr": {"linear_probe": 4.0, "knn": 5.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", MARGINS)
def test_the_default_run_beats_random_initialisation(name, seed, tmp_path):
    code, _, err = run(f"pretrain_{name}.py", "--output_dir", tmp_path / "run", "--seed", seed, timeout=1200)
    assert code == 0, err
    results = json.loads((tmp_path / "run/eval_results.json").read_text())["results"]
    for protocol, margin in MARGINS[name].items():
        gain = results["pretrained"][protocol] - results["random_initialisation"][protocol]
        assert gain >= margin, f"{protocol}: {results}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_bert_guesses_words_and_next_sentences_of_unseen_documents(seed, tmp_path):
    code, _, err = run("pretrain_bert.py", "--output_dir", tmp_path / "run", "--seed", seed, timeout=1800)
    assert code == 0, err
    documents = load_split(None, "validation", sample="text")["text"]
    results = evaluate_language_model(*load_language_model(tmp_path / "run"), documents)
    assert results["mlm_loss"] < results["unigram_loss"] - 0.3, results
    assert results["nsp_accuracy"] > 55 and results["nsp_p_value"] < 1e-3, results
