import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester
from torch import nn

from hf_ssl import RelativePositionConfig, RelativePositionForPreTraining
from hf_ssl.methods.relative_position import drop_colours, neighbours, project_colours, resample

SIZES = dict(patch_size=8, gap=2, jitter=1, smallest_size=2, head_hidden_size=64)  # 30 px


class TestRelativePosition(MethodTester):
    model_class = RelativePositionForPreTraining
    config = dict(backbone_config=TINY_RESNET, **SIZES)
    chance_loss = -sum(n / 40 * math.log(n / 40) for n in (4, 6, 4, 6, 6, 4, 6, 4))  # of how often each label comes
    tolerance = 2e-5

    @property
    def fixed(self):
        """Batch norm without a learned scale."""
        return tuple(
            f"{name}."
            for name, module in self.model().backbone.named_modules(prefix="backbone")
            if hasattr(module, "running_mean")
        )

    def batch(self, seed=0):
        """Blobs that differ by where they lie: waves along both sides, whose phase tells the place."""
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
        image = torch.stack([y.sin() + 0.3 * x, (2 * x).cos() + 0.3 * y, (y * x).sin()])
        images = image + 0.2 * torch.randn(4, 3, 32, 32, generator=generator)
        return {"pixel_values": images, "sample_seeds": torch.randint(2**62, (4,), generator=generator)}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    @pytest.mark.parametrize("pairs", ["all", "centre"])
    @torch.no_grad()
    def test_the_picture_places_patches_as_the_model_says(self, pairs):
        torch.manual_seed(0)
        model = RelativePositionForPreTraining(RelativePositionConfig(**self.config, pairs=pairs)).eval()
        images, seeds = torch.rand(48, 3, 32, 32), torch.arange(48)
        patches, seen, placed = model.pretext_lines(images, None, seeds)
        first, second, labels = neighbours(pairs)
        answers = model(images, sample_seeds=seeds).logits.unflatten(0, (48, -1)).argmax(-1)
        place = lambda picture, at: picture[:, at // 3 * 9 : at // 3 * 9 + 8, at % 3 * 9 : at % 3 * 9 + 8]  # noqa: E731
        for i in range(48):
            pair = int(((first == 4) & (labels == i % 8)).nonzero())
            answer = int(answers[i, pair])
            to = answer + (answer > 3)  # the centre has no label
            assert torch.equal(place(placed.images[i], to), place(patches.images[i], int(second[pair])))
            assert torch.equal(place(placed.images[i], 4), place(patches.images[i], 4))
            empty = [at for at in range(9) if at not in (4, to)]
            assert all((place(placed.images[i], at) == patches.images.amax()).all() for at in empty)
            assert placed.right[i] == (answer == i % 8)
        assert 0 < placed.right.sum() < 48 and seen.images.shape == patches.images.shape

    def test_pairs_and_labels(self):
        """1 2 3 / 4 . 5 / 6 7 8 of the original, counted from 0, of the second patch seen from the first, in both
        orders."""
        found = set(zip(*(each.tolist() for each in neighbours("all")), strict=True))
        expected = set()
        for first in range(9):
            for second in range(9):
                dy, dx = second // 3 - first // 3, second % 3 - first % 3
                if first != second and max(abs(dy), abs(dx)) == 1:
                    place = 3 * (dy + 1) + dx + 1
                    expected.add((first, second, place - (place > 4)))
        assert found == expected and len(found) == 40
        for first, second, label in found:
            assert (second, first, 7 - label) in found
        centre = list(zip(*(each.tolist() for each in neighbours("centre")), strict=True))
        assert len(centre) == 16 and sorted(label for *_, label in centre) == sorted(2 * list(range(8)))

    def test_patches_equal_slow_cuts(self):
        """With nothing done to them, patches are what slices of the image are, on a grid with a gap, within the
        jitter."""
        config = dict(self.config, colour="keep", resampling_probability=0.0, normalize_patches=False)
        model = RelativePositionForPreTraining(RelativePositionConfig(**config))
        images, seeds = torch.randn(16, 3, 33, 40), torch.arange(16)
        patches = model.patches(images, seeds)
        tops, lefts = model.places((33, 40), seeds)
        for n in range(16):
            for patch in range(9):
                top, left = tops[n, patch].item(), lefts[n, patch].item()
                assert torch.equal(patches[n, patch], images[n, :, top : top + 8, left : left + 8])
        for starts, side in ((tops, 33), (lefts, 40)):
            assert starts.min() >= 0 and starts.max() <= side - 8
        steps = tops.view(-1, 3, 3)[:, 1:] - tops.view(-1, 3, 3)[:, :-1]
        assert steps.min() == 10 - 2 and steps.max() == 10 + 2  # 8 px and a gap of 2, either jittered by 1
        assert set(tops.unique().tolist()) == {10 * step + shift for step in range(3) for shift in range(6)}

    def test_loss_equals_a_slow_formula(self):
        """The mean over pairs, one at a time, of -log p(place | both patches)."""
        model, batch = self.model().eval(), self.batch()
        output = model(**batch)
        patches = model.patches(**{"images": batch["pixel_values"], "seeds": batch["sample_seeds"]})
        losses, hits = [], []
        with torch.no_grad():
            for image in patches:
                for first, second, label in zip(*neighbours("all"), strict=True):
                    pair = torch.cat([model.embed(image[None, first]), model.embed(image[None, second])], dim=1)
                    logits = model.head(pair)[0].double().numpy()
                    losses.append(np.log(np.exp(logits).sum()) - logits[label])
                    hits.append(logits.argmax() == label.item())
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert output.metrics["accuracy"].item() == pytest.approx(np.mean(hits))
        assert output.metrics["chance"].item() == pytest.approx(6 / 40)

    def test_colours(self):
        patches, seeds = 0.3 + torch.rand(300, 3, 8, 8), torch.arange(300)
        dropped = drop_colours(patches, seeds)
        spreads = dropped.std((2, 3))
        kept = spreads.argmax(1)
        assert kept.bincount().min() > 70  # each channel of three
        for i in range(300):
            channel = patches[i, kept[i]]
            torch.testing.assert_close(dropped[i, kept[i]], channel - channel.mean(), rtol=0, atol=1e-6)
            others = spreads[i][torch.arange(3) != kept[i]]
            assert (others / spreads[i, kept[i]]).numpy() == pytest.approx(0.01, rel=0.5)
        projected = project_colours(patches)
        a = np.array([[-1.0, 2.0, -1.0]])
        matrix = np.eye(3) - a.T @ a / (a @ a.T)
        expected = np.einsum("dc,nchw->ndhw", matrix, patches.double().numpy())
        np.testing.assert_allclose(projected, expected, atol=1e-6)

    def test_resampling(self):
        """A third of the patches go by way of a smaller size, as interpolating twice does it."""
        patches, seeds = torch.rand(400, 3, 12, 12), torch.arange(400)
        resampled = resample(patches, seeds, 0.33, 3)
        same = (resampled - patches).abs().amax((1, 2, 3)) < 1e-5
        assert 0.58 < same.float().mean() < 0.76
        sides = set()
        for before, after in zip(patches[~same], resampled[~same], strict=True):
            ways = {}
            for side in range(3, 12):
                small = nn.functional.interpolate(before[None], side, mode="bilinear")
                ways[side] = nn.functional.interpolate(small, 12, mode="bilinear")[0]
            sides |= {side for side, way in ways.items() if torch.allclose(way, after, atol=1e-5)}
        assert sides == set(range(3, 11))

    def test_patches_are_normalised(self):
        patches = self.model().patches(*self.batch().values())
        torch.testing.assert_close(patches.mean((2, 3, 4)), torch.zeros(4, 9), rtol=0, atol=1e-5)
        torch.testing.assert_close(patches.square().mean((2, 3, 4)), torch.ones(4, 9), rtol=0, atol=1e-4)

    def test_a_learned_scale(self):
        model = RelativePositionForPreTraining(RelativePositionConfig(**self.config, learned_scale=True)).train()
        assert all(parameter.requires_grad for parameter in model.parameters())
        model(**self.batch()).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_vit(self):
        config = RelativePositionConfig(backbone_config=TINY_VIT | dict(image_size=32), **SIZES, pairs="centre")
        model = RelativePositionForPreTraining(config).train()
        output = model(**self.batch())
        output.loss.backward()
        assert output.logits.shape == (4 * 16, 8)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert model.embed(**self.inputs()).shape == (4, 32)  # of whole images, in the size that the network is for

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="gap=2 and jitter=1 need images of at least 30 px, found 24 x 32"):
            self.model()(torch.zeros(2, 3, 24, 32))
        grey = TINY_RESNET | dict(num_channels=1)
        with pytest.raises(ValueError, match="colour='drop' needs images of 3 channels, found 1: set colour=keep"):
            RelativePositionForPreTraining(RelativePositionConfig(backbone_config=grey, **SIZES))
        for wrong, message in (
            (dict(colour="red"), "colour must be one of drop, project, keep, found 'red'"),
            (dict(pairs="some"), "pairs must be one of all, centre, found 'some'"),
            (dict(smallest_size=96), "smallest_size must be less than patch_size=96, found 96"),
            (dict(gap=-1), "gap must be at least 0, found -1"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                RelativePositionConfig(**wrong)
