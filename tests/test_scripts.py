"""The scripts as a user runs them: what they leave, what loads it, and what they say to bad input."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from methods.tester import TINY_RESNET
from processes import launch, run_plain
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    BertForMaskedLM,
    BertForPreTraining,
    BertTokenizer,
    ResNetConfig,
    ResNetModel,
)

import hf_ssl
from hf_ssl.data import load_split
from hf_ssl.errors import InputError
from hf_ssl.training.records import public_run

ROOT = Path(__file__).parents[1]


def run(script, *arguments, timeout=120):
    """(exit code, stdout, stderr) of a script in a fresh process."""
    return launch(_run, script, [str(argument) for argument in arguments], timeout=timeout)[0]


def _run(script, arguments):
    sys.argv = [script, *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data set of 200 + 100 of the embedded images."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 200), ("test", 100)):
        load_split(None, split).select(range(count)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def release(pictures, tmp_path_factory):
    """What `pretrain_mae.py` leaves after 30 steps; (folder, what it printed)."""
    folder = tmp_path_factory.mktemp("runs") / "mae"
    code, out, err = run("pretrain_mae.py", "--dataset_name", pictures, "--output_dir", folder, "--max_steps", 30)
    assert code == 0, err
    return folder, out


def test_a_run_leaves_a_whole_release(release):
    folder, printed = release
    for name in (
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "eval_results.json", "images/loss.png",
        "images/reconstructions.png", "pretraining/config.json", "pretraining/model.safetensors", "checkpoints/step_30",
    ):  # fmt: skip
        assert (folder / name).exists(), name
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    results = json.loads((folder / "eval_results.json").read_text())["results"]
    assert list(results) == ["raw_pixels", "random_initialisation", "pretrained"]
    assert "| Pretrained |" in printed and f"{results['pretrained']['knn']:.1f}" in printed


def test_the_card_tells_the_numbers_of_the_run(release, pictures):
    from huggingface_hub import ModelCard

    folder, printed = release
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "eval_results.json").read_text())["results"]["pretrained"]
    assert sorted(result.metric_value for result in card.data.eval_results) == sorted(results.values())
    assert card.data.pipeline_tag == "image-feature-extraction" and "self-supervised-learning" in card.data.tags
    assert str(pictures) not in card.content  # local data is named, its place is not
    assert printed.strip() in card.text and "{{" not in card.text and "30 steps" in card.text
    measured = f"Measured on {pictures.name}; 100 test rows (split test); 200 training rows (split train); 10 classes"
    assert measured in card.text and "| knn | k: 200; temperature: 0.07; similarity: cosine |" in card.text


def run_card(folder, check):
    """The first code of a card as printed, and an assertion after it, in a process that has only transformers."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    run_plain(f"{code}\nassert {check}")


def test_the_code_of_the_card_runs_as_printed(release):
    run_card(release[0], "features.shape == (1, 128)")


def test_results_of_default_runs_are_recorded_for_the_readme(release, tmp_path, monkeypatch):
    """Seed by seed, and of no other runs; here one that is made to look like a default one."""
    from hf_ssl.cli import information

    monkeypatch.setattr(information, "RESULTS", tmp_path)
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    with pytest.raises(InputError, match="is not a default one, it has --dataset_name"):
        script["record"](release[0])
    run = json.loads((release[0] / "run.json").read_text())
    for seed in (2, 0):
        folder = tmp_path / f"seed_{seed}"
        folder.mkdir()
        shutil.copy(release[0] / "eval_results.json", folder)
        run["facts"]["command"], run["arguments"]["seed"] = ["pretrain_mae.py", f"--seed={seed}"], seed
        (folder / "run.json").write_text(json.dumps(run))
        script["record"](folder)
    recorded = information.recorded("mae")
    results = json.loads((release[0] / "eval_results.json").read_text())["results"]
    assert [each["seed"] for each in recorded["runs"]] == [0, 2] and recorded["preset"] == "vit-tiny-28"
    assert recorded["runs"][0]["results"] == results and recorded["runs"][0]["run"]["samples_seen"] == 30 * 128
    assert str(release[0]) not in (tmp_path / "mae.json").read_text()
    knn = f"{results['pretrained']['knn']:.1f}"
    assert f"→ {knn} / {knn}" in information.changes("mae")[0]
    [row] = [line for line in script["zoo_table"]().splitlines() if line.startswith("| [`mae`]")]
    shown = [results[each]["linear_probe"] for each in ("raw_pixels", "random_initialisation", "pretrained")]
    cells = [f"**{each:.1f}**" if each == max(shown) else f"{each:.1f}" for each in shown]
    assert f"| linear probe | {' | '.join(cells)} | " in row
    tables = "<!-- zoo -->\n<!-- /zoo --><!-- labels -->\n<!-- /labels -->"
    page = script["updated"](f"{tables}<!-- recorded:mae -->\nstale<!-- /recorded:mae -->")
    assert f"| Pretrained | {knn} |" in page and "stale" not in page
    assert information.changes("mae")[0] in information.describe_method("mae")


