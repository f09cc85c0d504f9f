"""What the loop offers beside `forward`: each row's number, features of all rows once an epoch, labelled companions."""

import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from processes import launch
from safetensors.torch import load_file
from test_training import after_step, same_weights
from torch import nn

from hf_ssl.data import (
    VIEWS,
    DataError,
    ImageDecoder,
    LabelledCompanions,
    RandomResizedCropAndFlip,
    TrainLoader,
    Views,
    WithLabels,
    image_rows,
    load_split,
)
from hf_ssl.data.views import CenterCrop
from hf_ssl.errors import InputError
from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput
from hf_ssl.methods._memory import write_rows
from hf_ssl.training import TrainingArguments, train

ROWS, STEPS = 120, 60  # of `shards`; at 8 rows a step an epoch has 15


@strict
class RemembersConfig(SSLConfig):
    model_type = "ssl_remembers"

    num_samples: int = 0
    num_clusters: int = 5


class Remembers(SSLModel):
    """A memory of each sample's projection, which it is to find again, and clusters of all features, which it is to name."""

    config: RemembersConfig
    uses_sample_indices = True
    learning_rate_factors = {"classifier": 0.5}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12), nn.Tanh())
        self.classifier = nn.Linear(12, config.num_clusters)
        self.register_buffer("bank", F.normalize(torch.randn(config.num_samples, 12), dim=1))
        self.register_buffer("clusters", torch.zeros(config.num_samples, dtype=torch.int64))
        self.register_buffer("features", torch.zeros(config.num_samples, 12))
        self.register_buffer("epochs", torch.full((8,), -1))  # with which `before_epoch` was called
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def forward(self, pixel_values, sample_indices, **kwargs):
        features = self.embed(pixel_values)
        own = F.normalize(features, dim=1)
        found = F.cross_entropy(own @ self.bank.clone().T / 0.2, sample_indices)  # which changes before backward
        named = F.cross_entropy(self.classifier(features), self.clusters[sample_indices])
        if self.training:
            write_rows(self.bank, sample_indices, F.normalize(self.bank[sample_indices] + own.detach(), dim=1))
        return SSLOutput(loss=found + named, features=features)

    def before_epoch(self, epoch, features):
        """Some rounds of k-means from rows that are drawn anew."""
        assert not self.training and not torch.is_grad_enabled()
        found = features()
        centroids = found[torch.randperm(len(found))[: self.config.num_clusters]]
        for _ in range(3):
            nearest = torch.cdist(found, centroids).argmin(1)
            members = F.one_hot(nearest, len(centroids)).T.float()
            centroids = members @ found / members.sum(1, keepdim=True).clamp(min=1)
        self.clusters.copy_(nearest)
        self.features.copy_(found)
        self.epochs[self.calls] = epoch
        self.calls += 1

    def after_step(self, progress):
        time.sleep(0.01)  # a step is long enough to be killed in it

    def embed(self, pixel_values):
        return self.encoder(pixel_values)


def pretrain(data, output_dir, model_class=Remembers, batch_size=8, num_samples=ROWS, streaming=False, **changes):
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=STEPS, per_device_train_batch_size=batch_size,
        learning_rate=0.3, save_steps=STEPS, logging_steps=10, seed=3, weight_decay=0.0, streaming=streaming,
    )  # fmt: skip
    args = TrainingArguments(**settings | changes)
    rows, column = image_rows(load_split(str(data), streaming=streaming))
    torch.manual_seed(0)
    model = model_class(RemembersConfig(num_samples=num_samples))
    return train(model, rows, ImageDecoder(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5])), args)


def _history(data, output_dir, options):
    return pretrain(data, output_dir, **options).history


def buffers(output_dir, step=STEPS):
    return load_file(Path(output_dir) / f"checkpoints/step_{step}/model.safetensors")


