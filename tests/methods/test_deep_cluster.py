import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, MethodTester, sines
from processes import launch, on_pair
from safetensors.torch import load_file
from test_training import after_step, same_weights

from hf_ssl import DeepClusterConfig, DeepClusterForPreTraining
from hf_ssl.data import ImageDecoder, RandomResizedCropAndFlip, image_rows, load_split
from hf_ssl.methods._distributed import from_first
from hf_ssl.methods.deep_cluster import k_means, whiten
from hf_ssl.training import TrainingArguments, train

ROWS = 120  # of `shards`


def blobs(*sizes, width=8, spread=0.05):
    """Rows around random centres, one after the other; which they belong to."""
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = torch.randn(len(sizes), width, generator=generator)
    return centres[owners] + spread * torch.randn(len(owners), width, generator=generator), owners


def lloyd(points, clusters, iterations, seed):
    """k-means that leaves a cluster without rows where it is."""
    points = points.numpy().astype(np.float64)
    centroids = points[np.random.default_rng(seed).permutation(len(points))[:clusters]]
    for _ in range(iterations):
        nearest = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
        for cluster in np.unique(nearest):
            centroids[cluster] = points[nearest == cluster].mean(0)
    return ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)


class TestDeepCluster(MethodTester):
    model_class = DeepClusterForPreTraining
    config = dict(backbone_config=TINY_RESNET, num_samples=16, num_clusters=4)
    chance_loss = math.log(4)
    tolerance = 2e-5

    def batch(self, seed=0):
        """Eight of sixteen rows, each of which is always the same picture of waves."""
        rows = torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:8]
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        waves = torch.stack([(y * (0.2 + row % 4 / 3) + x * (0.1 + row // 4 / 3)).sin() for row in rows])
        return {"pixel_values": waves[:, None].repeat(1, 3, 1, 1), "sample_indices": rows}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def clustered(self, points, seed=0, **changes):
        """A model whose rows have the given features, after a clustering."""
        config = self.config | dict(num_samples=len(points), **changes)
        model = DeepClusterForPreTraining(DeepClusterConfig(**config))
        torch.manual_seed(seed)
        model.eval().requires_grad_(False).before_epoch(0, lambda: points)
        return model

    def test_loss_equals_a_slow_mean_over_clusters(self):
        """By a slow formula: each row counts by the inverse size of its cluster in the data."""
        model, batch = self.model().eval(), self.batch()
        model.assignments.copy_(torch.tensor([0] * 10 + [1, 1, 2, 2, 2, 3]))
        model.sizes.copy_(torch.tensor([10.0, 2, 3, 1]))
        output = model(**batch)
        total = weight = 0.0
        for row, logits in zip(batch["sample_indices"], output.logits.detach().double().numpy(), strict=True):
            cluster = model.assignments[row]
            total += (np.log(np.exp(logits).sum()) - logits[cluster]) / model.sizes[cluster].item()
            weight += 1 / model.sizes[cluster].item()
        assert output.loss.item() == pytest.approx(total / weight, abs=1e-5)

    def test_one_giant_cluster_is_no_way_out(self):
        """To name it always is as good as nothing: of a plain mean over rows it would be nearly all."""
        model = DeepClusterForPreTraining(DeepClusterConfig(**self.config | dict(num_samples=1000))).eval()
        model.sizes.copy_(torch.tensor([985.0, 5, 5, 5]))
        model.assignments.copy_(torch.arange(4).repeat_interleave(model.sizes.long()))
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(8 * F.one_hot(torch.tensor(0), 4))
        pixels = torch.zeros(1000, 3, 4, 4)
        output = model(pixels, torch.arange(1000))
        plain = F.cross_entropy(output.logits, model.assignments)
        assert plain < 0.2 < math.log(4) < output.loss
        assert output.metrics["chance"].item() == pytest.approx(0.985)

    def test_empty_clusters_are_filled(self):
        """Most rows are alike, so that most clusters begin at one place, where all but one of them lose their rows."""
        points, _ = blobs(900, 20, 20, 20, 20, 20, spread=0.0)
        points[:900] += 1e-3 * torch.randn(900, 8, generator=torch.Generator().manual_seed(1))
        points[:450] = points[0]
        found, distances = k_means(points, 40, 20, seed=0)
        assert len(np.unique(lloyd(points, 40, 20, seed=0))) <= 24 < 32 <= len(found.unique())
        assert all(len(found[at : at + 20].unique()) == 1 for at in range(900, 1000, 20))
        assert found[900::20].unique().numel() == 5 and distances[900:].max() < 1e-6

    def test_k_means_is_that_of_a_slow_formula(self):
        """Each row is at its nearest centroid, each centroid the mean of its rows; another seed draws other rows."""
        points, owners = blobs(*[30] * 6)
        found, distances = k_means(points, 6, 20, seed=4)
        means = torch.stack([points[found == cluster].mean(0) for cluster in range(6)])
        squared = torch.cdist(points.double(), means.double()).square()
        assert torch.equal(squared.argmin(1), found)
        torch.testing.assert_close(squared.amin(1).float(), distances, rtol=1e-3, atol=1e-5)
        again, threads = k_means(points, 6, 20, seed=4), torch.get_num_threads()
        torch.set_num_threads(2)
        other_threads = k_means(points, 6, 20, seed=4)
        torch.set_num_threads(threads)
        for same in (again, other_threads):
            assert torch.equal(same[0], found) and torch.equal(same[1], distances)
        assert not torch.equal(k_means(points, 6, 20, seed=5)[0], found)

    def test_whitening(self):
        """The components of the largest variance, each of variance 1 before rows become unit vectors; what is constant is
        left out."""
        points = torch.randn(500, 6) @ torch.randn(6, 6) + 3
        points = torch.cat([points, torch.ones(500, 2)], dim=1)
        centred = points.double().numpy() - points.double().numpy().mean(0)
        for components in (3, 20):
            variances, axes = np.linalg.eigh(np.cov(centred.T, bias=True))
            kept = slice(-min(components, 6), None)
            expected = centred @ axes[:, kept] / np.sqrt(variances[kept])
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            found = whiten(points, components).double().numpy()
            # signs and order of axes do not matter: cosines of rows do
            np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-4)
        assert whiten(torch.ones(5, 3), 2).eq(0).all()

    def test_each_epoch_has_new_clusters_and_a_new_head(self):
        points, owners = blobs(40, 40, 40, 40)
        model = self.clustered(points)
        assert model.agreement == 0 and model.sizes.tolist() == [40.0] * 4
        assert all(len(model.assignments[owners == owner].unique()) == 1 for owner in range(4))
        weight = model.head.weight.clone()
        assert weight.std().item() == pytest.approx(0.01, rel=0.4) and model.head.bias.eq(0).all()
        torch.manual_seed(5)
        drawn = model.before_epoch(1, lambda: points)
        assert {id(each) for each in drawn} == {id(each) for each in model.head.parameters()}
        assert model.agreement == pytest.approx(1) and not torch.equal(model.head.weight, weight)
        torch.manual_seed(6)
        model.before_epoch(2, lambda: points[torch.randperm(160)])
        assert model.agreement < 0.2

    def test_clusters_may_stay_for_some_epochs(self):
        model = self.clustered(blobs(8, 8, 8, 8)[0], reassign_epochs=3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for epoch in (1, 2):
            assert model.before_epoch(epoch, None) is None
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_nearest_rows(self):
        points, owners = blobs(50, 30, 10)
        model = self.clustered(points, num_clusters=3, principal_components=2)
        found = model.nearest_rows(5, 4)
        assert [size for size, _ in found] == [50, 30, 10]
        for owner, (_, rows) in enumerate(found):
            assert owners[rows].eq(owner).all()
            nearest = model.distances.masked_fill(owners != owner, torch.inf).sort().values[:4]
            assert torch.equal(model.distances[rows], nearest)

    def test_two_processes_have_the_clusters_of_one(self):
        expected = _clusters()
        for found in on_pair(_clusters):
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], value) for name, value in expected.items())

    def test_sobel_hides_colours(self):
        model, pixels = (
            DeepClusterForPreTraining(DeepClusterConfig(**self.config, sobel=True)).eval(),
            self.batch()["pixel_values"],
        )
        pixels = pixels * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
        torch.testing.assert_close(model.embed(pixels.roll(1, dims=1)), model.embed(pixels))
        assert model.export_encoder().config.model_type == "ssl_sobel"

    def test_what_cannot_be_clustered_is_refused(self):
        with pytest.raises(ValueError, match="^num_clusters must be at most the number of rows, 3, found 4"):
            DeepClusterForPreTraining(DeepClusterConfig(**self.config | dict(num_samples=3))).check_batch(8, 1)
        with pytest.raises(StrictDataclassError, match="num_clusters must be at least 2, found 1"):
            DeepClusterConfig(num_clusters=1)
        with pytest.raises(StrictDataclassError, match="head_rate must be positive, found 0.0"):
            DeepClusterConfig(head_rate=0.0)


def test_clusters_are_those_of_the_authors_code():
    """Recorded from preprocess_features and run_kmeans of clustering.py, commit 2d1927e, with faiss 1.15.1's index of the CPU
    for that of a GPU, and its seed. Components of the same sign or not: cosines of rows are compared."""
    features = sines(0.1, 60, 6) + 0.5 * sines(0.2, 60, 6).square() + sines(0.9, 6, 6).repeat_interleave(10, 0)
    reduced = whiten(features, 4)
    cosines = reduced @ reduced.T
    assert cosines[0, 1:6].tolist() == pytest.approx(
        [-0.05421712, -0.04719577, 0.50379199, 0.46330041, 0.61818582], abs=1e-5
    )
    assert cosines[7, 30:34].tolist() == pytest.approx([-0.66852790, 0.85408568, 0.02679834, -0.84471452], abs=1e-5)
    assert (cosines * sines(0.5, 60, 60)).sum().item() == pytest.approx(6.57018089, abs=1e-3)  # of 3600
    clusters, distances = k_means(reduced, 6, 20, seed=684)
    assert distances.sum().item() == pytest.approx(21.331120, abs=1e-4)
    assert "".join(map(str, clusters.tolist())) == "503524135015201350152413521324135045541352132013524324135243"


class Given(DeepClusterForPreTraining):
    """The features are given in place of images."""

    def embed(self, pixel_values):
        return pixel_values


def test_loss_is_that_of_the_authors_sampling():
    """How often each of 16 rows is drawn in 20,000 epochs, recorded from UnifLabelSampler of util.py, commit 2d1927e: the mean
    loss over these draws is ours over all rows, to the noise of the draws."""
    draws = [7933, 8031, 7930, 7889, 7973, 8080, 8096, 7934, 7940, 8071, 39899, 40148, 26705, 26725, 26581, 80065]
    config = dict(backbone_config=TINY_RESNET, num_samples=16, num_clusters=5)
    model = Given(DeepClusterConfig(**config)).eval()
    model.assignments.copy_(torch.tensor([0] * 10 + [1, 1, 2, 2, 2, 3]))
    model.sizes.copy_(torch.tensor([10.0, 2, 3, 1, 0]))
    with torch.no_grad():
        model.head.weight.copy_(sines(0.1, 5, 16) / 4)
    output = model(sines(0.2, 16, 16), torch.arange(16))
    losses = F.cross_entropy(output.logits, model.assignments, reduction="none").detach()
    drawn = np.average(losses, weights=draws)
    assert output.loss.item() == pytest.approx(drawn, rel=2e-3)
    assert abs(losses.mean().item() - drawn) > 0.1 * drawn  # of all rows alike it would be another


def _clusters():
    model = TestDeepCluster().clustered(blobs(*[20] * 8)[0], num_clusters=12)
    for buffer in model.buffers():
        buffer.copy_(from_first(buffer))  # as the loop does
    return {name: model.get_buffer(name).numpy() for name in ("assignments", "distances", "sizes")} | {
        "head": model.head.weight.numpy()
    }


class Slow(DeepClusterForPreTraining):
    def after_step(self, progress):
        time.sleep(0.02)  # a step is long enough to be killed in it


def _run(data, output_dir, options, model_class=Slow):
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=45, per_device_train_batch_size=8, optim="sgd",
        learning_rate=0.3, save_steps=45, logging_steps=15, seed=3,
    )  # fmt: skip
    rows, column = image_rows(load_split(str(data)))
    decoder = ImageDecoder(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    torch.manual_seed(0)
    model = model_class(DeepClusterConfig(**TestDeepCluster.config | dict(num_samples=ROWS)))
    return train(model, rows, decoder, TrainingArguments(**settings | options))


def _history(data, output_dir, options):
    return _run(data, output_dir, options).history


@pytest.fixture(scope="module")
def whole_run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, launch(_history, shards, folder, {})[0]


def test_killed_between_epochs_and_within_one_it_goes_on_bitwise(shards, tmp_path, whole_run):
    """Clusters, head and the momentum of the head: at the border (15, 30), where all are made anew, and after it."""
    folder, expected = whole_run
    assert [entry["nmi_with_previous"] > 0 for entry in expected] == [False, True, True]
    options = {"resume_from_checkpoint": "auto"}
    for save_steps, killed_after in ((15, 15), (7, 21)):
        changes = options | {"save_steps": save_steps}
        moment = after_step(tmp_path, killed_after, 0.0)
        assert set(launch(_history, shards, tmp_path, changes, kill_when=moment)) == {-9}
        assert not (tmp_path / "checkpoints/step_45").exists()
    [history] = launch(_history, shards, tmp_path, options)
    assert same_weights(folder, tmp_path, 45) and history == expected


def test_two_processes_train_as_one(shards, tmp_path, whole_run):
    folder, expected = whole_run
    history = launch(_history, shards, tmp_path, {"per_device_train_batch_size": 4}, processes=2)[0]
    assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in expected], rel=1e-3)
    one, two = (load_file(path / "checkpoints/step_45/model.safetensors") for path in (folder, tmp_path))
    assert torch.equal(one["assignments"], two["assignments"])


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_new_head_has_no_momentum_of_the_old_one(shards, tmp_path, optim):
    """After the first step of the second epoch the optimizer knows of the head its last gradient alone."""
    gradients = {}

    class Watched(DeepClusterForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            for name, parameter in self.named_parameters():
                parameter.register_hook(lambda gradient, name=name: gradients.update({name: gradient.clone()}))

    options = dict(max_steps=16, optim=optim, learning_rate=0.01, weight_decay=0.0)
    _run(shards, tmp_path, options, Watched)
    saved = load_file(tmp_path / "checkpoints/step_16/optimizer.safetensors")
    kind, factor = ("momentum_buffer", 1.0) if optim == "sgd" else ("exp_avg", 0.1)
    momenta = [value for name, value in saved.items() if name.endswith(f".{kind}")]

    def is_last_gradient(name):
        same = [each for each in momenta if each.shape == gradients[name].shape]
        return any(torch.allclose(each, factor * gradients[name], rtol=1e-4, atol=1e-9) for each in same)

    assert is_last_gradient("head.weight") and is_last_gradient("head.bias")
    assert not is_last_gradient("backbone.embedder.embedder.convolution.weight")
    if optim == "adamw":
        assert sorted({value.item() for name, value in saved.items() if name.endswith(".step")}) == [1, 16]
