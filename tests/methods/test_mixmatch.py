import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import (
    CLASSIFIER,
    FewLabelsTester,
    assert_same_gradients,
    cross_entropy,
    gradients,
    logits_of,
    softmax,
    statistics,
)
from scipy import stats

from hf_ssl import MixMatchConfig, MixMatchForPreTraining
from hf_ssl.methods._semi_supervised import sharpen
from hf_ssl.methods.mixmatch import interleave


class TestMixMatch(FewLabelsTester):
    model_class = MixMatchForPreTraining
    # in eval mode a new model's alignment changes nothing
    config = dict(backbone_config=CLASSIFIER, momentum=0.9, unlabelled_weight=5.0, align_classes=True)
    teachers = {"average": "backbone"}
    random_arguments = ("sample_seeds",)
    size = 12

    def draws(self, views=3):
        """Of how much, and with which."""
        generator = torch.Generator().manual_seed(5)
        mixing = 0.5 + 0.5 * torch.rand(views, self.size, generator=generator)
        return {"mixing": mixing, "order": torch.randperm(views * self.size, generator=generator)}

    def mixed(self, model, batch, mixing, order, views=("pixel_values", "pixel_values_2"), temperature=0.5):
        """Images and targets of the paper's algorithm 1, one by one, with the running statistics: [(image, target)]."""
        told = [softmax(logits_of(model.backbone, batch[name])) for name in views]
        guesses = []
        for row in range(self.size):
            mean = sum(p[row] for p in told) / len(views)
            guesses.append(mean ** (1 / temperature) / (mean ** (1 / temperature)).sum())
        pairs = [
            (image, np.eye(4)[label])
            for image, label in zip(batch["labelled_pixel_values"], batch["labels"], strict=True)
        ]
        for name in views:
            pairs += list(zip(batch[name], guesses, strict=True))
        shuffled = [pairs[place] for place in order]
        return [
            (share * image + (1 - share) * other, share.item() * target + (1 - share.item()) * other_target)
            for share, (image, target), (other, other_target) in zip(mixing.flatten(), pairs, shuffled, strict=True)
        ]

    @pytest.mark.parametrize("guesses, temperature", [(2, 0.5), (1, 1.0)])
    def test_loss_equals_a_slow_loop(self, guesses, temperature):
        model, batch = self.decided_model(guesses=guesses, temperature=temperature), self.batch()
        draws = self.draws(1 + guesses)
        views = ("pixel_values", "pixel_values_2")[:guesses]
        pairs = self.mixed(model, batch, **draws, views=views, temperature=temperature)
        logits = logits_of(model.backbone, [image for image, _ in pairs])
        targets = np.array([target for _, target in pairs])
        supervised = cross_entropy(logits[:12], targets[:12])
        squares = [(p - q) ** 2 for p, q in zip(softmax(logits)[12:].flat, targets[12:].flat, strict=True)]
        assert len(squares) == guesses * 12 * 4
        output = model(**batch, **draws)
        assert output.loss.item() == pytest.approx(supervised + 5 * np.mean(squares), abs=1e-5)
        assert (
            output.metrics["unlabelled"].item() == pytest.approx(np.mean(squares), abs=1e-6)
            and np.mean(squares) > 0.01
        )
        np.testing.assert_allclose(output.logits.detach(), logits[:12], atol=1e-4)

    def test_the_ramp_equals_a_line(self):
        """16384 of 1024 x 1024 steps of the original."""
        model, batch = self.decided_model(), self.batch()
        model.config.ramp_end = self.model_class.config_class().ramp_end
        for step in (0, 1, 1000, 8192, 16384, 16385, 2**20):
            model.progress.fill_(step / 2**20)
            output = model(**batch)
            weight = 5 * min(1, step / 16384)
            assert model.weight().item() == pytest.approx(weight, abs=1e-6), step
            expected = output.metrics["supervised"] + weight * output.metrics["unlabelled"]
            assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6), step
        assert output.metrics["unlabelled"] > 0.01

    def test_shares_are_drawn_from_the_folded_beta_distribution(self):
        """max(l, 1 - l): mean, variance and distribution by scipy, where l is from Beta(0.75, 0.75)."""
        model, seeds = self.model(), torch.arange(60_000).view(3, -1)
        mixing = model.draw_mixing(seeds)
        shares, beta = mixing.flatten().double().numpy(), stats.beta(0.75, 0.75)
        assert mixing.shape == seeds.shape and shares.min() >= 0.5 and shares.max() <= 1
        mean = beta.expect(lambda x: np.maximum(x, 1 - x))
        variance = beta.expect(lambda x: np.maximum(x, 1 - x) ** 2) - mean**2
        assert shares.mean() == pytest.approx(mean, abs=5 * (variance / 60_000) ** 0.5)
        assert shares.var() == pytest.approx(variance, rel=0.02)
        assert stats.kstest(shares, lambda x: 2 * beta.cdf(x) - 1).pvalue > 0.01
        assert torch.equal(model.draw_mixing(seeds[:, 5:9]), mixing[:, 5:9])

    @pytest.mark.parametrize("alpha", [0.05, 1.0])
    def test_other_shapes_of_the_distribution(self, alpha):
        model = self.model()
        model.config.alpha = alpha
        shares = model.draw_mixing(torch.arange(20_000).view(1, -1)).flatten().double().numpy()
        beta = stats.beta(alpha, alpha)
        assert np.isfinite(shares).all()
        for share in (0.6, 0.75, 0.9, 0.99):  # near 1 float32 has steps
            assert (shares < share).mean() == pytest.approx(2 * beta.cdf(share) - 1, abs=0.015)

    def test_what_is_not_to_be_mixed_is_not(self):
        seeds = torch.arange(36).view(3, 12)
        for mixed, whole in {
            "none": (0, 1, 2),
            "labelled": (1, 2),
            "unlabelled": (0,),
            "separate": (),
            "all": (),
        }.items():
            model = self.model()
            model.config.mixed = mixed
            mixing, order = model.draw_mixing(seeds), model.draw_order(seeds)
            assert [kind for kind in range(3) if (mixing[kind] == 1).all()] == list(whole)
            assert torch.equal(order.sort().values, torch.arange(36))
            assert ((order[:12] < 12).all() and (order[12:] >= 12).all()) == (mixed != "all")

    def test_interleaving_is_its_own_inverse_and_no_pass_is_of_one_kind(self):
        """The first has equal parts of all kinds, the others labelled images and those of one view, as in the original."""
        kinds = torch.arange(3)[:, None].expand(3, 12)
        numbers = torch.arange(36).view(3, 12)
        for x in (numbers, torch.randn(3, 12, 2, 5), torch.randn(2, 8, 3)):
            assert torch.equal(interleave(interleave(x)), x)
        assert torch.equal(interleave(numbers).flatten().sort().values, numbers.flatten())
        assert [torch.bincount(each, minlength=3).tolist() for each in interleave(kinds)] == [
            [4] * 3,
            [4, 8, 0],
            [4, 0, 8],
        ]

    def test_running_statistics_are_those_of_the_first_interleaved_batch(self):
        """Of image i of kind i % 3, mixed, and of nothing else; the guesses move none."""
        model, batch, draws = self.model().train(), self.batch(), self.draws()
        alone = model.export_encoder().train()
        before = statistics(model.backbone)
        model.guess([batch["pixel_values"], batch["pixel_values_2"]], batch["labels"])
        assert all(torch.equal(value, before[name]) for name, value in statistics(model.backbone).items())
        images = [image for image, _ in self.mixed(model.eval(), batch, **draws)]
        alone(torch.stack([images[12 * (place % 3) + place] for place in range(12)]))
        model.train()(**batch, **draws)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)

    def test_no_gradient_flows_into_the_guesses(self):
        """The gradients are those of constant targets."""
        model, batch, draws = self.decided_model(), self.batch(), self.draws()
        pairs = self.mixed(model, batch, **draws)
        targets = torch.tensor(np.array([target for _, target in pairs])).float()
        logits = model.backbone(torch.stack([image for image, _ in pairs])).logits
        constant = F.cross_entropy(logits[:12], targets[:12]) + 5 * F.mse_loss(logits[12:].softmax(1), targets[12:])
        assert_same_gradients(gradients(model(**batch, **draws).loss, model), gradients(constant, model))

    def test_aligned_guesses_equal_the_formula(self):
        """Algorithm 1 of ReMixMatch, line 9 and what precedes it: the mean guess times the ratio of the classes' frequencies,
        normalised; sharpened afterwards. Of labels 0, 0, 1, 2 ... and guesses as they come, over three steps."""
        model = self.model().train()
        frequencies = np.full((2, 4), 0.25)
        for seed in range(3):
            batch = self.batch(seed)
            views = [batch["pixel_values"], batch["pixel_values_2"]]
            labels = torch.tensor([0, 0, 1, 2] * 3)
            alone = model.export_encoder().train()  # the average, which is still the network
            mean = np.mean([softmax(alone(view).logits.detach().double().numpy()) for view in views], axis=0)
            frequencies = 0.99 * frequencies + 0.01 * np.array([[0.5, 0.25, 0.25, 0], mean.mean(0)])
            aligned = mean * (frequencies[0] + 1e-6) / (frequencies[1] + 1e-6)
            aligned /= aligned.sum(1, keepdims=True)
            expected = aligned**2 / (aligned**2).sum(1, keepdims=True)
            np.testing.assert_allclose(model.guess(views, labels)[0], expected, atol=1e-6)
        assert np.abs(frequencies - 0.25).max() > 0.005
        before = model.alignment.frequencies.clone()
        model.eval().guess(views, labels)
        assert torch.equal(model.alignment.frequencies, before)

    def test_sharpening_equals_the_formula(self):
        p = torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
        torch.testing.assert_close(sharpen(p, 0.5), p**2 / (p**2).sum(1, keepdim=True))
        torch.testing.assert_close(sharpen(p, 1.0), p)

    def test_batches_that_cannot_be_are_refused(self):
        model = self.model()
        model.check_labels(1)
        with pytest.raises(ValueError, match="as many labelled images as unlabelled ones: expected .*=1, found 3"):
            model.check_labels(3)
        model.check_batch(7, 1), model.check_batch(6, 2)
        with pytest.raises(ValueError, match="per_device_train_batch_size, must be a multiple of 3, .*: found 7"):
            model.check_batch(7, 2)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"unlabelled_weight": -1.0}, "unlabelled_weight must be at least 0, found -1.0"),
            ({"guesses": 3}, "guesses must be 1 or 2, found 3"),
            ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
            ({"alpha": 1.5}, "alpha must be above 0 and at most 1, found 1.5"),
            ({"ramp_end": 0.0}, "ramp_end must be above 0 and at most 1, found 0.0"),
            ({"mixed": "some"}, "mixed must be one of all, separate, labelled, unlabelled, none, found 'some'"),
            ({"momentum": 1.0}, "momentum must be at least 0 and below 1, found 1.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            MixMatchConfig(**self.config | change)
