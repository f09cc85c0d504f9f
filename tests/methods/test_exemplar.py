import colorsys
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import ExemplarConfig, ExemplarForPreTraining
from hf_ssl.methods._colour_spaces import hsv_to_rgb, rgb_to_hsv
from hf_ssl.methods.exemplar import patch_centres, triplet_loss

STILL = dict(
    translation=0.0, scale=(1.0, 1.0), rotation=0.0, contrast=(1.0, 1.0), power=(1.0, 1.0), factor=(1.0, 1.0), shift=0.0, hue=0.0,
)  # fmt: skip


class TestExemplar(MethodTester):
    model_class = ExemplarForPreTraining
    config = dict(backbone_config=TINY_RESNET, num_samples=16, patch_size=12)
    chance_loss = math.log(16)
    tolerance = 2e-5

    def batch(self, seed=0):
        """Eight of sixteen rows, each of which is always the same picture of waves."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(16, generator=generator)[:8]
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        waves = torch.stack([(y * (0.2 + row % 4 / 3) + x * (0.1 + row // 4 / 3)).sin() for row in rows])
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(7))[rows]
        images = (0.5 + 0.3 * waves[:, None]) * (0.4 + 0.6 * colours)
        seeds = torch.randint(2**62, (8,), generator=generator)
        return {"pixel_values": images, "sample_indices": rows, "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def still(self, **changes):
        return ExemplarForPreTraining(ExemplarConfig(**self.config | STILL | changes)).eval()

    @torch.no_grad()
    def test_the_picture_shows_the_patch_and_its_transformations(self):
        model, batch = self.still(), self.batch()
        image, patch, *others = model.pretext_lines(**batch)
        assert torch.equal(image.images, batch["pixel_values"]) and len(others) == 4
        for other in others:  # which do nothing here
            torch.testing.assert_close(other.images, patch.images)
        moving = self.model().pretext_lines(**batch)[2:]
        assert all((a.images - b.images).abs().max() > 0.1 for a, b in zip(moving, moving[1:], strict=False))

    def test_patches_are_cut_where_gradients_are(self):
        """Each place as often as its mean squared gradient says, by a slow formula."""
        images = torch.rand(1, 3, 9, 10)
        grey = images[0].double().mean(0).numpy()
        squares = np.zeros((9, 10))
        squares[:-1] += np.diff(grey, axis=0) ** 2
        squares[:, :-1] += np.diff(grey, axis=1) ** 2
        energy = np.array([[squares[y : y + 6, x : x + 6].mean() for x in range(5)] for y in range(4)])
        draws = (torch.arange(20_000) + 0.5) / 20_000
        places = patch_centres(images.expand(20_000, -1, -1, -1), 6, draws) - 2.5
        counts = np.zeros((4, 5))
        np.add.at(counts, tuple(places.long().numpy().T), 1)
        np.testing.assert_allclose(counts / 20_000, energy / energy.sum(), atol=2e-4)

    def test_a_still_patch_is_a_cut_and_the_same_in_every_epoch(self):
        model, batch = self.still(transforms=1), self.batch()
        patches = model.exemplars(batch["pixel_values"], batch["sample_indices"], batch["sample_seeds"])
        later = model.exemplars(batch["pixel_values"], batch["sample_indices"], batch["sample_seeds"] + 1)
        torch.testing.assert_close(patches, later)
        for image, [patch] in zip(batch["pixel_values"], patches, strict=True):
            cuts = [image[:, y : y + 12, x : x + 12] for y in range(5) for x in range(5)]
            assert min((cut - patch).abs().max().item() for cut in cuts) < 1e-4

    def test_moves(self):
        """A ramp says where a patch lies and how it is turned and scaled."""
        row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        images = torch.stack([row, column, 0 * row]).expand(300, -1, -1, -1)
        model = self.still(patch_size=16, translation=0.2, scale=(0.7, 1.4), rotation=20.0, transforms=2)
        patches = model.moved(images, torch.full((300, 2), 31.5), torch.arange(600).view(300, 2)).flatten(0, 1)
        middle = patches[:, :2, 7:9, 7:9].mean((2, 3)) - 31.5
        assert 3.1 < middle.abs().max() <= 0.2 * 16 + 1e-3
        down, right = patches[:, :2, 9, 8] - patches[:, :2, 8, 8], patches[:, :2, 8, 9] - patches[:, :2, 8, 8]
        scales, angles = 1 / down.norm(dim=1), torch.atan2(down[:, 1], down[:, 0]).rad2deg()
        torch.testing.assert_close(down[:, 0], right[:, 1], rtol=0, atol=1e-3)  # a turn mirrors nothing
        torch.testing.assert_close(down[:, 1], -right[:, 0], rtol=0, atol=1e-3)
        assert 0.7 - 1e-3 < scales.min() < 0.72 and 1.36 < scales.max() < 1.4 + 1e-3
        assert -20.1 < angles.min() < -19 and 19 < angles.max() < 20.1

    def test_colours_equal_a_slow_formula(self):
        """Principal components, then saturation, value and hue, pixel by pixel by Python's colorsys."""
        from hf_ssl.methods._random import uniform

        model, patches, seeds = self.model().eval(), torch.rand(4, 3, 5, 5), torch.arange(4)
        coloured = model.coloured(patches, seeds)
        draws = uniform(seeds, 10).double().numpy()
        axes = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]], dtype=float)
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)

        def between(draw, low, high):
            return low * (high / low) ** draw

        for patch, own, draw in zip(patches.double().numpy(), coloured, draws, strict=True):
            mean = patch.mean((1, 2))
            for y in range(5):
                for x in range(5):
                    components = axes @ (patch[:, y, x] - mean) * between(draw[:3], 0.5, 2.0)
                    rgb = np.clip(mean + axes.T @ components, 0, 1)
                    hue, *others = colorsys.rgb_to_hsv(*rgb)
                    others = [
                        np.clip(v ** between(p, 0.25, 4) * between(f, 0.7, 1.4) + 0.1 * (2 * s - 1), 0, 1)
                        for v, (p, f, s) in zip(others, (draw[3:6], draw[6:9]), strict=True)
                    ]
                    expected = colorsys.hsv_to_rgb((hue + 0.1 * (2 * draw[9] - 1)) % 1, *others)
                    np.testing.assert_allclose(own[:, y, x], expected, atol=1e-4)

    def test_colour_spaces(self):
        pixels = torch.rand(2, 3, 20, 20)
        pixels[0, :, :3] = pixels[0, :1, :3]  # greys
        pixels[0, :, 3], pixels[0, :, 4] = 0.0, 1.0
        hsv = rgb_to_hsv(pixels)
        expected = [colorsys.rgb_to_hsv(*pixel.tolist()) for pixel in pixels.permute(0, 2, 3, 1).reshape(-1, 3)]
        apart = hsv.permute(0, 2, 3, 1).reshape(-1, 3) - torch.tensor(expected)
        apart[:, 0] -= apart[:, 0].round()  # 1 is 0
        assert apart.abs().max() < 1e-5
        torch.testing.assert_close(hsv_to_rgb(hsv), pixels, rtol=0, atol=1e-5)

    def test_loss_equals_a_slow_formula(self):
        model, batch = self.model().eval(), self.batch()
        output, patches = model(**batch), model.exemplars(*batch.values())
        losses = []
        with torch.no_grad():
            for own, row in zip(patches, batch["sample_indices"], strict=True):
                for patch in own:
                    logits = model.head(model.embed(patch[None]))[0].double().numpy()
                    losses.append(np.log(np.exp(logits).sum()) - logits[row])
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert output.logits.shape == (16, 16)

    def test_triplets_equal_a_slow_formula(self):
        features = torch.nn.functional.normalize(torch.randn(4, 3, 5), dim=-1)
        rows = torch.tensor([2, 0, 2, 9])  # one row stands twice
        loss, accuracy, chance = triplet_loss(features, rows, 0.5)
        losses, right, by_chance = [], [], []
        for n in range(4):
            for k in range(3):
                cosine = {(m, i): (features[n, k] @ features[m, i]).item() for m in range(4) for i in range(3)}
                own = [cosine[n, j] for j in range(3) if j != k]
                others = [value for (m, _), value in cosine.items() if rows[m] != rows[n]]
                losses += [max(0.0, 0.5 + other - each) for each in own for other in others]
                right.append(max(own) > max(others))
                by_chance.append(2 / (2 + len(others)))
        assert loss.item() == pytest.approx(np.mean(losses), abs=1e-6)
        assert accuracy.item() == pytest.approx(np.mean(right)) and chance.item() == pytest.approx(np.mean(by_chance))

    def test_grey_images_and_vit(self):
        for backbone in (TINY_RESNET | dict(num_channels=1), TINY_VIT):
            config = ExemplarConfig(**self.config | dict(backbone_config=backbone))
            model, batch = ExemplarForPreTraining(config).train(), self.batch()
            batch["pixel_values"] = batch["pixel_values"][:, : backbone.get("num_channels", 3)]
            model(**batch).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="Patches of patch_size=12 px do not fit in images of 10 x 16 px"):
            self.model()(torch.zeros(2, 3, 10, 16), torch.arange(2))
        for wrong, message in (
            (dict(loss="best"), "loss must be one of softmax, triplet, found 'best'"),
            (dict(loss="triplet", transforms=1), "loss=triplet needs transforms of at least 2, found 1"),
            (dict(scale=(1.4, 0.7)), "scale must be two positive numbers, the smaller one first"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                ExemplarConfig(**wrong)


class TestExemplarTriplets(MethodTester):
    model_class = ExemplarForPreTraining
    config = TestExemplar.config | dict(loss="triplet", transforms=3)
    chance_loss = 0.5  # all features alike
    tolerance = TestExemplar.tolerance
    batch, inputs = TestExemplar.batch, TestExemplar.inputs