@pytest.fixture(scope="module")
def whole_run(shards, tmp_path_factory):
    """The uninterrupted run of 1 or 2 processes that together take 8 rows a step: (its folder, its history)."""
    runs = {}

    def run(processes):
        if processes not in runs:
            folder = tmp_path_factory.mktemp("whole")
            options = {"batch_size": 8 // processes, "dataloader_num_workers": 1}
            runs[processes] = folder, launch(_history, shards, folder, options, processes=processes)[0]
        return runs[processes]

    return run


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_between_epochs_and_within_one_it_goes_on_bitwise(shards, tmp_path, whole_run, processes):
    """Taken up where an epoch begins (15, 30, 45 steps) clusters are made, in the middle (21, 28 ...) they are not."""
    options = {"batch_size": 8 // processes, "dataloader_num_workers": 1, "resume_from_checkpoint": "auto"}
    for save_steps, killed_after in ((15, 15), (7, 21)):
        killed = launch(
            _history, shards, tmp_path, options | {"save_steps": save_steps}, processes=processes,
            kill_when=after_step(tmp_path, killed_after, 0.0),
        )  # fmt: skip
        assert set(killed) == {-9} and not (tmp_path / f"checkpoints/step_{STEPS}").exists()
    [history, *_] = launch(_history, shards, tmp_path, options, processes=processes)
    folder, expected = whole_run(processes)
    assert same_weights(folder, tmp_path, STEPS) and history == expected
    assert buffers(tmp_path)["epochs"].tolist() == [0, 1, 2, 3, -1, -1, -1, -1]


def test_two_processes_remember_and_cluster_as_one(whole_run):
    (one, history), (two, history_2) = whole_run(1), whole_run(2)
    assert [e["loss"] for e in history_2] == pytest.approx([e["loss"] for e in history], rel=1e-4)
    one, two = buffers(one), buffers(two)
    assert torch.equal(one["clusters"], two["clusters"]) and one["clusters"].unique().numel() > 1
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_features_are_those_of_all_rows_in_their_order(shards, tmp_path, caplog):
    """Of the weights before the step, and without augmentation."""
    caplog.set_level("INFO", logger="hf_ssl")
    model = pretrain(shards, tmp_path, max_steps=1, learning_rate=0.0).model
    assert "learning rate of classifier: x 0.5" in caplog.text
    rows, column = image_rows(load_split(str(shards)))
    decoder = ImageDecoder(column, 3, CenterCrop(16, [0.5], [0.5]))
    images = [decoder.decode(row) for row in rows]
    batch = decoder.view(**decoder.collate(images, torch.arange(ROWS)))
    torch.testing.assert_close(model.features, model.embed(batch["pixel_values"]), rtol=0, atol=1e-6)


def test_an_epoch_begins_with_the_step_that_takes_its_first_row(shards, tmp_path):
    """Batches of 16 span the border of epochs of 120 rows: 0 begins with step 1, 1 with step 8 (rows 112 to 127)."""
    for steps, epochs in ((7, [0]), (8, [0, 1]), (15, [0, 1])):
        model = pretrain(shards, tmp_path / str(steps), batch_size=16, max_steps=steps).model
        assert model.epochs.tolist() == epochs + [-1] * (8 - len(epochs))
    model = pretrain(shards, tmp_path / "all", batch_size=300, max_steps=2).model  # rows 0 to 299, 300 to 599
    assert model.epochs.tolist() == [2, 4, -1, -1, -1, -1, -1, -1]


def test_rows_without_numbers_are_refused_before_training(shards, tmp_path):
    class OnlyIndices(Remembers):
        before_epoch = property()  # none

    class OnlyEpochs(Remembers):
        uses_sample_indices = False

    for model_class in (OnlyIndices, OnlyEpochs):
        with pytest.raises(InputError, match=r"^Only\w+ knows each row by its number, which a stream does not have"):
            pretrain(shards, tmp_path / "run", model_class, streaming=True)
    with pytest.raises(InputError, match="^Remembers was built for num_samples=100, but the data have 120 rows"):
        pretrain(shards, tmp_path / "run", num_samples=100)
    assert not (tmp_path / "run").exists()


def test_what_an_epoch_cannot_begin_with_is_one_sentence(shards, tmp_path):
    class Refuses(Remembers):
        def before_epoch(self, epoch, features):
            raise ValueError("All images are the same.")

    with pytest.raises(InputError, match=r"^All images are the same\.$"):
        pretrain(shards, tmp_path / "run", Refuses)


@strict
class ConsistentConfig(SSLConfig):
    model_type = "ssl_consistent"


class Consistent(SSLModel):
    """Names the labelled images, and is to say the same of two views of the others."""

    config: ConsistentConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12), nn.Tanh(), nn.Linear(12, 10))
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, labelled_pixel_values, labels, **kwargs):
        one, other = self.encoder(pixel_values), self.encoder(pixel_values_2)
        named = F.cross_entropy(self.encoder(labelled_pixel_values), labels)
        return SSLOutput(loss=named + (one.softmax(1) - other.softmax(1)).square().mean(), features=one)

    def after_step(self, progress):
        time.sleep(0.01)


def partly_labelled(data):
    """The rows of `shards`, a tenth of them with a label; the others have -1 or nothing."""
    rows, column = image_rows(load_split(str(data)))
    labels = [label if i % 10 == 0 else (None, -1)[i % 2] for i, label in enumerate(rows["label"])]
    return rows.remove_columns("label").add_column("label", labels), column