def test_recorded_runs_of_other_conditions_are_dropped(release, tmp_path, monkeypatch, capsys):
    from hf_ssl.cli import information

    monkeypatch.setattr(information, "RESULTS", tmp_path)
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    for seed, rows in ((0, 100), (1, 100), (2, 99)):
        script["record"](default_run(release, tmp_path / str(seed), seed, rows))
        seeds = [each["seed"] for each in information.recorded("mae")["runs"]]
        assert seeds == {0: [0], 1: [0, 1], 2: [2]}[seed]
    assert "mae: the other recorded runs were measured on other rows" in capsys.readouterr().out


def default_run(release, folder, seed, test_rows=100):
    """A release that is made to look like a default run of this seed."""
    shutil.copytree(release[0], folder, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    run, results = (json.loads((folder / name).read_text()) for name in ("run.json", "eval_results.json"))
    run["facts"]["command"] = ["pretrain_mae.py", f"--seed={seed}", "--output_dir", str(folder)]
    run["arguments"]["seed"] = seed
    results["dataset"]["test_rows"] = test_rows
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "eval_results.json").write_text(json.dumps(results))
    return folder


def test_the_card_of_a_recorded_run_is_an_example_in_the_repository(release, tmp_path, monkeypatch):
    from hf_ssl.cli import information

    monkeypatch.setattr(information, "RESULTS", tmp_path)
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    write_example = script["write_example"]
    monkeypatch.setitem(write_example.__globals__, "EXAMPLES", tmp_path / "examples")
    for seed in (1, 0, 2):
        folder = default_run(release, tmp_path / f"seed_{seed}", seed)
        with pytest.raises(InputError, match=f"is not the recorded one of seed {seed}: record it first"):
            write_example(folder)
        script["record"](folder)
        write_example(folder)
    text = (tmp_path / "examples/mae.md").read_text()
    assert "hf-ssl pretrain mae" in text and "--output_dir" not in text and str(tmp_path) not in text
    assert "left with seed 0" in text and str(tmp_path) not in text and 'from_pretrained("outputs/mae")' in text
    shown = re.findall(r"\]\((?!http)([^)]*)\)", text)
    assert shown and all((tmp_path / "examples" / name).is_file() for name in shown), shown
    assert {Path(name).name for name in shown} == {"mae_loss.png", "mae_reconstructions.png"}


def test_the_release_loads_where_hf_ssl_is_not_installed(release):
    folder, _ = release
    program = """
import sys
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
folder = sys.argv[1]
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
assert type(model).__name__ == "ViTModel" and not any(report.values()), report
processor = AutoImageProcessor.from_pretrained(folder)
again = AutoModel.from_pretrained(folder)
for mode, size in (("L", (28, 28)), ("RGB", (300, 200))):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).convert(mode)
    inputs = processor(image, return_tensors="pt")
    output = model(**inputs)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert torch.equal(output.pooler_output, again(**inputs).pooler_output)
    features = pipeline("image-feature-extraction", model=folder, image_processor=processor)(image, return_tensors=True)
    torch.testing.assert_close(features, output.last_hidden_state)
classifier, report = AutoModelForImageClassification.from_pretrained(folder, num_labels=10, output_loading_info=True)
assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}, report
assert classifier(**inputs).logits.shape == (1, 10)
"""
    run_plain(program, folder)


