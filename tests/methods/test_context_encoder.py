import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import ContextEncoderConfig, ContextEncoderForPreTraining
from hf_ssl.methods._holes import high_frequencies, random_blocks, random_regions
from hf_ssl.methods.context_encoder import ChannelwiseLinear

TINY = dict(backbone_config=TINY_RESNET, image_size=16, decoder_hidden_size=8, discriminator_hidden_size=8)


def waves(count, seed):
    """Images of one wave each, which can be told from any part of them."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    down, across, phase = torch.rand(3, count, 1, 1, generator=generator)
    return (0.5 * y * down + 0.5 * x * across + 6 * phase).sin()[:, None] * torch.tensor([1.0, 0.8, 0.6])[
        :, None, None
    ]


class TestContextEncoder(MethodTester):
    model_class = ContextEncoderForPreTraining
    config = TINY | dict(overlap=1)
    chance_loss = 0.5
    random_arguments = ("sample_seeds",)
    tolerance = 2e-5
    floor = 1e-6

    def batch(self, seed=0):
        seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": waves(8, seed), "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    @pytest.mark.parametrize("hole, overlap", [("centre", 1), ("blocks", 0), ("region", 2)])
    def test_loss_and_metrics_equal_a_slow_formula(self, hole, overlap):
        """Pixel by pixel: 10 in the border, 1 in the hole, over the number of both."""
        model = ContextEncoderForPreTraining(ContextEncoderConfig(**TINY | dict(hole=hole, overlap=overlap))).eval()
        batch = self.batch()
        output = model(**batch)
        hidden = model.holes(batch["pixel_values"], batch["sample_seeds"])[:, 0].numpy()
        images, fills = batch["pixel_values"].double().numpy(), output.logits.detach().double().numpy()
        top = 4 if hole == "centre" else 0  # of what is predicted
        losses, in_hole, around = [], [], []
        for image, fill, own in zip(images, fills, hidden, strict=True):
            assert own.any() and not own.all()
            pixels = list(zip(*own.nonzero(), strict=True))
            reach = lambda y, x, most: any(max(abs(y - i), abs(x - j)) <= most for i, j in pixels)  # noqa: B023, E731
            total, count = 0.0, 0
            near = [(y, x) for y in range(16) for x in range(16) if not own[y, x] and reach(y, x, 2)]
            for y, x in pixels + [each for each in near if reach(*each, overlap)]:
                error = ((fill[:, y - top, x - top] - image[:, y, x]) ** 2).mean()
                total, count = total + (1 if own[y, x] else 10) * error, count + 1
            losses.append(total / count)
            in_hole.append(np.mean([(fill[:, y - top, x - top] - image[:, y, x]) ** 2 for y, x in pixels]))
            mean = np.mean([image[:, y, x] for y, x in near], axis=0)
            around.append(np.mean([(mean - image[:, y, x]) ** 2 for y, x in pixels]))
        assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
        assert output.metrics["hole_l2"].item() == pytest.approx(np.mean(in_hole), rel=1e-5)
        assert output.metrics["surrounding_l2"].item() == pytest.approx(np.mean(around), rel=1e-5)

    def test_what_is_hidden_is_not_seen(self):
        """Whatever stands in the holes, the fill is the same, bit by bit; and not if anything else changes."""
        model, batch = self.model().eval(), self.batch()
        hidden = model.holes(batch["pixel_values"], batch["sample_seeds"])
        fill = model(**batch).logits
        batch["pixel_values"] = torch.where(hidden, 7.0, batch["pixel_values"])
        assert torch.equal(model(**batch).logits, fill)
        batch["pixel_values"] = torch.where(hidden, batch["pixel_values"], 1.1 * batch["pixel_values"])
        assert not torch.equal(model(**batch).logits, fill)

    def test_holes_belong_to_the_sample_and_can_be_handed_in(self):
        model, batch = self.model().eval(), self.batch()
        pixels, seeds = batch["pixel_values"], batch["sample_seeds"]
        hidden = model.holes(pixels, seeds)
        assert torch.equal(hidden[4:], model.holes(pixels[4:], seeds[4:])) and len(hidden.unique(dim=0)) == 8
        assert torch.equal(model(pixels, hidden=hidden[:, 0]).loss, model(**batch).loss)

    def test_a_hole_that_leaves_nothing_is_refused(self):
        model, pixels = self.model().eval(), self.batch()["pixel_values"]
        for wrong in (torch.zeros(8, 16, 16, dtype=torch.bool), torch.ones(8, 16, 16, dtype=torch.bool)):
            with pytest.raises(
                ValueError, match=r"^hidden must hide some pixels of each image and leave some, found \["
            ):
                model(pixels, hidden=wrong)
        with pytest.raises(ValueError, match=r"^hidden must be bool of shape \(8, 16, 16\), found torch.float32"):
            model(pixels, hidden=torch.ones(8, 16, 16))
        with pytest.raises(
            StrictDataclassError, match="overlap=4 leaves nothing of a hole of 8 px: expected at most 3"
        ):
            ContextEncoderConfig(**TINY | dict(hole="centre", overlap=4))
        centre = ContextEncoderForPreTraining(ContextEncoderConfig(**TINY | dict(hole="centre")))
        with pytest.raises(ValueError, match="^hidden cannot be handed in with hole=centre"):
            centre(pixels, hidden=torch.ones(8, 16, 16, dtype=torch.bool))

    @torch.no_grad()
    def test_the_picture_shows_the_fill_in_the_hole_alone(self):
        for hole in ("centre", "region"):
            model = ContextEncoderForPreTraining(ContextEncoderConfig(**TINY | dict(hole=hole))).eval()
            batch = self.batch()
            hidden = model.holes(batch["pixel_values"], batch["sample_seeds"]).expand(-1, 3, -1, -1)
            seen, filled, truth = model.pretext_lines(**batch)
            assert truth.images is batch["pixel_values"] and not seen.images[hidden].any()
            assert torch.equal(filled.images[~hidden], truth.images[~hidden])
            logits = torch.zeros_like(truth.images)
            model.window(logits).copy_(model(**batch).logits)
            assert torch.equal(filled.images[hidden], logits[hidden])
            for i, caption in enumerate(filled.captions):
                measured = model(**{name: value[i, None] for name, value in batch.items()}).metrics
                part = measured["hole_l2"] / measured["surrounding_l2"]
                assert caption == f"{100 * part:.0f}%" and filled.right[i] == (part < 1)

    def test_other_backbones(self):
        """Of ConvNeXt the norm of the pooled output is not on the way to the map: it stays as it is drawn."""
        convnext = dict(
            model_type="convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=16
        )
        alexnet = dict(model_type="ssl_alexnet", stride=1, hidden_sizes=[4, 4, 8, 8, 8])
        for backbone in (convnext, alexnet):
            model = ContextEncoderForPreTraining(ContextEncoderConfig(**TINY | dict(backbone_config=backbone))).train()
            model(**self.batch()).loss.backward()
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        with pytest.raises(ValueError, match="model_type 'vit' gives no map: choose a network with stages"):
            ContextEncoderForPreTraining(ContextEncoderConfig(**TINY | dict(backbone_config=TINY_VIT)))

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (dict(hole="round"), "hole must be one of centre, blocks, region, found 'round'"),
            (dict(adversarial_weight=1.0), "adversarial_weight must be below 1, found 1.0"),
            (dict(overlap=-1), "overlap must be at least 0, found -1"),
        ],
    )
    def test_impossible_configs_are_refused(self, wrong, message):
        with pytest.raises(StrictDataclassError, match=message):
            ContextEncoderConfig(**wrong)

    def test_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match="image_size=16 sees no other images: found 16 x 12"):
            self.model()(torch.zeros(2, 3, 16, 12))


class TestAdversary(MethodTester):
    """The paper's hole, border and discriminator."""

    model_class = ContextEncoderForPreTraining
    config = TINY | dict(hole="centre", overlap=1, adversarial_weight=0.1)
    chance_loss = 0.5  # of what is filled in: the loss of a game need not fall
    random_arguments = ("sample_seeds",)
    tolerance = 5e-5
    floor = 1e-6
    batch, inputs = TestContextEncoder.batch, TestContextEncoder.inputs

    @torch.no_grad()
    def _held_out_loss(self, model):
        model = copy.deepcopy(model)
        return np.mean([model(**self.batch(seed=1000 + i)).metrics["hole_l2"].item() for i in range(4)])

    def optimizer(self, model):
        """The discriminator's rate as the loop would have it."""
        groups = {True: [], False: []}
        for name, parameter in model.named_parameters():
            groups[name.startswith("discriminator.")].append(parameter)
        rate = 3e-3 * model.learning_rate_factors["discriminator"]
        return torch.optim.AdamW([{"params": groups[False]}, {"params": groups[True], "lr": rate}], lr=3e-3)

    @pytest.mark.parametrize("hole", ["centre", "region"])
    def test_both_players_have_the_gradients_of_two_optimizers(self, hole):
        """One backward pass, against one for each player; what the discriminator sees, and its labels."""
        config = TINY | dict(hole=hole, overlap=1, adversarial_weight=0.1)

        def build():
            torch.manual_seed(0)
            return ContextEncoderForPreTraining(ContextEncoderConfig(**config)).train()

        batch, model, other = self.batch(), build(), build()
        output = model(**batch)
        output.loss.backward()
        pixels = batch["pixel_values"]
        hidden = other.holes(pixels, batch["sample_seeds"])
        fill, _ = other.fill_in(pixels, hidden)
        square = pixels[..., 4:12, 4:12]
        fake, real = (fill, square) if hole == "centre" else (torch.where(hidden, fill, pixels), pixels)
        bce = F.binary_cross_entropy_with_logits
        on_fake, on_real = other.discriminator(fake), other.discriminator(real)
        fools = bce(on_fake, torch.ones_like(on_fake))
        judges = bce(on_fake, torch.zeros_like(on_fake)) + bce(on_real, torch.ones_like(on_real))
        region = F.max_pool2d(hidden.float(), 3, stride=1, padding=1)
        weights = torch.where(hidden, 1.0, 10 * region)
        if hole == "centre":
            region, weights = region[..., 4:12, 4:12], weights[..., 4:12, 4:12]
        truth = square if hole == "centre" else pixels
        l2 = (((fill - truth) ** 2 * weights).sum((1, 2, 3)) / (3 * region.sum((1, 2, 3)))).mean()
        assert output.loss.item() == pytest.approx((0.9 * l2 + 0.1 * fools + judges).item(), rel=1e-5)
        assert output.metrics["discriminator_loss"].item() == pytest.approx(judges.item(), rel=1e-5)
        judge = [name for name, _ in other.named_parameters() if name.startswith("discriminator.")]
        rest = [name for name, p in other.named_parameters() if name not in judge]
        for loss, names in ((0.9 * l2 + 0.1 * fools, rest), (judges, judge)):
            gradients = torch.autograd.grad(loss, [other.get_parameter(name) for name in names], retain_graph=True)
            for name, expected in zip(names, gradients, strict=True):
                torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-7)

    def test_only_what_has_an_adversary_learns_at_two_rates(self):
        assert self.model().learning_rate_factors == {"discriminator": 0.1}
        assert not ContextEncoderForPreTraining(ContextEncoderConfig(**TINY)).learning_rate_factors

    def test_half_precision_is_finite(self):
        model = self.model().train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**self.batch())
        output.loss.backward()
        assert output.loss.isfinite() and output.loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_regions_have_the_area_that_is_drawn_and_are_connected():
    """20 to 30%, uniformly; and their border is far shorter than that of as many scattered pixels."""
    draws = torch.rand(500, 147, generator=torch.Generator().manual_seed(0))
    hidden = random_regions(draws[:, :144].view(-1, 12, 12), draws[:, 144:146], draws[:, 146], 32, 32)
    parts = hidden.float().mean((1, 2))
    expected = 0.2 + 0.1 * draws[:, 146]
    torch.testing.assert_close(parts, expected, rtol=0, atol=0.6 / 32**2)
    assert hidden.float().mean(0).sub(0.25).abs().max() < 0.1  # 5 standard errors: no place is preferred
    borders = (hidden[:, 1:] != hidden[:, :-1]).float().mean()
    assert borders < 0.35 * 2 * 0.25 * 0.75