def _semi_supervised(data, output_dir, options):
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=40, per_device_train_batch_size=8,
        learning_rate=0.3, logging_steps=10, seed=3, dataloader_num_workers=1,
    )  # fmt: skip
    args = TrainingArguments(**settings | options)
    rows, column = partly_labelled(data)
    decoder = ImageDecoder(column, 3, Views(16, [0.5], [0.5], VIEWS["moco_v2"]))
    weak = ImageDecoder(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    decoder = LabelledCompanions(decoder, rows, "label", weak, every=2)
    torch.manual_seed(0)
    return train(Consistent(ConsistentConfig()), rows, decoder, args).history


def test_labelled_companions_are_the_same_on_two_processes_and_after_a_kill(shards, tmp_path):
    whole = launch(_semi_supervised, shards, tmp_path / "whole", {})[0]
    assert whole[-1]["loss"] < 0.85 * whole[0]["loss"]
    options = {"per_device_train_batch_size": 4}
    two = launch(_semi_supervised, shards, tmp_path / "two", options, processes=2)[0]
    assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in whole], rel=1e-4)
    for name, value in buffers(tmp_path / "whole", 40).items():
        torch.testing.assert_close(buffers(tmp_path / "two", 40)[name], value, rtol=1e-3, atol=1e-4)
    options |= {"save_steps": 1, "resume_from_checkpoint": "auto"}
    moment = after_step(tmp_path / "killed", 9, 0.02)
    killed = launch(_semi_supervised, shards, tmp_path / "killed", options, processes=2, kill_when=moment)
    assert set(killed) == {-9} and not (tmp_path / "killed/checkpoints/step_40").exists()
    resumed = launch(_semi_supervised, shards, tmp_path / "killed", options, processes=2)[0]
    assert same_weights(tmp_path / "two", tmp_path / "killed", 40) and resumed == two


def test_companions_are_drawn_from_the_labelled_rows_alone(shards):
    """Each about as often, with its own label, and another in each epoch."""
    rows, column = partly_labelled(shards)

    class WithIds(ImageDecoder):
        def decode(self, row):
            return super().decode(row), row["id"]

        def collate(self, decoded, sample_seeds):
            images, ids = zip(*decoded, strict=True)
            return super().collate(list(images), sample_seeds) | {"ids": torch.tensor(ids)}

    inner = WithIds(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    batches = iter(TrainLoader(rows, LabelledCompanions(inner, rows, "label"), ROWS, seed=1))
    drawn = [next(batches) for _ in range(10)]
    ids = torch.stack([batch["labelled_ids"][batch["ids"].argsort()] for batch in drawn])  # (epoch, row)
    assert set(ids.unique().tolist()) == set(range(0, ROWS, 10))
    assert ((ids.flatten().bincount()[::10] - 100) ** 2 / 100).sum() < 31  # chi-squared, 11: p = 1e-3
    assert 0.04 < (ids[0] == ids[1]).float().mean() < 0.16
    for batch in drawn:
        expected = [rows[row]["label"] for row in batch["labelled_ids"].tolist()]
        assert batch["labels"].tolist() == expected and batch["labels"].dtype == torch.int64
    whole = TrainLoader(rows, LabelledCompanions(inner, rows, "label", every=4), 24, seed=1)
    part = TrainLoader(rows, LabelledCompanions(inner, rows, "label", every=4), 12, seed=1, process=1, processes=2)
    whole, part = next(iter(whole)), next(iter(part))
    assert whole["labelled_images"].shape[0] == len(whole["labels"]) == 6
    assert torch.equal(whole["labels"][3:], part["labels"])
    assert torch.equal(whole["labelled_images"][3:], part["labelled_images"])


def test_broken_companions_are_replaced_and_rows_tell_their_own_labels(shards):
    rows, column = partly_labelled(shards)

    class HalfBroken(ImageDecoder):
        def decode(self, row):
            if row["id"] % 20 == 0:
                raise ValueError("broken on purpose")
            return super().decode(row)

    decoder = ImageDecoder(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    companions = LabelledCompanions(decoder, rows, "label", HalfBroken(column, 3, decoder.view))
    labels = next(iter(TrainLoader(rows, companions, ROWS, seed=1)))["labels"]
    whole = {rows[row]["label"] for row in range(10, ROWS, 20)}
    assert set(labels.tolist()) == whole
    batch = next(iter(TrainLoader(rows, WithLabels(decoder, "label"), ROWS, seed=1, sample_indices=True)))
    expected = [-1 if label is None else label for label in rows["label"]]
    assert batch["labels"].tolist() == [expected[row] for row in batch["sample_indices"].tolist()]
    assert batch["labels"].eq(-1).sum() == ROWS - 12


def test_labels_that_cannot_be_are_named(shards):
    rows, column = partly_labelled(shards)
    decoder = ImageDecoder(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    with pytest.raises(DataError, match="^label_column 'label' labels none of 9 rows"):
        LabelledCompanions(decoder, rows.select(range(1, 10)), "label")
    with pytest.raises(DataError, match="^label_column 'name' is not in the data set"):
        LabelledCompanions(decoder, rows, "name")
    with pytest.raises(DataError, match="^label_column 'name' holds 'x': expected class numbers"):
        LabelledCompanions(decoder, rows.add_column("name", ["x"] * ROWS), "name")
    with pytest.raises(DataError, match="^The labelled rows are a stream"):
        LabelledCompanions(decoder, rows.to_iterable_dataset(), "label")
    batches = TrainLoader(rows, LabelledCompanions(decoder, rows, "label", every=3), 8, seed=0, num_workers=1)
    with pytest.raises(DataError, match="^A process's batch of 8 has a labelled row for every 3 samples"):
        next(iter(batches))
