"""Frozen-feature evaluation: the protocols against slow formulas, and encoders whose features could go wrong."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

import hf_ssl.evaluation
from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.data.images import image_processor
from hf_ssl.errors import InputError
from hf_ssl.evaluation import (
    LabelledRows,
    WordVectors,
    balanced_subset,
    checksum,
    evaluate_images,
    extract,
    fine_tune,
    frozen,
    knn_predict,
    linear_probe,
    load_encoder,
    low_label,
    pictures,
    pixel_encoder,
    plots,
    random_encoder,
    results_table,
)
from hf_ssl.evaluation.encoders.images import labelled_images
from hf_ssl.evaluation.features import take_samples
from hf_ssl.evaluation.protocols.clusters import cluster_agreement
from hf_ssl.evaluation.protocols.fine_tune import LAYER_DECAY, Classifier, parameter_groups
from hf_ssl.evaluation.protocols.linear_probe import _train, standardiser
from hf_ssl.evaluation.protocols.logistic_regression import cross_validated_accuracy
from hf_ssl.evaluation.results import evaluations

ROOT = Path(__file__).parents[1]
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
METRICS = Path(hf_ssl.evaluation.__file__).parent / "metrics"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """What a run leaves: native root, image processor, pretraining/. Its weights are the method's draw of seed 3."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(3)
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = MAEForPreTraining(MAEConfig(backbone_config={"model_type": "vit", **VIT}, **decoder))
    model.export_encoder().save_pretrained(folder)
    model.save_pretrained(folder / "pretraining")
    image_processor(28).save_pretrained(folder)
    return folder


