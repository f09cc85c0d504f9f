"""Few labels: which are drawn, what a semi-supervised run makes of them, what it leaves, and what it says to bad input."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Image
from methods.tester import TINY_RESNET
from processes import launch
from safetensors.torch import load_file
from test_scripts import pictures, run, run_card  # noqa: F401
from test_training import after_step, same_weights
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from hf_ssl.cli import last_view, one_view
from hf_ssl.data import VIEWS, DataError, ImageDecoder, LabelledCompanions, Views, image_rows, load_split
from hf_ssl.data.labels import class_numbers, draw_labels, wrong_labels
from hf_ssl.data.pixels import cut_out, move
from hf_ssl.data.rand_augment import rand_augment
from hf_ssl.errors import InputError
from hf_ssl.methods import METHODS
from hf_ssl.training import train
from hf_ssl.training.arguments import LabelArguments

FEW = ["--max_steps", 6, "--per_device_train_batch_size", 8]
HALF = [*FEW, "--unlabelled_per_label", 2]


def column(values, names=None):
    rows = Dataset.from_dict({"label": values})
    return rows.cast_column("label", ClassLabel(names=names)) if names else rows


def test_labels_are_names_or_numbers_and_may_be_missing():
    numbers, names, found = class_numbers(column(["dog", None, "cat", "dog"]))
    assert numbers.tolist() == [1, -1, 0, 1] and names == ["cat", "dog"] and found == "label"
    numbers, names, _ = class_numbers(column([7, -1, 3, None, 7]))
    assert numbers.tolist() == [1, -1, 0, -1, 1] and names == ["3", "7"]
    numbers, names, _ = class_numbers(column([1, 0, -1, 1], ["a", "b"]))
    assert numbers.tolist() == [1, 0, -1, 1] and names == ["a", "b"]


@pytest.mark.parametrize(
    "rows, message",
    [
        (column([None, -1, None]), "^label_column 'label' labels none of 3 rows: expected names or numbers"),
        (column([0, 2, 0], ["a", "b", "c"]), "labels no row of 1 of its 3 classes, such as 'b'"),
        (column(["a", None]), "names one class, 'a': expected at least two"),
        (column([0.5, 1.0]), "^label_column 'label' holds 0.5: expected names or numbers of classes"),
        (Dataset.from_dict({"pixels": [1]}), "No label column was found among"),
        (column([0, 1]).to_iterable_dataset(), "a stream does not number: leave out --streaming"),
    ],
)
def test_labels_that_cannot_be_used_are_one_sentence(rows, message):
    with pytest.raises(DataError, match=message) as error:
        class_numbers(rows)
    assert str(error.value).count(". ") == 0


def test_each_class_gets_as_many_labels():
    """As far as it has so many rows; the rest is dealt out at random; the seed alone decides."""
    numbers = np.array([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 40)
    drawn = draw_labels(numbers, 9, seed=0)
    assert np.bincount(numbers[drawn]).tolist() == [3, 3, 3] and (np.diff(drawn) > 0).all()
    assert np.bincount(numbers[draw_labels(numbers, 21, 0)]).tolist() == [9, 9, 3]
    assert np.bincount(numbers[draw_labels(numbers, 83, 0)]).tolist() == [50, 30, 3]
    one_more = {tuple(np.bincount(numbers[draw_labels(numbers, 7, seed)])) for seed in range(20)}
    assert one_more == {(3, 2, 2), (2, 3, 2), (2, 2, 3)}
    assert np.array_equal(draw_labels(numbers, 9, 0), drawn) and not np.array_equal(draw_labels(numbers, 9, 1), drawn)
    counts = np.zeros(len(numbers))
    for seed in range(300):
        counts[draw_labels(numbers, 9, seed)] += 1
    assert counts[numbers < 0].sum() == 0 and abs(counts[:50] - 18).max() < 20  # 300 x 3 / 50, five deviations
    with pytest.raises(DataError, match="^labels=2 is fewer than the 3 classes: expected at least one of each"):
        draw_labels(numbers, 2, 0)
    with pytest.raises(DataError, match="^labels=84 is more than the 83 rows that have a label"):
        draw_labels(numbers, 84, 0)


def test_wrong_labels_are_any_class():
    numbers = np.arange(10_000) % 10
    noisy = wrong_labels(numbers, 0.5, seed=0)
    assert (noisy != numbers).mean() == pytest.approx(0.45, abs=0.02)  # one in ten is right by chance
    assert np.array_equal(wrong_labels(numbers, 0.0, 0), numbers) and set(noisy) == set(range(10))
    assert np.array_equal(wrong_labels(numbers, 0.5, 0), noisy) and not np.array_equal(
        wrong_labels(numbers, 0.5, 1), noisy
    )


def test_an_image_is_moved_and_mirrored_at_its_borders():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="reflect")
    for down, right in ((1, -2), (-1, 0), (2, 2), (0, 0)):
        moved = move(image, torch.tensor([[down, right]]))
        assert torch.equal(moved, padded[:, :, 2 - down : 6 - down, 2 - right : 7 - right])


def test_a_grey_square_is_cut_out():
    images = torch.zeros(2, 1, 8, 8)
    cut = cut_out(images, torch.tensor([[0.5, 0.5], [0.0, 0.0]]), 0.5)
    assert cut[0, 0].sum() == 0.5 * 16 and cut[0, 0, 2:6, 2:6].min() == 0.5
    assert cut[1, 0].sum() == 0.5 * 4 and cut[1, 0, :2, :2].min() == 0.5  # what lies outside is cut off
    assert images.sum() == 0


def test_rand_augment_belongs_to_the_sample():
    """The same for a seed in any batch; each image has its own; the generator of the run is left alone."""
    images = torch.rand(1, 3, 12, 12).expand(16, -1, -1, -1)
    seeds = torch.arange(16)
    state = torch.get_rng_state()
    changed = rand_augment(images, seeds)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rand_augment(images[5:6], seeds[5:6])[0], changed[5])
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 10
    assert changed.min() >= 0 and changed.max() <= 1
    assert rand_augment(images[:, :1], seeds).shape == (16, 1, 12, 12)
    with pytest.raises(InputError, match="^RandAugment changes grey and colour images: found 2 channels"):
        rand_augment(images[:, :2], seeds)


def test_weak_views_keep_what_strong_ones_change():
    weak, strong = VIEWS["weak_and_strong"]
    images = torch.randint(0, 256, (8, 1, 3, 16, 16), dtype=torch.uint8)
    views = Views(16, [0.0], [1.0], (weak, strong))
    seeds = torch.arange(8)
    boxes = views.boxes(seeds, torch.full((8,), 16), torch.full((8,), 16))
    assert boxes.eq(torch.tensor([0, 0, 16, 16])).all()  # the whole image
    made = views(images, seeds, boxes)
    originals = images[:, 0].float() / 255
    for image, view in zip(originals, made["pixel_values"], strict=True):
        values = set(image.flatten().tolist())  # a weak view has no value that the image lacks
        found = torch.tensor([min(abs(value - other) for other in values) for value in view.flatten().tolist()])
        assert found.max() < 1e-5
    assert (made["pixel_values_2"] == 0.5).float().mean() > 0.1  # the square
    assert not torch.equal(made["pixel_values"], originals)


def test_of_weak_and_strong_views_the_first_is_weak_and_the_last_strong():
    args = LabelArguments(output_dir="unused", views="weak_and_strong", max_steps=1)
    processor = SimpleNamespace(image_mean=[0.5], image_std=[0.5])
    weak, strong = (view(args, 16, processor) for view in (one_view, last_view))
    assert [len(views.recipes) for views in (weak, strong)] == [1, 1]
    images, seeds = torch.full((8, 1, 3, 16, 16), 100, dtype=torch.uint8), torch.arange(8)
    boxes = torch.tensor([0, 0, 16, 16]).expand(8, 1, 4)
    assert len(weak(images, seeds, boxes)["pixel_values"].unique()) == 1  # nothing is darkened or cut out
    assert len(strong(images, seeds, boxes)["pixel_values"].unique()) > 4


def _train(data, output_dir, method, options):
    """24 steps of a tiny model, 12 rows a step of all processes, so that an epoch of 120 rows has 10; its history."""
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=24, per_device_train_batch_size=12, learning_rate=0.05,
        save_steps=1, logging_steps=5, seed=3, optim="adamw", dataloader_num_workers=1,
    )  # fmt: skip
    args = LabelArguments(**settings | options)
    rows, column = image_rows(load_split(str(data)))
    decoder = ImageDecoder(column, 3, Views(16, [0.5], [0.5], VIEWS["weak_and_strong"]))
    decoder = LabelledCompanions(decoder, rows.select(range(0, 120, 4)), "label")
    config_class = METHODS[method].config_class
    settings = {"align_classes": True} if hasattr(config_class, "align_classes") else {}
    config = config_class(backbone_config=TINY_RESNET | dict(num_labels=10), **settings)
    if METHODS[method].uses_sample_indices:
        config.num_samples = len(rows)
    torch.manual_seed(args.seed)
    return train(METHODS[method](config), rows, decoder, args).history


@pytest.mark.parametrize(
    "method, processes",
    [
        ("mixmatch", 1),
        ("mixmatch", 2),
        ("temporal_ensembling", 1),
        ("temporal_ensembling", 2),
        ("mean_teacher", 1),
        ("vat", 1),
    ],
)
def test_a_killed_run_goes_on_bitwise(shards, tmp_path, method, processes):
    """Ensembles of all rows, averages and frequencies of classes too: killed within an epoch, and by chance at its border."""
    options = {"per_device_train_batch_size": 12 // processes}
    whole = launch(_train, shards, tmp_path / "whole", method, options, processes=processes)[0]
    options |= {"resume_from_checkpoint": "auto"}
    moment = after_step(tmp_path / "killed", 13, 0.02)
    killed = launch(_train, shards, tmp_path / "killed", method, options, processes=processes, kill_when=moment)
    assert set(killed) == {-9} and not (tmp_path / "killed/checkpoints/step_24").exists()
    resumed = launch(_train, shards, tmp_path / "killed", method, options, processes=processes)[0]
    assert same_weights(tmp_path / "whole", tmp_path / "killed", 24) and resumed == whole


@pytest.fixture(scope="module")
def classifier(pictures, tmp_path_factory):  # noqa: F811
    """What `pretrain_mixmatch.py` leaves after six steps with 20 labels."""
    folder = tmp_path_factory.mktemp("runs") / "mixmatch"
    code, out, err = run(
        "pretrain_mixmatch.py", "--dataset_name", pictures, "--labels", 20, "--output_dir", folder, *FEW
    )
    assert code == 0, err
    return folder, out, err


def test_a_run_leaves_a_classifier_beside_its_baselines(classifier):
    folder, printed, log = classifier
    results = json.loads((folder / "eval_results.json").read_text())
    assert list(results["results"]) == ["labels_alone", "pretrained", "all_labels"]
    assert all(set(row) == {"accuracy"} for row in results["results"].values())
    assert (
        "| The labels alone |" in printed
        and "| With unlabelled images |" in printed
        and "labels: 20 of 200 rows of 'label', in 10 classes" in log
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["9"] == "Ankle boot" and config["architectures"] == ["SSLResNetForImageClassification"]
    assert json.loads((folder / "run.json").read_text())["arguments"]["labels"] == 20
    baselines = [load_file(folder / f"baselines/{row}/model.safetensors") for row in ("labels_alone", "all_labels")]
    assert any(not torch.equal(one, baselines[1][name]) for name, one in baselines[0].items())


def test_the_release_is_the_average_and_the_card_runs(classifier):
    folder = classifier[0]
    whole = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining").eval()
    released, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    grey = torch.randn(4, 1, 28, 28)
    colour = grey.expand(-1, 3, -1, -1)
    pixels = grey if whole.config.backbone_config.num_channels == 1 else colour
    torch.testing.assert_close(released.eval()(colour).logits, whole.average(pixels).logits, rtol=1e-4, atol=1e-4)
    run_card(folder, "len(classifier(image)) == 5")
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "{{" not in card and "20 labels" in card


def test_baselines_take_the_same_steps_from_the_same_weights(classifier):
    folder = classifier[0]
    runs = [json.loads((folder / f"{place}run.json").read_text()) for place in ("", "baselines/labels_alone/")]
    assert runs[0]["facts"]["steps"] == runs[1]["facts"]["steps"] == 6
    own = ("learning_rate", "optim", "weight_decay", "per_device_train_batch_size", "labels", "seed", "views")
    assert all(runs[0]["arguments"][name] == runs[1]["arguments"][name] for name in own)
    assert runs[1]["config"]["entropy_weight"] == 0 and runs[1]["config"]["model_type"] == "ssl_entropy_minimization"


def test_a_run_goes_on_from_another_methods_encoder(classifier, pictures, tmp_path):  # noqa: F811
    """The encoder of a release begins a classifier, and its classes are those of the data."""
    flags = ["--dataset_name", pictures, "--output_dir", tmp_path / "run", "--no_train_baselines", *FEW]
    code, _, err = run(
        "pretrain_entropy_minimization.py", "--backbone", classifier[0], "--label_fraction", 0.2, *flags
    )
    assert code == 0, err
    assert "labels: 40 of 200 rows" in err
    assert not (tmp_path / "run/baselines").exists()


def test_unlabelled_rows_and_a_labelled_data_set_of_their_own(tmp_path):
    """Rows without a label are unlabelled; labelled images may be elsewhere."""
    rows = load_split(None).select(range(120)).cast_column("image", Image(decode=False))
    names = rows.features["label"].names
    labels = [names[label] if i % 2 else None for i, label in enumerate(rows["label"])]
    partly = rows.remove_columns("label").add_column("label", labels).cast_column("image", Image())
    partly.to_parquet(tmp_path / "partly" / "train.parquet")
    rows.remove_columns("label").cast_column("image", Image()).to_parquet(tmp_path / "bare" / "train.parquet")
    common = ["--eval_protocols", "none", "--no_train_baselines", *HALF]
    code, _, err = run(
        "pretrain_entropy_minimization.py",
        "--dataset_name",
        tmp_path / "partly",
        "--output_dir",
        tmp_path / "one",
        *common,
    )
    assert code == 0 and "labels: 60 of 120 rows of 'label', in 10 classes" in err, err
    own = ["--labelled_dataset_name", tmp_path / "partly", "--labels", 30]
    code, _, err = run(
        "pretrain_entropy_minimization.py",
        "--dataset_name",
        tmp_path / "bare",
        "--output_dir",
        tmp_path / "two",
        *own,
        *common,
    )
    assert code == 0 and "labels: 30 of 120 rows" in err, err
    assert json.loads((tmp_path / "two/config.json").read_text())["id2label"]["0"] == sorted(names)[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--labels", 5], "labels=5 is fewer than the 10 classes: expected at least one of each"),
        (["--labels", 201], "labels=201 is more than the 200 rows that have a label"),
        (["--labels", 20, "--label_fraction", 0.1], "labels=20 and label_fraction=0.1 say the same: give one of them"),
        (["--label_fraction", 0], r"label_fraction must be above 0 and at most 1, found 0\.0"),
        (["--label_noise", 1.5], r"label_noise must lie in \[0, 1\], found 1\.5"),
        (["--unlabelled_per_label", 3], "per_device_train_batch_size 8 must be a multiple of unlabelled_per_label 3"),
        (["--streaming"], "Labels are drawn from rows, which a stream does not number: leave out --streaming"),
        (["--label_column", "class"], "label_column 'class' is not in the data set"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, message, pictures, tmp_path):  # noqa: F811
    arguments = ["--dataset_name", pictures, "--output_dir", tmp_path / "run", *HALF, *flags]
    code, _, err = run("pretrain_entropy_minimization.py", *arguments)
    assert code == 1 and re.search(message, err), err
    assert "Traceback" not in err and not (tmp_path / "run").exists()


def test_mixmatch_wants_a_label_for_each_image(pictures, tmp_path):  # noqa: F811
    arguments = ["--dataset_name", pictures, "--output_dir", tmp_path / "run", *FEW, "--unlabelled_per_label", 2]
    code, _, err = run("pretrain_mixmatch.py", *arguments)
    assert (
        code == 1 and "as many labelled images as unlabelled ones: expected unlabelled_per_label=1, found 2" in err
    ), err


def test_accuracy_is_of_classifiers_whose_classes_are_the_datas(classifier, pictures, tmp_path):  # noqa: F811
    """Classes are compared by name: in another order the accuracy is the same; an encoder is refused."""
    folder = classifier[0]
    expected = json.loads((folder / "eval_results.json").read_text())["results"]["pretrained"]["accuracy"]
    turned = AutoModelForImageClassification.from_pretrained(folder)
    head = turned.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    names = list(turned.config.id2label.values())[::-1]
    turned.config.id2label, turned.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    turned.save_pretrained(tmp_path / "turned")
    (tmp_path / "turned/preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    flags = ["--dataset_name", pictures, "--protocols", "accuracy", "--no_baselines"]
    code, out, err = run("evaluate.py", tmp_path / "turned", *flags, "--output_dir", tmp_path / "out")
    assert code == 0, err
    found = json.loads((tmp_path / "out/eval_results.json").read_text())["results"]
    assert found == {"pretrained": {"accuracy": expected}}

    turned.config.id2label = {i: f"class {i}" for i in range(10)}
    turned.config.label2id = {f"class {i}": i for i in range(10)}
    turned.save_pretrained(tmp_path / "turned")
    code, _, err = run("evaluate.py", tmp_path / "turned", *flags)
    assert code == 1 and "knows none of the data's classes: found T - shirt / top" in err, err
    turned.base_model.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder/preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    code, _, err = run("evaluate.py", tmp_path / "encoder", *flags)
    assert code == 1 and "expected an image classifier" in err, err
