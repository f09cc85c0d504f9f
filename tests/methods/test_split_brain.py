import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_cmc import halves
from methods.test_colorization import slow_lab
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import SplitBrainConfig, SplitBrainForPreTraining
from hf_ssl.methods._two_halves import LAB_MEAN, LAB_STD

TINY = dict(backbone_config=halves("lab"), head_hidden_size=32)


class TestSplitBrain(MethodTester):
    model_class = SplitBrainForPreTraining
    config = TINY
    chance_loss = math.log(309) + math.log(100)
    tolerance = 1e-5
    brings_its_code = True

    def batch(self, seed=0):
        """Quarters that are dark and red or bright and green."""
        generator = torch.Generator().manual_seed(seed)
        high = (
            (torch.rand(8, 1, 2, 2, generator=generator) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        )
        red, green = torch.tensor([0.5, 0.1, 0.1]).view(1, 3, 1, 1), torch.tensor([0.4, 0.9, 0.3]).view(1, 3, 1, 1)
        images = high * green + (1 - high) * red + 0.01 * torch.randn(8, 3, 16, 16, generator=generator)
        return {"pixel_values": images.clamp(0, 1)}

    def test_loss_equals_a_slow_formula(self):
        """Pixel by pixel: cross-entropy over bins of ab, and over a hundred of L; beside it the entropy of what is there."""
        model, batch = self.model().eval(), self.batch()
        output, bins = model(**batch), model.bins.double().numpy()
        assert output.logits.shape == (8, 4, 4, 409)
        of_colours, of_lightness, seen = [], [], np.zeros(100)
        for image in range(8):
            for row in range(4):
                for column in range(4):
                    lightness, *ab = slow_lab(batch["pixel_values"][image, :, 4 * row, 4 * column].tolist())
                    scores = output.logits[image, row, column].detach().double().numpy()
                    colours, grey = (each - np.log(np.exp(each).sum()) for each in (scores[:309], scores[309:]))
                    apart = np.sqrt(((bins - ab) ** 2).sum(1))
                    nearest = np.argsort(apart)[:5]
                    shares = np.exp(-(apart[nearest] ** 2) / 50)
                    of_colours.append(-(shares / shares.sum() * colours[nearest]).sum())
                    of_lightness.append(-grey[int(lightness)])
                    seen[int(lightness)] += 1 / 128
        assert output.metrics["first_loss"].item() == pytest.approx(np.mean(of_colours), abs=1e-5)
        assert output.metrics["second_loss"].item() == pytest.approx(
            np.mean(of_lightness), abs=0.02
        )  # at borders of bins
        assert output.loss.item() == pytest.approx(
            sum(output.metrics[f"{half}_loss"].item() for half in ("first", "second"))
        )
        entropy = -sum(p * math.log(p) for p in seen if p)
        assert output.metrics["second_chance"].item() == pytest.approx(entropy, abs=0.05)

    def test_no_weight_crosses_the_halves(self):
        """Each half's loss moves that half alone, and each sees its own channels alone."""
        model, batch = self.model().train(), self.batch()
        channels = model.backbone.convert(batch["pixel_values"]).requires_grad_()
        model.backbone.convert = lambda pixels: channels
        for half, other in (("first", "second"), ("second", "first")):
            model.zero_grad()
            channels.grad = None
            _, predicted = model.features_and_predictions(batch["pixel_values"])
            predicted[half == "second"].square().sum().backward()
            seen = channels.grad.abs().sum((0, 2, 3)) > 0
            assert seen.tolist() == [half == "first", half == "second", half == "second"]
            for name, parameter in model.named_parameters():
                belongs = name.startswith((f"backbone.{half}.", f"{half}_head."))
                assert belongs or name.startswith((f"backbone.{other}.", f"{other}_head."))
                assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == belongs, name

    def test_predicts_what_the_other_half_sees(self):
        model = self.model().train()
        optimizer = self.optimizer(model)
        for step in range(70):
            model(**self.batch(seed=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        images = self.batch(seed=1000)["pixel_values"]
        found, lab = model.predict(images), model.backbone.convert(images)
        assert sorted(found) == [0, 1, 2]
        for channel, values in found.items():
            true = lab[:, channel] * LAB_STD[channel] + LAB_MEAN[channel]
            assert (values - true).abs().mean() < 0.5 * (true - true.mean()).abs().mean(), channel
        image, lightness, colours = model.pretext_lines(images)
        assert torch.equal(image.images, images)
        for line in (lightness, colours):
            assert line.images.shape == images.shape and line.images.min() >= 0 and line.images.max() <= 1

    def test_half_precision_is_finite(self):
        for loss in ("classification", "regression"):
            model = SplitBrainForPreTraining(SplitBrainConfig(**TINY | dict(loss=loss))).train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (dict(loss="best"), "loss must be one of classification, regression, found 'best'"),
            (dict(backbone_config=TINY_RESNET), "must be of model_type 'ssl_two_halves', found 'resnet'"),
            (
                dict(backbone_config=halves("none")),
                r"needs backbone_config.conversion=lab .*, found conversion=none and channels \[0\] and \[1, 2\]: set",
            ),
            (dict(backbone_config=halves("lab", second_channels=[0, 1])), r"none in common, .*: found \[0\] in both"),
            (
                dict(backbone_config=halves("lab", num_channels=1)),
                "conversion=lab needs num_channels=3.*found 1: grey images",
            ),
        ],
    )
    def test_impossible_configs_are_refused(self, wrong, message):
        with pytest.raises(StrictDataclassError, match=message):
            SplitBrainConfig(**TINY | wrong)

    def test_a_half_without_stages_is_refused(self):
        config = halves("lab", first_config=TINY_VIT | dict(num_channels=1))
        with pytest.raises(ValueError, match="model_type 'vit' has no stages with maps to read"):
            SplitBrainForPreTraining(SplitBrainConfig(backbone_config=config))


class TestChannelGroups(MethodTester):
    """Depth from colours and colours from depth: four channels of other data, by regression."""

    model_class = SplitBrainForPreTraining
    groups = dict(num_channels=4, first_channels=[3], second_channels=[0, 1, 2])
    groups |= dict(second_config=TINY_RESNET)  # of three channels
    config = dict(backbone_config=halves("none", **groups), head_hidden_size=32, loss="regression")
    chance_loss = 0.5 * 4 * 0.25
    tolerance = 1e-5
    brings_its_code = True

    def batch(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        near = (
            (torch.rand(8, 1, 2, 2, generator=generator) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
        )
        images = torch.cat([near, 1 - near, near, near], dim=1)
        return {"pixel_values": images + 0.02 * torch.randn(8, 4, 16, 16, generator=generator)}

    def test_loss_equals_a_slow_formula(self):
        model, batch = self.model().eval(), self.batch()
        output, pixels = model(**batch), batch["pixel_values"][..., ::4, ::4]
        total = 0.0
        for image in range(8):
            for row in range(4):
                for column in range(4):
                    found, true = output.logits[image, row, column].tolist(), pixels[image, :, row, column].tolist()
                    total += (
                        sum((a - b) ** 2 for a, b in zip(found, true, strict=True)) / 2 / 128
                    )  # colours, then depth
        assert output.loss.item() == pytest.approx(total, abs=1e-5)
        depth = pixels[:, 3]
        assert output.metrics["second_chance"].item() == pytest.approx(depth.var(correction=0).item() / 2, abs=1e-5)

    def test_picture_of_channels(self):
        model, images = self.model().eval(), self.batch()["pixel_values"]
        lines = model.pretext_lines(images)
        assert [line.name for line in lines] == [name for c in range(4) for name in (str(c), "predicted")]
        assert all(line.images.shape == images.shape for line in lines)