def test_blocks_cover_a_quarter_at_most():
    draws = torch.rand(500, 3, 8, generator=torch.Generator().manual_seed(0))
    hidden = random_blocks(draws, 32, 40)
    counts = hidden.sum((1, 2))
    assert counts.min() >= 16 and counts.max() <= 32 * 40 / 4 and counts.float().mean() > 0.18 * 32 * 40
    for own, drawn in zip(hidden[:20], draws[:20], strict=True):
        expected = np.zeros((32, 40), dtype=bool)
        for side, row, column in drawn.T.double().numpy():
            side = 4 + int(side * 5)
            top, left = int(row * (33 - side)), int(column * (41 - side))
            block = expected.copy()
            block[top : top + side, left : left + side] = True
            expected = block if block.sum() <= 320 else expected
        assert np.array_equal(own, expected)


def test_high_frequencies_of_known_patterns():
    """0 of a constant slope's long wave, 1 of noise, 2 of a chessboard; what lies outside the hole does not count."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 16:48, 16:48] = True
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    chessboard = ((y + x) % 2).float()[None, None]
    wave = (y * 2 * math.pi / 32).cos()[None, None]
    share = lambda image: high_frequencies(torch.where(hole, image, 100.0), hole).item()  # noqa: E731
    assert share(chessboard) == pytest.approx(2, rel=1e-3)
    assert share(noise) == pytest.approx(1, abs=0.05)
    expected = (1 - math.cos(2 * math.pi / 32)) / 2  # along one of the two axes
    assert share(wave) == pytest.approx(expected, rel=0.05)
    assert share(torch.ones(1, 1, 64, 64)) == 0


def test_no_channel_sees_another():
    layer = ChannelwiseLinear(3, 20)
    torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = layer(x)
    inputs, weight, bias = (each.detach().double().numpy() for each in (x, layer.weight, layer.bias))
    for n in range(2):
        for c in range(3):
            expected = np.maximum(inputs[n, c].ravel() @ weight[c] + bias[c], 0)
            np.testing.assert_allclose(out[n, c].detach().ravel(), expected, atol=1e-5)
    [gradient] = torch.autograd.grad(out[:, 1].sum(), x)
    assert gradient[:, 1].abs().sum() > 0 and not gradient[:, [0, 2]].any()
