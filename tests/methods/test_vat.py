from types import SimpleNamespace

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
    softmax,
    statistics,
)
from methods.tester import TINY_VIT
from scipy import stats
from torch import nn

from hf_ssl import VATConfig, VATForPreTraining
from hf_ssl.methods.vat import divergence, unit


class TwoLayers(nn.Module):
    """A classifier of 3 x 2 x 2 images as transformers' are called, with a hyperbolic tangent between its layers."""

    dtype = torch.float64

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden, self.classifier = nn.Linear(12, 7), nn.Linear(7, 4)
        for parameter in self.parameters():
            parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator, dtype=self.dtype)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.classifier(self.hidden(pixel_values.flatten(1)).tanh()))


class TwoLayersInNumPy:
    """The same network, and the formulas of vat.py (takerum/vat_tf), with the gradient by hand, in float64."""

    def __init__(self, network):
        self.w1, self.b1, self.w2, self.b2 = (p.detach().numpy() for p in network.parameters())

    def logits(self, x):
        return np.tanh(x @ self.w1.T + self.b1) @ self.w2.T + self.b2

    def gradient(self, p, x):
        """Of the mean of KL(p || q(x)) with respect to x: through the softmax (q - p) / N, then back through both layers."""
        hidden = np.tanh(x @ self.w1.T + self.b1)
        at_logits = (softmax(hidden @ self.w2.T + self.b2) - p) / len(x)
        return (at_logits @ self.w2) * (1 - hidden**2) @ self.w1

    @staticmethod
    def normalize(d):
        d = d / (1e-12 + np.abs(d).max(1, keepdims=True))
        return d / np.sqrt(1e-6 + (d**2).sum(1, keepdims=True))

    def direction(self, x, noise, xi, iterations):
        p, d = softmax(self.logits(x)), noise
        for _ in range(iterations):
            d = self.gradient(p, x + xi * self.normalize(d))
        return self.normalize(d)

    def losses(self, x, noise, xi, epsilon, iterations):
        """The divergence and the entropy, means over images."""
        p = softmax(self.logits(x))
        q = softmax(self.logits(x + epsilon * self.direction(x, noise, xi, iterations)))
        return (p * np.log(p / q)).sum(1).mean(), -(p * np.log(p)).sum(1).mean()


