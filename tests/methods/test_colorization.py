import colorsys
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester
from transformers import AutoConfig

from hf_ssl import ColorizationConfig, ColorizationForPreTraining
from hf_ssl.methods._colour_spaces import lab_to_rgb, rgb_to_grey, rgb_to_lab
from hf_ssl.methods.colorization import local_histograms

TINY = dict(backbone_config=TINY_RESNET, head_hidden_size=32)


class TestZhang(MethodTester):
    model_class = ColorizationForPreTraining
    config = TINY
    chance_loss = math.log(309)
    tolerance = 1e-5
    random_arguments = ("places",)

    def batch(self, seed=0):
        """Areas of one lightness, of which dark ones are red and bright ones green, or the reverse, in images of stripes."""
        generator = torch.Generator().manual_seed(seed)
        high = (
            (torch.rand(8, 1, 2, 2, generator=generator) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        )
        striped = (torch.arange(8) % 2).view(8, 1, 1, 1)
        stripes = 0.1 * (torch.arange(16) % 4 < 2).float().view(1, 1, 1, 16) * striped
        red, green = torch.tensor([0.9, 0.2, 0.2]).view(1, 3, 1, 1), torch.tensor([0.3, 0.9, 0.3]).view(1, 3, 1, 1)
        other_red, other_green = (
            torch.tensor([1.0, 0.6, 0.6]).view(1, 3, 1, 1),
            torch.tensor([0.0, 0.5, 0.1]).view(1, 3, 1, 1),
        )
        plain, reverse = high * green + (1 - high) * red, high * other_red + (1 - high) * other_green
        images = torch.where(striped.bool(), reverse, plain) + stripes
        images = (images + 0.02 * torch.randn(8, 3, 16, 16, generator=generator)).clamp(0, 1)
        places = torch.rand(8, 128, 2, generator=generator)
        return {
            "pixel_values": images,
            "sample_seeds": torch.randint(2**62, (8,), generator=generator),
            "places": places,
        }

    def test_loss_equals_a_slow_formula(self):
        """Pixel by pixel: the five nearest bins, their Gaussian shares, the cross-entropy."""
        model, batch = self.model().eval(), self.batch()
        output, bins = model(**batch), model.bins.double().numpy()
        assert output.logits.shape == (8, 4, 4, 309)
        logits, losses, distances = output.logits.detach().double().numpy(), [], []
        for image in range(8):
            for row in range(4):
                for column in range(4):
                    _, *ab = slow_lab(batch["pixel_values"][image, :, 4 * row, 4 * column].tolist())
                    apart = np.sqrt(((bins - ab) ** 2).sum(1))
                    nearest = np.argsort(apart)[:5]
                    shares = np.exp(-(apart[nearest] ** 2) / 50)
                    scores = logits[image, row, column]
                    log_p = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
                    losses.append(-(shares / shares.sum() * log_p[nearest]).sum())
                    softer = np.exp((scores - scores.max()) / 0.38)
                    distances.append(np.hypot(*(softer / softer.sum() @ bins - ab)))
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert output.metrics["ab_distance"].item() == pytest.approx(np.mean(distances), rel=1e-4)

    def test_rare_colours_have_larger_gradients_and_the_loss_is_as_without(self):
        """The weights of the paper's equation 4, by loops, in the gradient with respect to the logits; an image without colours
        has none."""
        model, batch = self.model().eval(), self.batch()
        batch["pixel_values"][3] = batch["pixel_values"][3].mean(0)
        before = model(**batch).loss
        counts = np.arange(309) ** 2 % 97
        model.colour_counts.copy_(torch.from_numpy(counts))
        bins = model.bins.double().numpy()
        frequency, smoothed = counts / counts.sum(), np.zeros(309)
        for number in range(309):
            apart = np.sqrt(((bins - bins[number]) ** 2).sum(1))
            nearest = np.argsort(apart, kind="stable")
            fifth = apart[nearest[4]]
            if (apart <= fifth + 1e-6).sum() > 5:  # several are fifth; any will do, as each has the same share
                nearest = model_neighbours(model, number)
            nearest = nearest[:5]
            shares = np.exp(-(apart[nearest] ** 2) / 50)
            smoothed[nearest] += frequency[number] * shares / shares.sum()
        weights = 1 / (0.5 * smoothed + 0.5 / 309)
        weights /= (weights * smoothed).sum()

        caught = []
        model.head.output.register_full_backward_hook(lambda module, _, gradient: caught.append(gradient[0]))
        output = model(**batch)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(before.item(), abs=1e-6)
        probabilities = output.logits.detach().double().softmax(-1).numpy()
        for image, row, column in ((0, 0, 0), (1, 2, 3), (6, 3, 0), (3, 1, 1)):
            _, *ab = slow_lab(batch["pixel_values"][image, :, 4 * row, 4 * column].tolist())
            apart = np.sqrt(((bins - ab) ** 2).sum(1))
            nearest = np.argsort(apart)[:5]
            shares = np.exp(-(apart[nearest] ** 2) / 50)
            expected = probabilities[image, row, column].copy()
            expected[nearest] -= shares / shares.sum()
            expected *= weights[nearest[0]] / (8 * 16) if image != 3 else 0
            np.testing.assert_allclose(caught[0][image, row, column], expected, atol=1e-7, rtol=1e-4)
        assert caught[0][3].abs().max() == 0

    def test_the_prior_counts_what_training_has_seen(self):
        model, batch = self.model().train(), self.batch()
        model(**batch)
        ab = rgb_to_lab(batch["pixel_values"])[:, 1:, ::4, ::4].permute(0, 2, 3, 1).reshape(-1, 2)
        nearest = (ab[:, None] - model.bins).square().sum(2).argmin(1)
        assert torch.equal(model.colour_counts, 1 + torch.bincount(nearest, minlength=309))

    def test_learns_to_colour(self):
        """After some steps colours are nearer than grey, and `colorize` makes of grey images what it makes of coloured ones."""
        model = self.model().train()
        optimizer = self.optimizer(model)
        for step in range(120):
            model(**self.batch(seed=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        images = self.batch(seed=1000)["pixel_values"]
        metrics = model(images).metrics
        assert metrics["ab_distance"] < 0.5 * metrics["ab_distance_of_grey"]
        assert metrics["ab_distance"] < 0.5 * metrics["ab_distance_of_commonest"]
        coloured = model.colorize(images)
        assert coloured.shape == images.shape and coloured.min() >= 0 and coloured.max() <= 1
        far = (rgb_to_lab(coloured) - rgb_to_lab(images))[:, 1:].norm(dim=1).mean()
        assert far < 0.6 * rgb_to_lab(images)[:, 1:].norm(dim=1).mean()
        of_grey = model.colorize(rgb_to_grey(images))
        assert (rgb_to_lab(of_grey) - rgb_to_lab(coloured))[:, 1:].norm(
            dim=1
        ).mean() < 8  # but for the lightness of a colour
        assert model.colorize(torch.rand(1, 1, 18, 23)).shape == (1, 3, 18, 23)
        grey, found, truth = model.pretext_lines(images)
        assert torch.equal(truth.images, images) and found.right.all()
        assert (grey.images == grey.images[:, :1]).all() and len(grey.captions) == len(found.captions) == 8

    def test_bad_input_is_named(self):
        with pytest.raises(
            StrictDataclassError, match="num_channels must be 3, .*found 1: images of one channel have no colours"
        ):
            ColorizationConfig(**TINY | dict(backbone_config=TINY_RESNET | dict(num_channels=1)))
        with pytest.raises(
            ValueError, match="model_type 'vit' has no stages with maps to read: choose one such as resnet"
        ):
            ColorizationForPreTraining(ColorizationConfig(backbone_config=TINY_VIT))
        with pytest.raises(ValueError, match="stages must be at most 3, the maps of the backbone, found 4"):
            ColorizationForPreTraining(ColorizationConfig(**TINY, stages=4))
        with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\) or \(N, 1, H, W\), found \(2, 4, 8, 8\)"):
            self.model().colorize(torch.rand(2, 4, 8, 8))
        for wrong, message in (
            (dict(head="best"), "head must be one of zhang, larsson, found 'best'"),
            (dict(temperature=0.0), "temperature must be positive, found 0.0"),
            (dict(uniform=1.5), r"uniform must lie in \[0, 1\], found 1.5"),
            (dict(window=4), "window must be odd, with a pixel in its middle, found 4"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                ColorizationConfig(**wrong)

    def test_half_precision_is_finite(self):
        for head in ("zhang", "larsson"):
            model = ColorizationForPreTraining(ColorizationConfig(**TINY | dict(head=head))).train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())


class TestLarsson(MethodTester):
    model_class = ColorizationForPreTraining
    config = TINY | dict(head="larsson", stages=0, places=64)
    chance_loss = math.log(32) * (1 + 5 * 0.5)
    tolerance = 1e-5
    random_arguments = ("places",)
    batch = TestZhang.batch

    def test_loss_equals_a_slow_formula(self):
        """Place by place, with colorsys's hue."""
        model, batch = self.model().eval(), self.batch()
        batch["pixel_values"][0, :, 4:7, 2:9] = 0.5
        output = model(**batch)
        total = []
        for image, places, logits in zip(batch["pixel_values"], batch["places"], output.logits.detach(), strict=True):
            for place, scores in zip(places.tolist(), logits.double().numpy(), strict=True):
                y, x = (int(16 * number) for number in place)
                hues, chromas = np.zeros(32), np.zeros(32)
                for v in range(max(0, y - 3), min(16, y + 4)):
                    for u in range(max(0, x - 3), min(16, x + 4)):
                        rgb = image[:, v, u].tolist()
                        chroma = max(rgb) - min(rgb)
                        chromas[min(31, int(32 * chroma))] += 1
                        if chroma > 0:
                            hues[min(31, int(32 * colorsys.rgb_to_hsv(*rgb)[0] + 1e-6))] += 1
                rgb = image[:, y, x].tolist()
                losses = []
                for counts, own in ((hues, scores[:32]), (chromas, scores[32:])):
                    p = counts / counts.sum() if counts.sum() else np.full(32, 1 / 32)
                    log_q = own - np.log(np.exp(own).sum())
                    losses.append(sum(a * (np.log(a) - b) for a, b in zip(p, log_q, strict=True) if a > 0))
                total.append(losses[1] + 5 * (max(rgb) - min(rgb)) * losses[0])
        assert output.loss.item() == pytest.approx(np.mean(total), abs=2e-4)  # a hue at the border of two bins

    def test_histograms_by_hand(self):
        values = torch.tensor([[[0.0, 0.5, 0.99], [0.5, 1.0, 0.5]]])
        counted = torch.tensor([[[True, True, True], [True, False, True]]])
        found = local_histograms(values, counted, torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), 3)
        expected = torch.zeros(2, 32)
        expected[0, 0], expected[0, 16] = 1 / 3, 2 / 3  # the corner: 0, .5, .5, and 1 that is not counted
        expected[1, 16], expected[1, 31] = 2 / 3, 1 / 3
        torch.testing.assert_close(found[0], expected)
        assert (local_histograms(values, counted & False, torch.tensor([[0]]), torch.tensor([[0]]), 3) == 1 / 32).all()

    def test_places_follow_from_the_seeds(self):
        model, batch = self.model().eval(), self.batch()
        del batch["places"]
        loss = model(**batch).loss
        assert torch.equal(loss, model(**batch).loss)
        assert not torch.equal(loss, model(**batch | {"sample_seeds": batch["sample_seeds"] + 1}).loss)

    def test_one_hue_and_chroma_are_decoded(self):
        """Certain of a hue and chroma, it is their colour, with the lightness given; of all hues alike it is grey."""
        model = self.model()
        logits = torch.full((2, 64), -30.0)
        logits[0, 10] = logits[:, 32 + 12] = 30.0
        logits[1, :32] = 0.0
        ab = model.decode(logits, torch.tensor([60.0, 60.0]))
        rgb = torch.tensor(colorsys.hsv_to_rgb(10.5 / 32, 1.0, 12.5 / 32)).view(1, 3, 1, 1)
        grey = rgb_to_grey(lab_to_rgb(torch.tensor([60.0, 0, 0]).view(1, 3, 1, 1)))
        expected = rgb_to_lab((rgb + grey - rgb_to_grey(rgb)).clamp(0, 1)).flatten()[1:]
        torch.testing.assert_close(ab[0], expected, atol=0.05, rtol=0)
        assert ab[1].norm() < 0.1


def model_neighbours(model, number):
    from hf_ssl.methods._colour_bins import share_out

    return share_out(model.bins[number][None], model.bins, 5, 5.0)[0][0].numpy()


def slow_lab(rgb):
    """CIE 1976 of one sRGB colour under D65."""
    matrix = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    xyz = matrix @ linear / (0.95047, 1.0, 1.08883)
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def test_what_no_map_depends_on_is_frozen():
    """The norm behind ConvNeXt's pooling: it would wait for a gradient in vain."""
    config = AutoConfig.for_model("convnext", hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    model = ColorizationForPreTraining(
        ColorizationConfig(backbone_config=config.to_dict(), head_hidden_size=8)
    ).train()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.layernorm.weight", "backbone.layernorm.bias"]
    model(torch.rand(2, 3, 32, 32)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
