import itertools

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_instance_discrimination import TestInstanceDiscrimination as Instances
from methods.tester import TINY_RESNET, MethodTester, on_vectors, sines
from processes import on_pair
from torch.nn.functional import normalize

from hf_ssl import NATConfig, NATForPreTraining
from hf_ssl.methods._distributed import own_part

TINY = dict(backbone_config=TINY_RESNET, num_samples=16, projection_size=12)


class TestNAT(MethodTester):
    model_class = NATForPreTraining
    config = TINY
    chance_loss = 256 * 2.0
    tolerance = 2e-5
    batch, inputs, projections = Instances.batch, Instances.inputs, Instances.queries

    def in_training(self, model):
        """With the statistics of evaluation."""
        model.eval().training = True
        return model

    def test_loss_equals_a_slow_formula(self):
        """The sum over a batch of 256 is 256 times the mean; nothing is exchanged in evaluation."""
        model, batch = self.model().eval(), self.batch()
        features, targets = self.projections(model, batch["pixel_values"]), model.targets.double().numpy()
        squares = [((f - targets[row]) ** 2).sum() for f, row in zip(features, batch["sample_indices"], strict=True)]
        output = model(**batch)
        assert output.loss.item() == pytest.approx(256 * np.mean(squares), rel=1e-5)
        assert output.metrics["distance"].item() == pytest.approx(np.mean(squares), rel=1e-5)
        assert output.metrics["chance"] == 2 and output.metrics["exchanged"] == 0
        np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, rtol=1e-5)

    def test_each_batch_exchanges_its_targets_for_the_best_and_learns_them_at_once(self):
        """Of all 6! exchanges within a batch of six rows, over two batches, the second of which takes up what the first
        left."""
        model = self.in_training(self.model())
        held = list(range(16))
        for step in range(2):
            batch = {name: value[:6] for name, value in self.batch(step).items()}
            rows, features = batch["sample_indices"].tolist(), self.projections(model, batch["pixel_values"])
            targets = model.targets.double().numpy()
            own = [held[row] for row in rows]
            best = max(itertools.permutations(own), key=lambda order: (features * targets[list(order)]).sum())  # noqa: B023
            output = model(**batch)
            assert output.metrics["exchanged"].item() == pytest.approx(np.mean(np.array(best) != own)) and best != own
            distance = ((features - targets[list(best)]) ** 2).sum(1).mean()
            assert output.loss.item() == pytest.approx(256 * distance, rel=1e-5)
            for row, target in zip(rows, best, strict=True):
                held[row] = target
            assert model.assignment.tolist() == held

    def test_every_third_epoch_exchanges(self):
        model, batch = self.in_training(self.model()), self.batch()
        for epoch in range(7):
            model.assignment.copy_(torch.arange(16))
            model.before_epoch(epoch, None)
            exchanged = model(**batch).metrics["exchanged"] > 0
            assert exchanged == (epoch % 3 == 0)
        model.config.exchange_period = 1
        assert model.exchanges()

    def test_a_run_that_is_taken_up_within_an_epoch_knows_which(self, tmp_path):
        """Its buffers come from a checkpoint, after a step even, and nothing calls `before_epoch`."""
        model, fresh = self.model(), self.model().train()
        model.before_epoch(4, None)
        model.save_pretrained(tmp_path)
        assert not NATForPreTraining.from_pretrained(tmp_path).exchanges()
        assert fresh.exchanges()
        fresh.load_state_dict(model.state_dict())
        assert not fresh.exchanges()

    @pytest.mark.parametrize("twice", [False, True])
    def test_targets_stay_a_permutation(self, twice):
        """A row that stands twice in a batch has one target, and none is lost."""
        model, batch = self.model().train(), self.batch()
        if twice:
            batch["sample_indices"][[1, 6]] = batch["sample_indices"][3].clone()
        output = model(**batch)
        assert sorted(model.assignment.tolist()) == list(range(16))
        unseen = [row for row in range(16) if row not in batch["sample_indices"]]
        assert len(unseen) == 8 + 2 * twice and model.assignment[unseen].tolist() == unseen
        targets = model.targets[model.assignment[batch["sample_indices"]]]
        distance = (output.projections - targets).square().sum(1).mean()
        assert output.loss.item() == pytest.approx(256 * distance.item(), rel=1e-5)

    def test_two_processes_exchange_as_one(self):
        """A row stands twice, on both."""
        one = exchange_on_each_process()
        for other in on_pair(exchange_on_each_process):
            assert torch.equal(torch.as_tensor(other), torch.as_tensor(one))
        assert (one != torch.arange(16)).any()

    @torch.no_grad()
    def test_the_picture_shows_whose_target_is_nearest(self):
        model, batch = self.model().eval(), self.batch()
        features, targets = self.projections(model, batch["pixel_values"]), model.targets.double().numpy()
        nearest = (features @ targets[batch["sample_indices"]].T).argmax(1)
        _, line = model.pretext_lines(**batch)
        assert torch.equal(line.images, batch["pixel_values"][nearest])
        assert line.right.tolist() == (nearest == np.arange(8)).tolist()

    def test_half_precision_is_finite(self):
        model = self.model().train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**self.batch()).loss
        loss.backward()
        assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in model.parameters())

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(StrictDataclassError, match="exchange_period must be at least 1, found 0"):
            NATConfig(**TINY, exchange_period=0)
        network = self.model().config.backbone_config
        network.name_or_path = "org/network"
        with pytest.raises(
            ValueError, match="sobel=True needs a new network: 'org/network' has been trained on colours"
        ):
            NATForPreTraining(NATConfig(backbone_config=network, sobel=True))