def test_the_whole_model_comes_back(release):
    folder, _ = release
    model, report = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining", output_loading_info=True)
    assert type(model) is hf_ssl.MAEForPreTraining and not any(report.values())
    pixel_values = torch.randn(2, 3, 28, 28)
    encoder = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(
        model.eval().embed(pixel_values), encoder(pixel_values).pooler_output, rtol=0, atol=1e-6
    )
    trained = load_file(folder / "checkpoints/step_30/model.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


WITHOUT_HF_SSL = """
import sys
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, ResNetBackbone, pipeline
folder, trust = sys.argv[1], {"trust_remote_code": True} if sys.argv[2] == "trust" else {}
model, report = AutoModel.from_pretrained(folder, output_loading_info=True, **trust)
assert type(model).__name__ == sys.argv[3] and not any(report.values()), (type(model), report)
image = torch.randint(0, 255, (3, 40, 30), dtype=torch.uint8)
inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
features = model(**inputs).pooler_output
assert features.shape == (1, 16 if not trust else 128, 1, 1)
assert torch.equal(features, AutoModel.from_pretrained(folder, **trust)(**inputs).pooler_output)
classifier, report = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True, **trust)
assert {key.split(".")[0] for key in report["missing_keys"]} == {"classifier"}, report
assert classifier(**inputs).logits.shape == (1, 3)
if not trust:
    maps = ResNetBackbone.from_pretrained(folder, out_indices=[1, 2])(**inputs).feature_maps  # for detectors
    assert [m.shape[1] for m in maps] == [8, 16]
extract = pipeline("image-feature-extraction", model=folder, **trust)
"""


def test_moco_from_any_encoder_leaves_a_native_release(pictures, tmp_path):
    """Begun from a folder with a ResNetModel; the key encoder begins equal; the release loads without hf_ssl."""
    ResNetModel(ResNetConfig(**TINY_RESNET)).save_pretrained(tmp_path / "resnet")
    folder = tmp_path / "moco"
    arguments = ["--dataset_name", pictures, "--image_size", 32, "--per_device_train_batch_size", 32]
    arguments += ["--config_overrides", "queue_size=64", "--backbone", tmp_path / "resnet"]
    code, out, err = run("pretrain_moco.py", *arguments, "--output_dir", folder, "--max_steps", 3)
    assert code == 0 and "| Pretrained |" in out and f"The release is in {folder}" in err, err
    card = (folder / "README.md").read_text()
    assert "images/views.png" in card and (folder / "images/views.png").is_file() and "{{" not in card
    run_plain(WITHOUT_HF_SSL, folder, "plain", "ResNetModel")

    code, _, err = run(
        "pretrain_moco.py",
        *arguments[:-1],
        folder,
        "--learning_rate",
        0,
        "--output_dir",
        tmp_path / "more",
        "--max_steps",
        1,
    )
    assert code == 0, err
    one, other = (load_file(path / "pretraining/model.safetensors") for path in (folder, tmp_path / "more"))
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("projector"))
    code, _, err = run(
        "pretrain_moco.py", *arguments, "--output_dir", tmp_path / "none", "--per_device_train_batch_size", 33
    )
    assert code == 1 and "multiple of batch_norm_group_size=32, found 33" in err and not (tmp_path / "none").exists()


def test_simclr_leaves_its_own_resnet_that_brings_its_code(pictures, tmp_path):
    folder = tmp_path / "simclr"
    arguments = ["--dataset_name", pictures, "--output_dir", folder, "--max_steps", 2, "--eval_protocols", "knn"]
    code, out, err = run("pretrain_simclr.py", *arguments)
    assert code == 0 and "| Pretrained |" in out, err
    run_plain(WITHOUT_HF_SSL, folder, "trust", "SSLResNetModel")
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    # after `import hf_ssl` there is nothing to trust
    assert type(AutoModel.from_pretrained(folder)) is hf_ssl.SSLResNetModel


