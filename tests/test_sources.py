"""The two parts that an evaluation reads: labels that become classes, rows held out, and what is said of a bad split."""

import json
import logging
import re

import datasets
import numpy as np
import pytest
import torch
from methods.test_mae import TINY_MAE
from test_views import VIEW

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.cli.images import image_data
from hf_ssl.data import DataError, image_rows, load_split
from hf_ssl.data.holdout import hold_out
from hf_ssl.data.loading import say_once
from hf_ssl.errors import InputError
from hf_ssl.evaluation.features import Features
from hf_ssl.evaluation.sources import Source, numbered_classes, warn_of_parts
from hf_ssl.hub import check_run
from hf_ssl.training.arguments import ImageArguments


@pytest.fixture(autouse=True)
def messages(caplog):
    say_once.cache_clear()
    caplog.set_level(logging.INFO)
    return caplog


LABELS = {  # type, labels of the two parts -> (their numbers, names)
    "strings": ("string", ["dog", "cat"], ["cat", "emu"], [1, 0], [0, 2], ["cat", "dog", "emu"]),
    "large strings and a null": ("large_string", ["dog", None, "cat"], ["cat"], [1, 0], [0], ["cat", "dog"]),
    "from 0 on": ("int64", [2, 0], [1, 0], [2, 0], [1, 0], None),
    "gaps": ("int64", [1000, 0], [7, 0], [2, 0], [1, 0], ["0", "7", "1000"]),
    "hashes": ("int64", [2**62 + 1, 2**62], [2**62], [1, 0], [0], [str(2**62), str(2**62 + 1)]),
    "numbers and a null": ("int64", [1, None, 0], [1], [1, 0], [1], None),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("case", LABELS)
def test_labels_of_every_kind_become_classes(case, streaming, tmp_path, messages):
    kind, train, test, train_numbers, test_numbers, names = LABELS[case]
    parts = []
    for split, values in (("train", train), ("test", test)):
        features = datasets.Features({"label": datasets.Value(kind), "image": datasets.Image()})
        rows = {"label": values, "image": [{"bytes": b"not decoded", "path": None}] * len(values)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        parts.append(load_split(str(tmp_path), split, streaming=streaming))
    *parts, found = numbered_classes(*parts, "label")
    assert found == names
    for part, numbers in zip(parts, (train_numbers, test_numbers), strict=True):
        assert isinstance(part.features["image"], datasets.Image)
        part = part.cast_column("image", datasets.Image(decode=False))
        assert [row["label"] for row in part] == numbers and all(
            row["image"]["bytes"] == b"not decoded" for row in part
        )
    assert ("have no 'label' and are left out" in messages.text) == (None in train and not streaming)


def test_streamed_json_lines_are_numbered_too(tmp_path):
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[1]) + "\n")
    source = Source("text", str(tmp_path), streaming=True)
    train, test, names, column = source.labelled_rows()
    assert [row["label"] for row in train] == [0, 1] * 3 and next(iter(test)) == {"text": "1", "label": 1}
    assert names == ["a", "b"] and column == "label"


def test_secret_labels_and_measures_stay_as_they_are():
    for values in ([-1, -1], [0.5, 2.0]):
        data = datasets.Dataset.from_dict({"label": values})
        assert numbered_classes(data, data, "label") == (data, data, None)


def sorted_rows(classes=5, each=20):
    return datasets.Dataset.from_dict(
        {
            "label": np.repeat(np.arange(classes), each),
            "person": np.arange(classes * each) // 4,
            "id": range(classes * each),
        }
    )


def test_rows_are_held_out_at_random_and_alike_for_each_label():
    data = sorted_rows()
    train, test = hold_out(data, 0.2)
    assert sorted(train["id"][:] + test["id"][:]) == list(range(100)) and len(test) == 20
    assert np.bincount(test["label"]).tolist() == [4] * 5
    assert test["id"][:] == hold_out(data, 0.2)[1]["id"][:] != hold_out(data, 0.2, seed=1)[1]["id"][:]
    names = data.cast_column("label", datasets.Value("string"))
    assert np.unique(hold_out(names, 0.2)[1]["label"], return_counts=True)[1].tolist() == [4] * 5
    assert len(hold_out(data.remove_columns("label"), 0.2)[1]) == 20


def test_groups_are_held_out_whole():
    train, test = hold_out(sorted_rows(), 0.2, group_column="person")
    assert not set(train["person"]) & set(test["person"]) and np.bincount(test["label"]).tolist() == [4] * 5
    uneven = sorted_rows(2, 50).map(lambda row: {"person": int(row["id"] ** 0.5)})
    train, test = hold_out(uneven, 0.3, group_column="person")
    assert not set(train["person"]) & set(test["person"]) and 20 < len(test) < 40 and set(test["label"]) == {0, 1}


def test_small_classes_give_their_part_together_and_single_rows_are_trained_on():
    data = datasets.Dataset.from_dict({"label": [*range(20), *range(20), 98, 99]})
    train, test = hold_out(data, 0.25)
    assert len(test) == 10 and set(test["label"]) <= set(train["label"])