def exchange_on_each_process():
    torch.manual_seed(0)
    model = NATForPreTraining(NATConfig(**TINY)).train()
    rows = torch.tensor([3, 8, 1, 0, 9, 3, 15, 2])
    projections = torch.nn.functional.normalize(torch.randn(8, 12), dim=1)
    model.exchange(own_part(projections), own_part(rows))
    return model.assignment


@pytest.mark.parametrize(
    "count, similarity, loss, chosen",
    [
        (8, 6.93406343, 2.13187265, [3, 0, 5, 7, 2, 4, 6, 1]),
        (
            32, 31.12140465, 1.75719273, [11, 8, 17, 10, 0, 12, 9, 2, 27, 24, 13, 26, 23, 28, 25, 18, 7, 4, 29, 6, 3, 15, 5,
            14, 30, 20, 16, 22, 19, 31, 21, 1],
        ),
    ],
)  # fmt: skip
def test_exchange_is_that_of_the_authors_solver(count, similarity, loss, chosen):
    """Recorded from `solve` of hungarian.c, commit e5c58ab, of costs as hungarian.lua makes them, 100,001 whole numbers;
    main.lua, whose Torch 7 does not run any more, gives row i of the batch the target of row chosen[i] before its loss, a
    sum, which is ours at a batch of 256."""
    rows, held = torch.arange(count) * 5 % (count + 4), torch.arange(count + 4).roll(3)
    model = on_vectors(NATForPreTraining)(
        NATConfig(backbone_config=TINY_RESNET, num_samples=count + 4, projection_size=6)
    ).train()
    model.targets.copy_(normalize(sines(0.2, count + 4, 6), dim=1))
    model.assignment.copy_(held)
    output = model(sines(0.1, count, 6), rows)
    expected = held.clone()
    expected[rows] = held[rows][chosen]
    assert torch.equal(model.assignment, expected)
    assert (output.projections * output.projections_2).sum().item() == pytest.approx(similarity, abs=1e-5)
    assert output.loss.item() * count / 256 == pytest.approx(loss, abs=1e-5)


class TestNATOnGradients(MethodTester):
    model_class = NATForPreTraining
    config = TINY | dict(sobel=True)
    chance_loss = 256 * 2.0
    tolerance = 2e-5
    brings_its_code = True
    batch, inputs = Instances.batch, Instances.inputs

    def test_colours_and_brightness_are_not_seen(self):
        model, pixels = self.model().eval(), self.batch()["pixel_values"]
        assert model.config.backbone_config.model_type == "ssl_sobel"
        assert model.backbone.encoder.config.num_channels == 2
        turned = pixels.roll(1, dims=1)  # other colours, the same grey
        torch.testing.assert_close(model.embed(turned), model.embed(pixels))
        assert not torch.allclose(model.embed(2 * pixels), model.embed(pixels))