BERT = ["--max_seq_length", 32, "--vocab_size", 400, "--max_steps", 2, "--per_device_train_batch_size", 8]


def test_bert_leaves_a_native_release_and_goes_on_from_one(documents, tmp_path):
    """From a stream; then words only from its release, whose vocabulary stays; then from anybody's BertForMaskedLM."""
    common = ["--dataset_name", documents, *BERT]
    code, out, err = run("pretrain_bert.py", *common, "--streaming", "--output_dir", tmp_path / "one")
    assert code == 0 and "nsp accuracy" in out, err
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "pretraining"} <= names
    assert "Removed shared tensor" not in err
    run_card(tmp_path / "one", "tokens.shape[::2] == (2, 128)")
    model, report = BertForPreTraining.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not any(report.values()) and model.config.vocab_size == 400
    whole, report = AutoModelForPreTraining.from_pretrained(
        tmp_path / "one", subfolder="pretraining", output_loading_info=True
    )
    assert type(whole) is hf_ssl.BERTForPreTraining and not any(report.values())

    more = ["--learning_rate", 0, "--output_dir", tmp_path / "two", "--backbone", tmp_path / "one"]
    more += ["--config_overrides", "next_sentence_prediction=false"]
    code, out, err = run("pretrain_bert.py", *common, *more)
    assert code == 0 and "nsp accuracy" in out, err
    one, two = (load_file(tmp_path / name / "pretraining/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    words = BertForMaskedLM.from_pretrained(tmp_path / "one")
    words.save_pretrained(tmp_path / "words")
    more[3:6] = [tmp_path / "three", "--backbone", tmp_path / "words"]
    code, _, err = run("pretrain_bert.py", *common, *more, "--tokenizer_name", tmp_path / "one")
    assert code == 0, err
    assert "| tokenizer_name | one |" in (tmp_path / "three/README.md").read_text()
    two, published = (public_run(json.loads((tmp_path / name / "run.json").read_text())) for name in ("two", "three"))
    assert str(tmp_path) not in json.dumps([two, published]) and published["arguments"]["tokenizer_name"] == "one"
    three = load_file(tmp_path / "three/model.safetensors")
    assert all(
        torch.equal(value, three[name]) for name, value in load_file(tmp_path / "words/model.safetensors").items()
    )


CPC_TEXT = ["--vocab_size", 400, "--max_sentence_words", 16, "--max_steps", 3, "--per_device_train_batch_size", 4]


def test_cpc_text_leaves_a_release_that_brings_its_code(documents, tmp_path):
    """From a stream; a run that is taken up keeps its words; one may begin with another's."""
    common = ["--dataset_name", documents, *CPC_TEXT, "--eval_protocols", "next_sentence_retrieval", "--streaming"]
    code, out, err = run("pretrain_cpc_text.py", *common, "--logging_steps", 1, "--output_dir", tmp_path / "one")
    assert code == 0 and "next sentence 1" in out, err
    results = json.loads((tmp_path / "one/eval_results.json").read_text())["results"]
    assert {"random_initialisation", "pretrained"} <= results.keys() and results["pretrained"].keys() >= {
        f"next_sentence_{k}" for k in (1, 2, 3)
    }
    history = json.loads((tmp_path / "one/pretraining/history.json").read_text())
    assert {"nats_1", "nats_2", "nats_3"} <= history[0].keys() and history[0]["nats_1"] == pytest.approx(0, abs=0.1)
    run_card(tmp_path / "one", "features.shape == (2, 256) and len(tokenizer) == model.config.vocab_size == 400")

    again = [
        "--output_dir",
        tmp_path / "one",
        "--resume_from_checkpoint",
        "auto",
        "--max_steps",
        4,
        "--vocab_size",
        99,
    ]
    code, _, err = run("pretrain_cpc_text.py", *common, *again, "--eval_protocols", "none")
    assert code == 0 and "going on from" in err, err
    more = ["--tokenizer_name", tmp_path / "one", "--output_dir", tmp_path / "two", "--eval_protocols", "none"]
    code, _, err = run("pretrain_cpc_text.py", *common, *more)
    assert code == 0, err
    one, two = (AutoModel.from_pretrained(tmp_path / name).config.vocab_size for name in ("one", "two"))
    assert one == two == 400


LOGGED = re.compile(
    r"Generating|network: |Learning a vocabulary|[^:]+: [\d,]+ (images|documents)\b.*(shipped with hf_ssl|from .*)\.$"
)  # progress, and the lines that say what a run reads and trains


def complaints(err):
    """The lines of stderr that are not a run's ordinary log."""
    return [line for line in err.splitlines() if line.strip() and not LOGGED.match(line)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--window_sentences", "3"], "window_sentences must exceed prediction_steps=3, found 3"),
        (["--tokenizer_name", "{tokenizer}"], "is not one of words: expected that of a cpc_text or word2vec release"),
        (["--config_overrides", "backbone_config.kernel_size=2"], "kernel_size must be odd, found 2"),
    ],
)
def test_bad_sentences_are_one_sentence(arguments, message, documents, tmp_path):
    vocabulary = {token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "tokenizer")
    arguments = [argument.format(tokenizer=tmp_path / "tokenizer") for argument in arguments]
    common = ["--dataset_name", documents, *CPC_TEXT, "--output_dir", tmp_path / "run"]
    code, _, err = run("pretrain_cpc_text.py", *common, *arguments)
    lines = complaints(err)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], (code, err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--text_column", "title", "--dataset_name", "{empty}"], "text_column 'title' is not in the data set"),
        (["--dataset_name", "{empty}"], "The corpus has no words to make a vocabulary of"),
        (
            ["--dataset_name", "{empty}", "--tokenizer_name", "{tokenizer}"],
            "Nothing is left of the 2 documents in 'text'",
        ),
        (["--dataset_name", "{numbers}"], "text_column 'text' holds int64 values: expected text"),
        (["--tokenizer_name", "./nowhere"], "tokenizer_name './nowhere' is not a folder or Hub id with a tokenizer"),
        (["--max_seq_length", "513"], "max_seq_length 513 exceeds the backbone's 512 positions"),
        (["--max_seq_length", "4"], "max_seq_length must be at least 5, found 4"),
        (["--config_overrides", "mask_probability=2"], "mask_probability must lie in [0, 1], found 2.0"),
        (["--image_size", "28"], "The argument --image_size is unknown"),
    ],
)
def test_bad_text_is_one_sentence(arguments, message, documents, tmp_path):
    tables = {"empty": {"text": ["", "\n"]}, "numbers": {"text": [1, 2]}}
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    BertTokenizer(
        vocab={token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    ).save_pretrained(tmp_path / "tokenizer")
    names = {name: tmp_path / name for name in ("empty", "numbers", "tokenizer")}
    arguments = [argument.format(**names) for argument in arguments]
    arguments = ["--dataset_name", documents, *BERT, "--output_dir", tmp_path / "run", *arguments]
    code, out, err = run("pretrain_bert.py", *arguments)
    lines = complaints(err)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], (code, err)
    assert not (tmp_path / "run").exists()