def test_a_fraction_that_cannot_be_held_out_is_refused():
    data = sorted_rows()
    for fraction in (0, 1, -0.2, float("nan")):
        with pytest.raises(DataError, match="test_fraction must lie between 0 and 1, found"):
            hold_out(data, fraction)
    with pytest.raises(DataError, match="leaves nothing to test on"):
        hold_out(data.select([0, 50]), 0.2)
    assert len(hold_out(data.select([0, 20, 40, 60, 80]), 0.2)[1]) == 1  # labels that tell each row from all others
    with pytest.raises(DataError, match="group_column 'town' is not in the data set"):
        hold_out(data, 0.2, group_column="town")
    source = Source("images", streaming=True)
    with pytest.raises(InputError, match="leave out streaming"):
        source.hold_out(0.2, None, None)
    with pytest.raises(InputError, match="group_column 'person' .* give that too"):
        source.hold_out(None, "person", None)


def test_a_part_of_the_training_split_stands_for_the_test(tmp_path):
    sorted_rows().to_parquet(tmp_path / "train.parquet")
    source = Source("images", str(tmp_path))
    with pytest.raises(DataError, match="no readable split 'test': found train. .*test_fraction 0.2"):
        source.test_rows()
    source.hold_out(0.2, "person", None)
    train, test, _, column = source.labelled_rows()
    assert len(train) == 80 and len(test) == 20 and column == "label"
    assert source.description["test_fraction"] == 0.2 and source.description["group_column"] == "person"


def features(rows, labels):
    return Features(rows, torch.tensor(labels), torch.arange(len(rows)), 0)


def test_classes_without_training_rows_and_shared_rows_are_told(messages):
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    warn_of_parts(features(rows[:20], [0, 1] * 10), features(rows[20:], [1, 0] * 10))
    warn_of_parts(features(torch.ones(20, 8), [0] * 20), features(torch.ones(20, 8), [0] * 20))  # tells nothing
    assert not messages.text
    warn_of_parts(features(rows[:20], [0] * 20), features(rows[20:], [0, 2] * 10), ["ant", "bee", "cat"])
    assert re.search(r"10 of 20 test rows are of 1 classes that no training row has \(cat\)", messages.text)
    warn_of_parts(features(rows[:20], [0] * 20), features(rows[10:30] + 1e-7, [0] * 20))
    assert re.search("(9|10) of 20 test rows are training rows too", messages.text)


@pytest.mark.parametrize(
    "columns, options, said",
    [
        (["image", "label"], {}, "no readable split 'test': found train. .*test_fraction 0.2"),
        (["image"], {"test_fraction": 0.5}, "No label column was found"),
        (["image", "label"], {"test_fraction": 0.5}, None),
        (["image"], {"eval_protocols": "none"}, None),
        (["image", "label"], {"test_split": "dev"}, InputError),
        (["image", "label"], {"test_fraction": 0.5, "label_column": "kind"}, InputError),
    ],
)
def test_what_the_evaluation_will_lack_is_said_before_the_training(columns, options, said, tmp_path, messages):
    load_split(None, "train[:40]").select_columns(columns).to_parquet(tmp_path / "train.parquet")
    args = ImageArguments(output_dir=str(tmp_path / "run"), dataset_name=str(tmp_path), **options)
    model = MAEForPreTraining(MAEConfig(**TINY_MAE))
    if said is InputError:
        with pytest.raises(InputError, match="no readable split 'dev'|label_column 'kind' is not in the data set"):
            check_run(model, args)
        return
    check_run(model, args)
    assert re.search(said, messages.text) if said else "without" not in messages.text


def test_rows_held_out_are_not_trained_on_and_what_is_read_is_said(tmp_path, messages):
    photos = tmp_path / "photos"
    load_split(None, "train[:20]").to_parquet(photos / "train.parquet")
    args = ImageArguments(dataset_name=str(photos), test_fraction=0.25, seed=3)
    rows, _ = image_data(args, 1, VIEW)
    source = Source("images", str(photos), seed=3)
    source.hold_out(0.25, None, None)
    held_out = image_rows(source.test_rows())[0]
    train, test = ({row["image"]["bytes"] for row in part} for part in (rows, held_out))
    assert len(rows) == len(train) == 16 and len(test) == 4 and not train & test  # four classes have one row
    said = "photos: 16 images in 10 classes, 0.25 of all held out for the test, the first 28 x 28 px"
    assert f"{said}, from a folder." in messages.text
    messages.clear()
    image_data(ImageArguments(), 1, VIEW)
    assert "The embedded images: 10,000 images in 10 classes, the first 28 x 28 px" in messages.text


def test_numbers_in_one_part_and_their_names_in_the_other_are_the_same_classes():
    train, test = (datasets.Dataset.from_dict({"label": values}) for values in ([0, 7], ["7", "0"]))
    *parts, names = numbered_classes(train, test, "label")
    assert names == ["0", "7"] and [part["label"][:] for part in parts] == [[0, 1], [1, 0]]