def noisy_images(rows, seed=0, size=20):
    """A data set of 3 classes: coloured noise around one of three levels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    pixels = torch.randint(0, 90, (rows, size, size, 3), generator=generator) + 60 * labels[:, None, None, None]
    columns = {"image": list(pixels.to(torch.uint8).numpy()), "label": labels.tolist()}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "mid", "light"])}
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", 90), ("validation", 30)):
        noisy_images(rows, seed=len(split)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def noisy_classes(rows, seed, width=20, classes=4):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return centres[labels] + 2.0 * torch.randn(rows, width, generator=generator), labels


# protocols


def naive_knn(train, labels, test, k, temperature, classes):
    """All pairs at once, one test row at a time."""
    train, test = train / train.norm(dim=1, keepdim=True), test / test.norm(dim=1, keepdim=True)
    predicted = []
    for similarity in test @ train.T:
        votes = [0.0] * classes
        for row in similarity.argsort(descending=True)[:k].tolist():
            votes[labels[row]] += torch.exp(similarity[row] / temperature).item()
        predicted.append(max(range(classes), key=votes.__getitem__))
    return torch.tensor(predicted)


@pytest.mark.parametrize(("train_chunk", "test_chunk"), [(1000, 1000), (7, 5), (150, 40), (149, 39), (1, 1)])
def test_knn_is_the_naive_formula_whatever_the_chunks(train_chunk, test_chunk):
    train, labels = noisy_classes(150, 0)
    test, _ = noisy_classes(40, 1)
    predicted = knn_predict(train, labels, test, k=20, classes=4, train_chunk=train_chunk, test_chunk=test_chunk)
    assert torch.equal(predicted, naive_knn(train, labels, test, 20, 0.07, 4))


def test_knn_takes_all_rows_if_there_are_fewer_than_k():
    train, labels = noisy_classes(30, 0)
    test, _ = noisy_classes(25, 1)
    assert torch.equal(knn_predict(train, labels, test, k=200), naive_knn(train, labels, test, 30, 0.07, 4))


def test_probe_is_as_good_as_converged_logistic_regression():
    (train, labels), (test, test_labels) = noisy_classes(1500, 0), noisy_classes(4000, 1)
    probe = linear_probe(train * 100 + 7, labels, test * 100 + 7, test_labels)  # standardising undoes scale and shift
    standardise = standardiser(train, "cpu")
    reference = LogisticRegression(C=1 / (len(train) * max(probe.weight_decay, 1e-6)), max_iter=1000)
    reference.fit(standardise(train).numpy(), labels.numpy())
    assert probe.accuracy == pytest.approx(reference.score(standardise(test).numpy(), test_labels.numpy()), abs=0.01)
    again = linear_probe(train * 100 + 7, labels, test * 100 + 7, test_labels)
    assert torch.equal(again.predictions, probe.predictions)


def test_candidates_trained_at_once_are_torchs_sgd_one_by_one():
    """Nesterov momentum, decay of the weight but not of the bias, and the cosine schedule, each as in torch.optim."""
    train, labels = noisy_classes(100, 0)
    rows, identity = torch.arange(100), lambda batch: batch
    candidates = [(0.1, 0.0), (0.01, 0.01)]
    steps = 1000  # of one full batch
    weight, bias = _train(train, labels, rows, 4, candidates, identity, 1, torch.Generator().manual_seed(0), "cpu")
    for number, (rate, decay) in enumerate(candidates):
        layer = torch.nn.Linear(20, 4)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=rate * 100 / 256, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(train), labels).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(weight[:, number].T, layer.weight.detach(), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(bias[number], layer.bias.detach(), atol=2e-4, rtol=1e-3)


def test_clusters_agree_with_the_labels_they_were_made_of():
    """1 where clusters are classes, whatever the features' lengths; little where features know nothing of them; by a slow
    formula in between."""
    labels = torch.arange(3).repeat_interleave(40)
    centres = torch.nn.functional.one_hot(labels, 5).float()
    lengths = torch.rand(120, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    assert cluster_agreement(lengths * centres, labels, 3) == pytest.approx(1)
    noise = torch.randn(120, 5, generator=torch.Generator().manual_seed(1))
    assert cluster_agreement(noise, labels, 3) < 0.1
    mixed = torch.cat([centres[:40], centres[:20], centres[60:]])  # half of the second class lies in the first
    joint = np.array([[40, 0, 0], [20, 20, 0], [0, 0, 40]]) / 120
    outer = np.outer(joint.sum(1), joint.sum(0))
    information = (joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum()
    entropies = [-(p * np.log(p)).sum() for p in (joint.sum(0), joint.sum(1))]
    assert cluster_agreement(mixed, labels, 3) == pytest.approx(information / np.sqrt(np.prod(entropies)))
    assert cluster_agreement(noise[:2], labels[:2], 3) == 0


def test_balanced_subsets_have_equal_classes_and_at_least_one_of_each():
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    assert labels[balanced_subset(labels, 0.03, 0)].bincount().tolist() == [10, 10, 10]
    assert labels[balanced_subset(labels, 1e-5, 0)].tolist() == [0, 1, 2]
    assert not torch.equal(balanced_subset(labels, 0.03, 0), balanced_subset(labels, 0.03, 1))


# encoders


def test_release_gives_the_methods_embedding(release):
    encoder = load_encoder(release)
    pixels = encoder.preprocess([torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8) for _ in range(4)])
    assert pixels.shape == (4, 3, 28, 28) and encoder.feature == "pooler_output"
    with torch.no_grad():
        expected = MAEForPreTraining.from_pretrained(release / "pretraining").eval().embed(pixels)
        torch.testing.assert_close(encoder(pixels), expected)
        torch.testing.assert_close(load_encoder(release / "pretraining")(pixels), expected)


def test_random_encoder_is_drawn_by_the_method(release):
    encoder = load_encoder(release)
    state = torch.random.get_rng_state()
    assert checksum(random_encoder(encoder, 3).model) == checksum(encoder.model)  # the release is the draw of seed 3
    assert checksum(random_encoder(encoder, 4).model) != checksum(encoder.model)
    assert torch.equal(torch.random.get_rng_state(), state)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_checkpoint_without_pooler_gives_its_cls_token(tmp_path, caplog):
    model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False).eval()
    folder = saved(model, tmp_path)
    encoders = [load_encoder(folder) for _ in range(2)]
    assert encoders[0].feature == "cls token of last_hidden_state"
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        first, second = (encoder(pixels) for encoder in encoders)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, model(pixel_values=pixels).last_hidden_state[:, 0])
    assert "has no image processor" in caplog.text and "has no pooler weights" in caplog.text


def test_vit_mae_hides_nothing_and_is_deterministic(tmp_path):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    folder = saved(ViTMAEForPreTraining(ViTMAEConfig(**VIT, **decoder, decoder_intermediate_size=32)), tmp_path)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        first, second = (load_encoder(folder)(pixels) for _ in range(2))
        again = random_encoder(load_encoder(folder), 0)(pixels)
    assert torch.equal(first, second) and first.shape == again.shape == (2, 32)


def test_resnet_is_flattened_and_keeps_its_batch_statistics(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    encoder = load_encoder(saved(ResNetModel(config), tmp_path))
    with frozen(encoder.model), torch.no_grad():
        assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 16)


def test_clip_gives_image_features(tmp_path):
    tower = {key: VIT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    text = {**tower, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**tower, "image_size": 28, "patch_size": 7}, projection_dim=12)
    )
    encoder = load_encoder(saved(model, tmp_path))
    with torch.no_grad():
        assert encoder.feature == "image features" and encoder(torch.randn(2, 3, 28, 28)).shape == (2, 12)
    groups = parameter_groups(Classifier(encoder, 12, 3))
    blocks = {group["scale"] for group in groups}
    assert blocks == {1.0, LAYER_DECAY, LAYER_DECAY**2, LAYER_DECAY**3}


def test_what_is_not_an_image_encoder_is_said_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="nowhere' is not a folder that exists"):
        load_encoder(tmp_path / "nowhere")
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    with pytest.raises(InputError, match="not an image encoder: its model_type 'bert' reads input_ids"):
        load_encoder(saved(BertModel(bert), tmp_path))


def test_raw_pixels_are_pooled_and_grey_ones_kept_once(release):
    encoder, pixels = load_encoder(release), torch.randn(2, 3, 64, 48)
    grey = torch.full((3, 8, 8), 9, dtype=torch.uint8)
    red = torch.stack([grey[0], grey[0] * 0, grey[0] * 0])
    assert pixel_encoder(encoder, [grey])(pixels).shape == (2, 32 * 32)
    assert pixel_encoder(encoder, [grey, red])(pixels).shape == (2, 3 * 32 * 32)
    pooled = torch.nn.functional.avg_pool2d(torch.ones(2, 3, 64, 64).cumsum(2), 2).flatten(1)
    assert torch.equal(pixel_encoder(encoder, [red])(torch.ones(2, 3, 64, 64).cumsum(2)), pooled)


# extraction


def test_broken_images_are_left_out_and_counted(release, caplog):
    data = noisy_images(20).cast_column("image", datasets.Image(decode=False))
    rows = [
        row | {"image": {"bytes": b"broken", "path": None}} if i in (0, 7, 19) else row for i, row in enumerate(data)
    ]
    data = datasets.Dataset.from_list(rows, features=data.features)
    encoder = load_encoder(release)
    found = extract(encoder, data, batch_size=8)
    assert found.skipped == 3 and found.rows.tolist() == [i for i in range(20) if i not in (0, 7, 19)]
    assert (
        found.labels.tolist() == [i % 3 for i in found.rows.tolist()]
        and "3 images could not be decoded" in caplog.text
    )
    stream = extract(encoder, data.to_iterable_dataset(), batch_size=8)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], stream[:3], strict=True))


def test_a_stream_longer_than_the_first_table(release):
    encoder, data = load_encoder(release), noisy_images(70)
    whole, stream = extract(encoder, data, batch_size=1), extract(encoder, data.to_iterable_dataset(), batch_size=1)
    assert torch.equal(whole.features, stream.features) and torch.equal(stream.rows, torch.arange(70))


def test_samples_are_drawn_from_the_whole_data():
    data = noisy_images(90).sort("label")  # the first rows would be one class
    few = take_samples(data, 30, seed=0)
    assert set(few["label"]) == {0, 1, 2} and few["label"] == take_samples(data, 30, seed=0)["label"]
    assert len(list(take_samples(data.to_iterable_dataset(), 30, seed=0))) == 30


def test_features_that_are_not_finite_are_left_out_counted_or_refused(release, dataset_folder, tmp_path, caplog):
    """One such row among many brings a probe to chance."""
    train, labels = noisy_classes(60, 0)
    for what in (float("nan"), float("inf")):
        bad = train.clone()
        bad[7, 3] = what
        for one, other in ((bad, train), (train, bad)):
            for protocol in (
                lambda a, b: linear_probe(a, labels, b, labels),
                lambda a, b: knn_predict(a, labels, b),
                lambda a, b: low_label(a, labels, b, labels),
            ):
                with pytest.raises(
                    InputError, match=r"1 of 60 rows of the (training|test) features are not finite \(row 7\)"
                ):
                    protocol(one, other)
        with pytest.raises(InputError, match=r"training features are not finite \(row 7\)"):
            cross_validated_accuracy(bad, labels)

    encoder, data = load_encoder(release), noisy_images(20)
    limit = sorted(extract(encoder, data).features[:, 0].tolist())[-3]

    class Overflowing(type(encoder)):
        def __call__(self, inputs):
            features = super().__call__(inputs)
            return features.where(features[:, :1] <= limit, torch.inf)

    overflowing = Overflowing(**{field.name: getattr(encoder, field.name) for field in fields(encoder)})
    found = extract(overflowing, data, batch_size=8)
    whole = extract(encoder, data)
    assert found.not_finite == 2 and torch.equal(found.rows, whole.rows[whole.features[:, 0] <= limit])
    torch.testing.assert_close(found.features, whole.features[found.rows], atol=1e-6, rtol=1e-6)
    left_out = sorted(set(range(20)) - set(found.rows.tolist()))
    assert (
        f"2 images were left out, since their features are not finite: rows {left_out[0]}, {left_out[1]}"
        in caplog.text
    )
    limit = -torch.inf
    with pytest.raises(InputError, match="gives features that are not finite for each of the 20 rows"):
        extract(overflowing, data)

    model = ViTModel.from_pretrained(release)
    model.pooler.dense.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(
        InputError, match=r"broken' has values that are not finite in the weight 'pooler.dense.weight'"
    ):
        evaluate_images(tmp_path / "broken", str(dataset_folder), protocols=["knn"], baselines=False)


def test_a_backbone_that_changes_is_noticed(release):
    encoder = load_encoder(release)
    with pytest.raises(AssertionError, match="ViTModel changed"), frozen(encoder.model):
        encoder.model.pooler.dense.bias.data[0] += 1e-6


def test_two_processes_give_the_rows_of_one(release, tmp_path):
    noisy_images(53).to_parquet(tmp_path / "train.parquet")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\n"
        "from hf_ssl.data import load_split\n"
        "from hf_ssl.evaluation import extract, load_encoder\n"
        "from hf_ssl.evaluation.processes import process_state\n"
        "state = process_state()\n"
        "torch.set_num_threads(1)\n"
        "for streaming in (False, True):\n"
        "    data = load_split(sys.argv[2], streaming=streaming)\n"
        "    found = extract(load_encoder(sys.argv[1]), data, batch_size=8)\n"
        "    if state.is_main_process:\n"
        "        torch.save(found[:3], f'{sys.argv[3]}_{streaming}_{state.num_processes}.pt')\n"
        "    else:\n"
        "        assert len(found.features) == 0\n"
        "state.destroy_process_group()\n"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [str(program), str(release), str(tmp_path / "train.parquet"), str(tmp_path / "found")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(launcher + arguments, env=environment, check=True, capture_output=True, timeout=300)
    one = extract(load_encoder(release), noisy_images(53), batch_size=8)
    for streaming in (False, True):
        two = torch.load(f"{tmp_path / 'found'}_{streaming}_2.pt")
        torch.testing.assert_close(two[0], one.features, atol=1e-6, rtol=1e-6)
        assert torch.equal(two[1], one.labels) and torch.equal(two[2], torch.arange(53))


# metrics and the whole


def test_metrics_load_offline_and_equal_the_functions():
    import evaluate

    (train, labels), (test, test_labels) = noisy_classes(200, 0), noisy_classes(60, 1)
    knn = evaluate.load(str(METRICS / "knn_accuracy.py"))
    probe = evaluate.load(str(METRICS / "linear_probe_accuracy.py"))
    inputs = {"predictions": test.tolist(), "references": test_labels.tolist()}
    training = {"train_features": train, "train_labels": labels}
    both = evaluate.combine([knn, probe]).compute(**inputs, **training)
    predicted = knn_predict(train, labels, test)
    assert both["knn_accuracy"] == (predicted == test_labels).float().mean().item()
    assert both["linear_probe_accuracy"] == linear_probe(train, labels, test, test_labels).accuracy


def test_fine_tuning_learns_and_leaves_the_encoder_alone(release):
    encoder = load_encoder(release)
    train, test = (LabelledRows(*labelled_images(noisy_images(rows), "image", "label", 3)) for rows in (60, 30))
    settings = {"epochs": 30, "batch_size": 20, "min_steps": 0}
    with frozen(encoder.model):
        accuracy = fine_tune(encoder, train, test, 3, **settings)
    assert accuracy > 0.6 and accuracy == fine_tune(encoder, train, test, 3, **settings)


def test_evaluate_images_writes_results_pictures_and_table(release, dataset_folder, tmp_path):
    protocols = ["knn", "linear_probe", "neighbours", "tsne"]
    results = evaluate_images(release, str(dataset_folder), protocols=protocols, seed=3, output_dir=tmp_path)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == json.loads(json.dumps(results))
    assert results["dataset"]["test_split"] == "validation" and results["dataset"]["classes"] == 3
    assert results["results"]["random_initialisation"] == results["results"]["pretrained"]  # the release is that draw
    assert set(results["results"]["raw_pixels"]) == {"knn", "linear_probe"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in results["pictures"])
    assert results_table(results).splitlines()[0] == "| | knn | linear probe |"
    assert results_table(results).splitlines()[2].startswith("| Raw pixels | ")


def test_results_are_kept_by_data_rows_and_settings(release, dataset_folder, tmp_path, caplog):
    """Numbers complete those of the same rows and settings; a sample, other data and other settings stand beside them, and
    their pictures too."""
    out, file = tmp_path / "out", tmp_path / "out/eval_results.json"
    how = {"output_dir": out, "baselines": False}

    def run(*protocols, model=release, data=dataset_folder, **more):
        return evaluate_images(model, str(data), protocols=protocols, **how | more)

    def kept():
        """(data, rows, columns, pictures) of each evaluation."""
        return [
            (
                Path(each["dataset"]["name"]).name,
                each["settings"]["max_samples"],
                list(each["results"]["pretrained"]),
                each["pictures"],
            )
            for each in evaluations(file)
        ]

    run("knn", "neighbours", max_samples=20)
    assert "all 20 training rows vote, which is no more than its k=200 neighbours" in caplog.text
    sample = evaluations(file)[0]
    run("knn")  # the whole comes before the sample that was first
    moved = tmp_path / "moved"
    shutil.copytree(release, moved)
    results = run("logistic_regression", "neighbours", model=moved)  # the same weights
    assert set(results["results"]["pretrained"]) == {"knn", "logistic_regression"}
    noisy_images(30, seed=9).to_parquet(tmp_path / "other/train.parquet")
    run("knn", data=tmp_path / "other", test_split="train")
    whole = (dataset_folder.name, None, ["knn", "logistic_regression"], ["images/neighbours_2.png"])
    few = (dataset_folder.name, 20, ["knn"], ["images/neighbours.png"])
    assert kept() == [whole, few, ("other", None, ["knn"], [])]
    assert evaluations(file)[1] == sample
    run("knn", seed=1)
    written = json.loads(file.read_text())
    written["settings"]["knn"]["k"] = 12345
    file.write_text(json.dumps(written))
    run("knn")  # with another k than the first one had
    assert [entry[2] for entry in kept()] == [whole[2], ["knn"], ["knn"], ["knn"], ["knn"]]
    assert not list(out.glob(".drawn*"))


def test_a_dollar_in_a_name_is_a_letter_and_no_picture_costs_the_numbers(tmp_path, caplog):
    features, labels = torch.randn(12, 1, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    names, grey = ["$\\frac{$", "a$b_{$"], [torch.zeros(1, 4, 4, dtype=torch.uint8)] * 2
    words = WordVectors(
        [f"$w_{{{i}$" for i in range(9)], torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    )
    drawings = {
        "tsne": lambda path: plots.save_tsne(path, features, labels, names),
        "neighbours": lambda path: pictures.save_neighbours(
            path, grey, labels[:2], [grey, grey], labels[:4].view(2, 2), names
        ),
        "word_map": lambda path: plots.save_word_map(path, words),
    }
    plots.draw_all(tmp_path, drawings)
    assert {path.stem for path in (tmp_path / "images").iterdir()} == set(drawings) and not caplog.records
    plots.draw_all(tmp_path, {"one": lambda path: plots.save_tsne(path, features[:1], labels[:1], names)})
    assert "The picture 'one' could not be drawn: t-SNE needs at least 3 rows, found 1." in caplog.text


def test_bad_requests_are_said_in_one_sentence(release, dataset_folder):
    with pytest.raises(InputError, match="Protocol 'svm' is unknown: expected some of knn, linear_probe"):
        evaluate_images(release, protocols=["knn", "svm"])
    with pytest.raises(InputError, match="'tsne' draws a picture: give output_dir"):
        evaluate_images(release, protocols=["tsne"])
    script = [
        sys.executable,
        str(ROOT / "scripts" / "evaluate.py"),
        str(release),
        "--dataset_name",
        str(dataset_folder),
    ]
    arguments = ["--test_split", "exam", "--output_dir", str(dataset_folder / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(script + arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: ") and "exam" in run.stderr