def test_training_goes_on_from_a_release(release, pictures, tmp_path):
    folder, _ = release
    code, _, err = run(
        "pretrain_mae.py", "--backbone", folder, "--dataset_name", pictures, "--output_dir", tmp_path / "more", "--max_steps", 2,
        "--learning_rate", 0, "--eval_protocols", "none",
    )  # fmt: skip
    assert code == 0, err
    one, other = (load_file(path / "pretraining/model.safetensors") for path in (folder, tmp_path / "more"))
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    assert str(folder) not in (tmp_path / "more/pretraining/config.json").read_text()


def test_data_without_labels_is_what_pretraining_is_for(pictures, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = load_split(str(pictures), split).remove_columns("label")
        rows.to_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet")
    arguments = ("--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "run", "--max_steps", 2)
    code, _, err = run("pretrain_mae.py", *arguments)
    assert code == 0 and "was not evaluated: No label column was found" in err
    assert (tmp_path / "run/model.safetensors").is_file() and (tmp_path / "run/README.md").is_file()


def test_two_processes_leave_the_release_of_one(pictures, tmp_path):
    """torchrun, as on a machine with several devices; the numbers agree."""
    common = ["--dataset_name", str(pictures), "--max_steps", "10", "--eval_protocols", "knn"]
    code, out, err = run(
        "pretrain_mae.py", *common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 16
    )
    assert code == 0, err
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "scripts/pretrain_mae.py"), *common, "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--per_device_train_batch_size", "8"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 x 2 processes" in done.stderr and done.stdout.count("| Pretrained |") == 1
    one, two = (json.loads((tmp_path / name / "eval_results.json").read_text())["results"] for name in ("one", "two"))
    assert one["raw_pixels"] == two["raw_pixels"]
    assert one["pretrained"]["knn"] == pytest.approx(two["pretrained"]["knn"], abs=2)


def bad_data(folder):
    """Data sets that cannot be used, by name."""
    (folder / "empty").mkdir()
    datasets.Dataset.from_dict({"image": []}).to_parquet(folder / "empty/train-00000-of-00001.parquet")
    (folder / "numbers").mkdir()
    datasets.Dataset.from_dict({"image": [1, 2, 3]}).to_parquet(folder / "numbers/train-00000-of-00001.parquet")
    (folder / "bare").mkdir()
    return folder


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset_name", "./nowhere"], "dataset_name './nowhere' was not found"),
        (["--dataset_name", "{bad}/empty"], "is empty: found 0 rows"),
        (["--dataset_name", "{bad}/bare"], "is a folder without files"),
        (["--dataset_name", "{bad}/numbers"], "image_column 'image' holds int64 values"),
        (
            ["--image_column", "photo"],
            "image_column 'photo' is not in the data set: found the columns ['image', 'label']",
        ),
        (
            ["--config_overrides", "backbone_config.patch_size=5"],
            "image_size must be divisible by patch_size, found image_size=28",
        ),
        (
            ["--config_overrides", "mask_ration=0.5"],
            "config_overrides has no setting 'mask_ration=0.5': did you mean 'mask_ratio'?",
        ),
        (
            ["--per_device_train_batch", "8"],
            "--per_device_train_batch is unknown: did you mean --per_device_train_batch_",
        ),
        (["--config_overrides", "mask_ratio=much"], "mask_ratio: could not convert string to float: 'much'"),
        (["--config_overrides", "mask_ratio.x=1"], "config_overrides has no setting 'mask_ratio.x=1'"),
        (["--mask_ratio", "0.5"], "The argument --mask_ratio is unknown"),
        (["--views", "simclr"], "The argument --views is unknown"),
        (["--backbone", "vit-gigantic"], "backbone 'vit-gigantic' is neither one of"),
        (["--output_dir", "{release}"], "holds another run"),
        (["--resume_from_checkpoint", "./nothing"], "resume_from_checkpoint './nothing' is not a folder"),
        (["--train_split", "dev"], "no readable split 'dev'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, release, tmp_path):
    names = {"bad": bad_data(tmp_path), "release": release[0]}
    arguments = [argument.format(**names) if "{" in argument else argument for argument in arguments]
    before = {path: path.stat().st_mtime_ns for path in release[0].rglob("*")}
    code, out, err = run("pretrain_mae.py", "--output_dir", tmp_path / "run", "--max_steps", 1, *arguments)
    lines = complaints(err)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], (code, err)
    assert not (tmp_path / "run").exists() and before == {
        path: path.stat().st_mtime_ns for path in release[0].rglob("*")
    }
