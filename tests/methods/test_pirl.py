import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.test_instance_discrimination import RECORDED, RECORDED_ROWS, bank_of_sines, recorded_noise
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester, sines
from torch import nn

from hf_ssl import PIRLConfig, PIRLForPreTraining

TINY = dict(backbone_config=TINY_RESNET, num_samples=16, projection_size=12, tile_size=8)


def unit(rows):
    rows = rows.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestPIRL(MethodTester):
    model_class = PIRLForPreTraining
    config = TINY | dict(loss="softmax", temperature=0.2)
    chance_loss = math.log(16)
    tolerance = 2e-5

    def batch(self, seed=0):
        """Eight of sixteen rows, each of which is always the same picture of waves, under noise; two crops of each."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(16, generator=generator)[:8]
        y, x = torch.meshgrid(torch.arange(27.0), torch.arange(27.0), indexing="ij")
        waves = torch.stack([(y * (0.2 + row % 4 / 3) + x * (0.1 + row // 4 / 3)).sin() for row in rows])
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(7))[rows]
        images = waves[:, None] * (0.4 + colours)
        views = (images + 0.1 * torch.randn(8, 3, 27, 27, generator=generator) for _ in range(2))
        seeds = torch.randint(2**62, (8,), generator=generator)
        names = ("pixel_values", "pixel_values_2", "sample_indices", "sample_seeds")
        return dict(zip(names, (*views, rows, seeds), strict=True))

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    @torch.no_grad()
    def queries(self, model, batch):
        """What the model makes of image and tiles, tile by tile."""
        tiles = model.shuffled_tiles(batch["pixel_values_2"], batch["sample_seeds"])
        described = [model.tile_projector(model.embed(tiles[:, place])) for place in range(9)]
        image = model.projector(model.embed(batch["pixel_values"]))
        return unit(image), unit(model.tiles_projector(torch.cat(described, dim=1)))

    @pytest.mark.parametrize("weight", [0.5, 0.8])
    def test_loss_equals_a_slow_formula(self, weight):
        """Both are compared with the whole bank; it takes the image's vector, not the tiles', after the loss."""
        model = PIRLForPreTraining(PIRLConfig(**self.config | dict(tiles_weight=weight))).eval()
        batch, bank = self.batch(), model.bank.double().numpy().copy()
        image, tiles = self.queries(model, batch)
        losses = []
        for queries in (image, tiles):
            scores = queries @ bank.T / 0.2
            own = scores[np.arange(8), batch["sample_indices"]]
            losses.append(np.mean(np.log(np.exp(scores).sum(1)) - own))
        output = model(**batch)
        assert output.loss.item() == pytest.approx((1 - weight) * losses[0] + weight * losses[1], abs=1e-5)
        np.testing.assert_allclose(output.logits.detach(), scores, atol=1e-4)
        assert output.metrics["image_loss"].item() == pytest.approx(losses[0], abs=1e-5)
        assert output.metrics["nats"].item() == pytest.approx(math.log(16) - losses[1], abs=1e-5)
        model.training = True  # as training does it, with the statistics of evaluation
        assert torch.equal(model(**batch).loss, output.loss)
        for own, row in zip(image, batch["sample_indices"], strict=True):
            moved = 0.5 * bank[row] + 0.5 * own
            bank[row] = moved / np.linalg.norm(moved)
        np.testing.assert_allclose(model.bank, bank, atol=1e-6)

    def test_without_another_crop_the_tiles_are_those_of_the_image(self):
        model, batch = self.model().eval(), self.batch()
        del batch["pixel_values_2"]
        expected = model(**batch, pixel_values_2=batch["pixel_values"])
        assert torch.equal(model(**batch).loss, expected.loss)

    def test_tiles_come_from_all_cells_in_any_order(self):
        """Each tile is a square of its cell; each cell stands equally often in each slot; all orders differ."""
        rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(27.0), indexing="ij")
        images = torch.stack([rows, columns])[None].expand(2000, 2, 30, 27)  # a pixel says where it is
        tiles = self.model().shuffled_tiles(images, torch.arange(2000))
        assert tiles.shape == (2000, 9, 2, 8, 8)
        tops, lefts = tiles[:, :, 0, 0, 0], tiles[:, :, 1, 0, 0]
        assert torch.equal(tiles[..., 0, :, :], (tops[..., None] + torch.arange(8))[..., None].expand(2000, 9, 8, 8))
        cells = (tops // 10 * 3 + lefts // 9).long()
        assert (tops % 10 <= 2).all() and (lefts % 9 <= 1).all()
        assert set(zip((tops % 10).flatten().tolist(), (lefts % 9).flatten().tolist(), strict=True)) == {
            (top, left) for top in (0, 1, 2) for left in (0, 1)
        }
        assert torch.equal(cells.sort(1).values, torch.arange(9).expand(2000, 9))
        for slot in range(9):
            counts = cells[:, slot].bincount(minlength=9)
            assert ((counts - 2000 / 9) ** 2 / (2000 / 9)).sum() < 26.1  # chi-squared, 8: p = 1e-3
        assert Counter(map(tuple, cells.tolist())).most_common(1)[0][1] <= 3  # of 9! orders
        again = self.model().shuffled_tiles(images[:3], torch.tensor([7, 0, 7]))
        assert torch.equal(again[0], tiles[7]) and torch.equal(again[1], tiles[0])

    def test_the_grid_may_be_another(self):
        model = PIRLForPreTraining(PIRLConfig(**self.config | dict(grid=2, tile_size=12))).train()
        assert model.shuffled_tiles(torch.randn(2, 3, 27, 27), torch.arange(2)).shape == (2, 4, 3, 12, 12)
        model(**self.batch()).loss.backward()
        assert model.tiles_projector.in_features == 4 * 12 and model.tiles_projector.weight.grad.abs().sum() > 0

    def test_the_bank_begins_with_what_the_network_makes_of_all_rows(self):
        model, features = self.model(), torch.randn(16, 16)
        model.before_epoch(0, lambda: features)
        begun = model.bank.clone()
        expected = F.normalize(features @ model.projector.weight.T + model.projector.bias, dim=1)
        torch.testing.assert_close(begun, expected, rtol=0, atol=1e-6)
        model.before_epoch(1, lambda: 1 / 0)
        assert torch.equal(model.bank, begun)

    @torch.no_grad()
    def test_the_picture_says_where_the_own_row_stands(self):
        """Of tiles that are normalised as in training; no statistics are kept."""
        model, batch = self.model().eval(), self.batch()
        del batch["pixel_values_2"]
        with torch.no_grad():
            tiles = model.shuffled_tiles(batch["pixel_values"], batch["sample_seeds"])
            queries = model.tiles_queries(copy.deepcopy(model.backbone).train(), tiles).double().numpy()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        scores, rows = queries @ model.bank.double().numpy().T, batch["sample_indices"]
        image, shuffled, nearest = model.pretext_lines(**batch)
        assert shuffled.images.shape == (8, 3, 26, 26) and torch.equal(image.images, batch["pixel_values"])
        for i in range(8):
            place = 1 + sum(score > scores[i, rows[i]] for score in scores[i])
            assert shuffled.captions[i] == f"place {place}" and shuffled.right[i] == (place == 1)
            other = max((j for j in range(8) if j != i), key=lambda j: scores[i, rows[j]])
            assert torch.equal(nearest.images[i], batch["pixel_values"][other])

        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    def test_half_precision_is_finite(self):
        for loss in ("nce", "softmax"):
            config = PIRLConfig(**self.config | dict(loss=loss, temperature=0.02))
            model = PIRLForPreTraining(config).train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_grey_images_and_vit(self):
        for backbone in (TINY_RESNET | dict(num_channels=1), TINY_VIT | dict(image_size=27, patch_size=3)):
            model, batch = PIRLForPreTraining(PIRLConfig(**self.config | dict(backbone_config=backbone))), self.batch()
            for name in ("pixel_values", "pixel_values_2"):
                batch[name] = batch[name][:, : backbone.get("num_channels", 3)]
            output = model.train()(**batch, output_hidden_states=True)
            output.loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
            assert all(len(layer) == 8 for layer in output.hidden_states)  # of images alone, not of tiles

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="3 x 3 tiles of 8 px need images of at least 24 px, found 27 x 23: set"):
            self.model().check_images(27, 23)
        for wrong, message in (
            (dict(loss="best"), "loss must be one of nce, softmax, found 'best'"),
            (dict(grid=1), "grid must be at least 2, found 1"),
            (dict(temperature=0.0), "temperature must be positive, found 0.0"),
            (dict(bank_momentum=1.0), r"bank_momentum must lie in \[0, 1\), found 1.0"),
            (dict(tiles_weight=1.5), r"tiles_weight must lie in \[0, 1\], found 1.5"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                PIRLConfig(**wrong)


class TestNoise(MethodTester):
    model_class = PIRLForPreTraining
    config = TINY | dict(noise_samples=6, temperature=0.2)
    chance_loss = math.log(7) + 6 * math.log(7 / 6)
    tolerance = 2e-5
    batch, inputs, queries = (getattr(TestPIRL, name) for name in ("batch", "inputs", "queries"))

    def test_loss_equals_a_slow_formula(self):
        """Equation 5; the sum over negatives of equation 4 is m times a mean, that of the exponentials of the first batch."""
        model = self.model()
        bank, means = model.bank.double().numpy().copy(), [None, None]
        for step in range(2):
            batch = self.batch(step)
            noise = torch.randint(16, (8, 6), generator=torch.Generator().manual_seed(step))
            queries = self.queries(model.eval(), batch)
            totals, recognized = [], []
            for place, own in enumerate(queries):
                rows = np.concatenate([batch["sample_indices"][:, None], noise], axis=1)  # (8, 7)
                scores = np.exp(np.einsum("np,nmp->nm", own, bank[rows]) / 0.2)
                means[place] = scores.mean() if means[place] is None else means[place]
                h = scores / (scores + 6 * means[place])
                totals.append(np.mean(-np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(1)))
                recognized.append(h[:, 0].mean())
            output = model(**batch, noise=noise)
            assert output.loss.item() == pytest.approx(np.mean(totals), rel=1e-5)
            assert output.metrics["recognized"].item() == pytest.approx(recognized[1], rel=1e-4)
            assert output.metrics["chance"].item() == pytest.approx(1 / 7)
            for module in (model, model.image_nce, model.tiles_nce):
                module.training = True  # as training does it, with the statistics of evaluation
            assert model(**batch, noise=noise).loss.item() == pytest.approx(np.mean(totals), rel=1e-5)
            bank = model.bank.double().numpy().copy()

    def test_noise_follows_from_the_seeds(self):
        model, batch = self.model().eval(), self.batch()
        assert torch.equal(model(**batch).loss, model(**batch).loss)
        other = model(**batch | {"sample_seeds": batch["sample_seeds"] + 1})
        assert other.loss != model(**batch).loss


class Given(PIRLForPreTraining):
    """The vectors of image and tiles are given in place of both crops."""

    def __init__(self, config):
        super().__init__(config)
        self.projector = nn.Identity()

    def embed(self, pixel_values):
        return pixel_values

    def shuffled_tiles(self, images, seeds):
        return images

    def tiles_queries(self, backbone, tiles):
        return F.normalize(tiles, dim=1)


@pytest.mark.parametrize(
    "loss, recorded",
    [
        (
            "nce",
            [(5.58635569, -0.05012702, 0.12974431, 46.06927872), (3.15181899, -0.08538865, 0.10462431, 42.55065918)],
        ),
        (
            "softmax",
            [(6.25698280, -0.09562954, 0.11944920, 46.06927872), (3.55915117, -0.10618074, 0.18070000, 42.55065918)],
        ),
    ],
)
def test_loss_gradient_and_bank_are_those_of_the_authors_code(loss, recorded):
    """Recorded, over two batches, from NCELossWithMemory of vissl/losses/nce_loss.py, commit 09270ed, given the draws; for
    the softmax with loss_type "cross_entropy" against all other rows. Its one Z is that of the tiles in the first batch,
    which the images' loss is given here; its epsilon is 1.19e-7, ours 1e-7."""
    model = Given(PIRLConfig(**RECORDED, num_samples=20, loss=loss)).train()
    model.bank.copy_(bank_of_sines(0.1, 20))
    noise, normalizer = None, 447.0492859
    if loss == "nce":
        noise = recorded_noise(20)
        model.image_nce.log_normalizer.fill_(math.log(normalizer))
        model.image_nce.normalized.fill_(1)
    for phases, (expected, of_tiles, of_image, moved) in zip(((0.2, 0.7), (0.3, 0.8)), recorded, strict=True):
        tiles, image = (sines(phase, 5, 4).requires_grad_() for phase in phases)
        output = model(image, RECORDED_ROWS, pixel_values_2=tiles, noise=noise)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)
        found = [(each.grad * sines(0.4, 5, 4)).sum().item() for each in (tiles, image)]
        assert found == pytest.approx([of_tiles, of_image], abs=1e-5)
        assert (model.bank * sines(0.5, 20, 4)).sum().item() == pytest.approx(moved, rel=1e-6)
    if loss == "nce":
        assert model.tiles_nce.log_normalizer.exp().item() == pytest.approx(normalizer, rel=1e-6)