class TestVAT(FewLabelsTester):
    model_class = VATForPreTraining
    # a step that leaves to float32 what the direction says, however sums are ordered
    config = dict(backbone_config=CLASSIFIER, epsilon=2.0, xi=0.5, balance_weight=0.5)
    random_arguments = ("noise", "sample_seeds")
    takes_reentrant_checkpoints = False  # the direction is a gradient, taken within `forward`

    def two_layers(self, **changes):
        """(the model with the small network, the network in NumPy, a batch of its images, with noise)."""
        model = self.model().eval()
        model.backbone = TwoLayers()
        for name, value in changes.items():
            setattr(model.config, name, value)
        generator = torch.Generator().manual_seed(3)
        pixels, noise, labelled = torch.randn(3, 6, 3, 2, 2, generator=generator, dtype=torch.float64)
        batch = {
            "pixel_values": pixels,
            "labelled_pixel_values": labelled,
            "labels": torch.arange(6) % 4,
            "noise": noise,
        }
        return model, TwoLayersInNumPy(model.backbone), batch

    @pytest.mark.parametrize("iterations, xi", [(1, 1e-6), (1, 0.5), (2, 0.5), (4, 1e-3)])
    def test_direction_equals_the_originals_formulas(self, iterations, xi):
        model, network, batch = self.two_layers(power_iterations=iterations, xi=xi)
        x, noise = (batch[name].flatten(1).numpy() for name in ("pixel_values", "noise"))
        expected = network.direction(x, noise, xi, iterations)
        clean = model.backbone(batch["pixel_values"]).logits.detach()
        found = model.adversarial_direction(batch["pixel_values"], clean, batch["noise"])
        np.testing.assert_allclose(found.flatten(1), expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)

    def test_gradient_by_hand_equals_finite_differences(self):
        """So that the formulas above stand by themselves."""
        _, network, batch = self.two_layers()
        x, noise = (batch[name].flatten(1).numpy() for name in ("pixel_values", "noise"))
        p, step = softmax(network.logits(x)), np.zeros_like(x)

        def mean_divergence(moved):
            return (p * np.log(p / softmax(network.logits(moved)))).sum(1).mean()

        gradient = network.gradient(p, x + noise)
        for place in ((0, 0), (2, 5), (5, 11)):
            step[:] = 0
            step[place] = 1e-5
            slope = (mean_divergence(x + noise + step) - mean_divergence(x + noise - step)) / 2e-5
            assert gradient[place] == pytest.approx(slope, abs=1e-8)

    @pytest.mark.parametrize("entropy_weight, balance_weight", [(0.0, 0.0), (0.6, 0.0), (0.6, 0.9)])
    def test_loss_equals_the_originals_formulas(self, entropy_weight, balance_weight):
        """And the entropy of the mean prediction that of IMSAT."""
        model, network, batch = self.two_layers(
            entropy_weight=entropy_weight, balance_weight=balance_weight, vat_weight=0.3
        )
        x, noise = (batch[name].flatten(1).numpy() for name in ("pixel_values", "noise"))
        distance, uncertainty = network.losses(x, noise, 0.5, 2.0, 1)
        labelled = batch["labelled_pixel_values"].flatten(1).numpy()
        supervised = cross_entropy(network.logits(labelled), batch["labels"])
        output = model(**batch)
        assert distance > 0.1
        assert output.metrics["divergence"].item() == pytest.approx(distance, abs=1e-6)
        assert output.metrics["entropy"].item() == pytest.approx(uncertainty, abs=1e-6)
        mean = softmax(network.logits(x)).mean(0)
        of_mean = -(mean * np.log(mean)).sum()
        if balance_weight:
            assert output.metrics["entropy_of_mean"].item() == pytest.approx(of_mean, abs=1e-6)
        else:
            assert "entropy_of_mean" not in output.metrics
        expected = supervised + 0.3 * distance + entropy_weight * uncertainty - balance_weight * of_mean
        assert output.loss.item() == pytest.approx(expected, abs=1e-6)

    def test_divergence_and_unit_equal_their_formulas(self):
        generator = torch.Generator().manual_seed(0)
        p, q = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
        expected = stats.entropy(softmax(p.numpy()), softmax(q.numpy()), axis=1).mean()
        assert divergence(p, q).item() == pytest.approx(expected, abs=1e-12)
        scales = 10.0 ** torch.tensor(
            [-13, -9, -5, 0, 5]
        )  # squares of the first are below the 1e-6 of the second step
        x = torch.randn(5, 3, 2, 2, generator=generator) * scales[:, None, None, None]
        np.testing.assert_allclose(
            unit(x).flatten(1), TwoLayersInNumPy.normalize(x.flatten(1).double().numpy()), atol=1e-6
        )
        torch.testing.assert_close(unit(x)[1:].flatten(1).norm(dim=1), torch.ones(4))
        assert (unit(torch.zeros(1, 3, 2, 2)) == 0).all()

    def test_the_default_step_survives_float32(self):
        """With it the direction is that of float64 with the paper's step; with that step in float32 it is another one."""
        torch.manual_seed(0)
        pixels, noise = torch.randn(2, 8, 3, 16, 16)

        def direction(xi, dtype):
            model = self.model().train().to(dtype)
            model.config.xi = xi
            clean = model.backbone(pixels.to(dtype)).logits.detach()
            return model.adversarial_direction(pixels.to(dtype), clean, noise.to(dtype)).double()

        exact = direction(1e-6, torch.float64)
        of_default, of_paper = (
            (direction(xi, torch.float32) * exact).sum((1, 2, 3)).mean() for xi in (VATConfig().xi, 1e-6)
        )
        assert of_default > 0.98 and of_paper < 0.9

    def test_the_direction_survives_mixed_precision(self):
        """In bfloat16 a step of xi would be rounded away."""
        torch.manual_seed(0)
        model, (pixels, noise) = self.model().train(), torch.randn(2, 8, 3, 16, 16)
        model.config.xi = VATConfig().xi
        directions = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                clean, _ = model.classify_exactly(pixels)
                directions.append(model.adversarial_direction(pixels, clean.detach(), noise))
        assert (directions[0] * directions[1]).sum((1, 2, 3)).min() > 0.95

    def test_all_passes_drop_the_same_units(self):
        """A step of no length changes nothing; the next batch's units are others."""
        backbone = TINY_VIT | dict(num_labels=4, hidden_dropout_prob=0.3)
        torch.manual_seed(0)
        model = VATForPreTraining(VATConfig(backbone_config=backbone, epsilon=1e-6)).train()
        first, second = (model(**self.batch()).metrics for _ in range(2))
        assert first["divergence"].abs() < 1e-6
        assert (first["entropy"] - second["entropy"]).abs() > 1e-5

    def test_no_gradient_flows_into_the_clean_prediction_or_the_direction(self):
        """The gradients are those of a constant distribution and a constant step."""
        model, network, batch = self.two_layers(entropy_weight=0.0, balance_weight=0.0)
        x, noise = (batch[name].flatten(1).numpy() for name in ("pixel_values", "noise"))
        step = torch.tensor(2.0 * network.direction(x, noise, 0.5, 1)).view_as(batch["pixel_values"])
        p = torch.tensor(softmax(network.logits(x)))
        log_q = model.backbone(batch["pixel_values"] + step).logits.log_softmax(1)
        supervised = F.cross_entropy(model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"])
        constant = supervised + (p * (p.log() - log_q)).sum(1).mean()
        assert_same_gradients(gradients(model(**batch).loss, model), gradients(constant, model))

    def test_the_labelled_pass_alone_moves_running_statistics(self):
        """And the others normalise by their batch: what they give does not depend on the running statistics."""
        model, batch = self.model().train(), self.batch()
        alone = model.export_encoder().train()
        alone(batch["labelled_pixel_values"])
        with torch.no_grad():
            first = model(**batch)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)
        for name, buffer in model.backbone.named_buffers():
            if name.endswith("running_mean"):
                buffer += 3.0
        assert torch.equal(model(**batch).loss, first.loss)

    def test_noise_follows_from_the_seeds(self):
        model, pixels, seeds = self.model(), torch.zeros(500, 3, 8, 8), torch.arange(500)
        noise = model.draw_noise(pixels, seeds)
        assert torch.equal(noise[7:9], model.draw_noise(pixels[:2], seeds[7:9])) and noise.shape == pixels.shape
        assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
        assert not torch.equal(model.draw_noise(pixels), model.draw_noise(pixels))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"epsilon": 0.0}, "epsilon must be positive, found 0.0"),
            ({"xi": -1.0}, "xi must be positive, found -1.0"),
            ({"power_iterations": 0}, "power_iterations must be at least 1, found 0"),
            ({"vat_weight": -1.0}, "vat_weight must be at least 0, found -1.0"),
            ({"balance_weight": -1.0}, "balance_weight must be at least 0, found -1.0"),
            ({"entropy_weight": -1.0}, "entropy_weight must be at least 0, found -1.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            VATConfig(**self.config | change)
