import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_colorization import slow_lab
from methods.test_instance_discrimination import RECORDED, RECORDED_ROWS, bank_of_sines, recorded_noise
from methods.tester import TINY_RESNET, MethodTester, sines
from torch import nn

from hf_ssl import CMCConfig, CMCForPreTraining
from hf_ssl.methods._two_halves import LAB_MEAN, LAB_STD


def halves(conversion, **changes):
    config = {f"{half}_config": TINY_RESNET | dict(num_channels=n) for half, n in (("first", 1), ("second", 2))}
    return dict(model_type="ssl_two_halves", conversion=conversion) | config | changes


TINY = dict(backbone_config=halves("lab"), num_samples=16, projection_size=12, temperature=0.2)


class TestCMC(MethodTester):
    model_class = CMCForPreTraining
    config = TINY | dict(loss="softmax")
    chance_loss = 2 * math.log(16)
    tolerance = 2e-5
    brings_its_code = True

    def batch(self, seed=0):
        """Eight of sixteen rows, each of which is always the same picture of waves, under noise."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(16, generator=generator)[:8]
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        waves = torch.stack([(y * (0.2 + row % 4 / 3) + x * (0.1 + row // 4 / 3)).sin() for row in rows])
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(7))[rows]
        images = 0.3 + 0.2 * waves[:, None] + 0.3 * colours + 0.02 * torch.randn(8, 3, 16, 16, generator=generator)
        seeds = torch.randint(2**62, (8,), generator=generator)
        return {"pixel_values": images.clamp(0, 1), "sample_indices": rows, "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    @torch.no_grad()
    def queries(self, model, pixel_values):
        """What each half makes of its view, seen alone."""
        first, second = model.backbone.split(pixel_values)
        made = [
            model.first_projector(model.backbone.first(first).pooler_output.flatten(1)).double().numpy(),
            model.second_projector(model.backbone.second(second).pooler_output.flatten(1)).double().numpy(),
        ]
        return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in made]

    def test_loss_equals_a_slow_formula(self):
        """Each view is compared with the other's bank, and goes into its own after the loss."""
        model, batch = self.model().eval(), self.batch()
        queries, rows = self.queries(model, batch["pixel_values"]), batch["sample_indices"].numpy()
        banks = [bank.double().numpy().copy() for bank in (model.first_bank, model.second_bank)]
        losses = []
        for own, other in zip(queries, reversed(banks), strict=True):
            scores = own @ other.T / 0.2
            losses.append(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(8), rows]))
        output = model(**batch)
        assert output.loss.item() == pytest.approx(sum(losses), abs=1e-5)
        assert output.metrics["first_loss"].item() == pytest.approx(losses[0], abs=1e-5)
        assert output.metrics["nats"].item() == pytest.approx(math.log(16) - np.mean(losses), abs=1e-5)
        np.testing.assert_allclose(output.logits.detach(), queries[0] @ banks[1].T / 0.2, atol=1e-4)
        model.training = True  # as training does it, with the statistics of evaluation
        assert torch.equal(model(**batch).loss, output.loss)
        for made, bank, found in zip(queries, banks, (model.first_bank, model.second_bank), strict=True):
            moved = 0.5 * bank[rows] + 0.5 * made
            bank[rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
            np.testing.assert_allclose(found, bank, atol=1e-6)

    def test_banks_begin_with_what_each_half_makes_of_all_rows(self):
        model, images = self.model().eval(), torch.rand(16, 3, 16, 16)
        with torch.no_grad():
            features = model.embed(images)
        model.before_epoch(0, lambda: features)
        for bank, expected in zip((model.first_bank, model.second_bank), self.queries(model, images), strict=True):
            np.testing.assert_allclose(bank, expected, atol=1e-5)
        model.before_epoch(1, lambda: 1 / 0)

    def test_grey_images_have_no_colours(self):
        """In three equal channels they can only be told by what the second half makes of them."""
        model, grey = self.model().eval(), torch.rand(16, 1, 16, 16).expand(16, 3, 16, 16)
        with (
            torch.no_grad(),
            pytest.raises(
                ValueError,
                match="All images are the same to the second half.*set backbone_config.conversion=gradients",
            ),
        ):
            model.before_epoch(0, lambda: model.embed(grey))
        with pytest.raises(StrictDataclassError, match="conversion=lab needs num_channels=3.*found 1: grey images"):
            CMCConfig(**TINY | dict(backbone_config=halves("lab", num_channels=1)))

    @torch.no_grad()
    def test_the_picture_says_where_the_own_row_stands(self):
        model, batch = self.model().eval(), self.batch()
        first, _ = self.queries(model, batch["pixel_values"])
        scores, rows = first @ model.second_bank.double().numpy().T, batch["sample_indices"]
        image, *seen, nearest = model.pretext_lines(**batch)
        assert [line.name for line in seen] == ["L", "a", "b"]
        assert all(line.images.shape == (8, 3, 16, 16) for line in seen)
        assert all(line.images.min() == 0 and line.images.max() == 1 for line in seen)
        for i in range(8):
            place = 1 + sum(score > scores[i, rows[i]] for score in scores[i])
            assert image.captions[i] == f"place {place}" and image.right[i] == (place == 1)
            other = max((j for j in range(8) if j != i), key=lambda j: scores[i, rows[j]])
            assert torch.equal(nearest.images[i], batch["pixel_values"][other])

    def test_half_precision_is_finite(self):
        for loss in ("nce", "softmax"):
            model = CMCForPreTraining(CMCConfig(**TINY | dict(loss=loss, temperature=0.02))).train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (dict(loss="best"), "loss must be one of nce, softmax, found 'best'"),
            (dict(temperature=0.0), "temperature must be positive, found 0.0"),
            (dict(bank_momentum=1.0), r"bank_momentum must lie in \[0, 1\), found 1.0"),
        ],
    )
    def test_impossible_configs_are_refused(self, wrong, message):
        with pytest.raises(StrictDataclassError, match=message):
            CMCConfig(**wrong)
        with pytest.raises(ValueError, match="must be of model_type 'ssl_two_halves', found 'resnet'"):
            CMCForPreTraining(CMCConfig(backbone_config=TINY_RESNET))


class TestGradients(MethodTester):
    """Brightness and gradients of grey images, by NCE."""

    model_class = CMCForPreTraining
    config = TINY | dict(backbone_config=halves("gradients", num_channels=1), noise_samples=6)
    chance_loss = 2 * (math.log(7) + 6 * math.log(7 / 6))
    tolerance = 2e-5
    brings_its_code = True
    inputs, queries = TestCMC.inputs, TestCMC.queries

    def batch(self, seed=0):
        batch = TestCMC.batch(self, seed)
        return batch | {"pixel_values": batch["pixel_values"].mean(1, keepdim=True)}

    def test_loss_equals_a_slow_formula(self):
        """Each direction has a normaliser of its own, n times the mean over its first batch."""
        model, batch = self.model(), self.batch()
        noise = torch.randint(16, (8, 6), generator=torch.Generator().manual_seed(0))
        rows, total, recognized = np.concatenate([batch["sample_indices"][:, None], noise], axis=1), 0, []
        banks = [bank.double().numpy() for bank in (model.second_bank, model.first_bank)]
        for own, bank in zip(self.queries(model.eval(), batch["pixel_values"]), banks, strict=True):
            scores = np.exp(np.einsum("np,nmp->nm", own, bank[rows]) / 0.2)
            density = scores / (16 * scores.mean())
            h = density / (density + 6 / 16)
            total += np.mean(-np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(1))
            recognized.append(h[:, 0].mean())
        output = model(**batch, noise=noise)
        assert output.loss.item() == pytest.approx(total, rel=1e-5)
        assert output.metrics["recognized"].item() == pytest.approx(np.mean(recognized), rel=1e-4)


class Given(CMCForPreTraining):
    """The vectors of both halves are given in place of images."""

    def __init__(self, config):
        super().__init__(config)
        self.first_projector = self.second_projector = nn.Identity()
        self.widths = [4, 4]

    def embed(self, pixel_values):
        return pixel_values


@pytest.mark.parametrize(
    "loss, recorded",
    [
        (
            "nce",
            [
                (5.92563915, 5.43310404, -0.22579893, 0.26227626, 47.01919937, 51.21379852),
                (2.87508059, 3.43270183, -0.12494099, -0.64495486, 42.50152206, 46.81703186),
            ],
        ),
        (
            "softmax",
            [
                (6.86156082, 6.03110886, -0.17098196, 0.23889819, 47.01919937, 51.21379852),
                (3.50617409, 3.84911108, -0.10545516, -0.62736601, 42.50152206, 46.81703186),
            ],
        ),
    ],
)
def test_loss_gradient_and_banks_are_those_of_the_authors_code(loss, recorded):
    """Recorded, over two batches of which the first fixes both Z, from NCEAverage of NCE/NCEAverage.py, given the rows to
    compare with, and NCECriterion of NCE/NCECriterion.py; for the softmax NCESoftmaxLoss, against all other rows. Commit
    7b227be."""
    config = CMCConfig(**RECORDED | dict(backbone_config=halves("lab"), num_samples=20, loss=loss))
    model = Given(config).train()
    banks = model.first_bank, model.second_bank
    for bank, phase in zip(banks, (0.1, 0.6), strict=True):
        bank.copy_(bank_of_sines(phase, 20))
    noise = recorded_noise(20) if loss == "nce" else None
    for phases, (of_first, of_second, *others) in zip(((0.2, 0.7), (0.3, 0.8)), recorded, strict=True):
        vectors = [sines(phase, 5, 4).requires_grad_() for phase in phases]
        output = model(torch.cat(vectors, dim=1), RECORDED_ROWS, noise=noise)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(of_first + of_second, abs=1e-5)
        assert output.metrics["first_loss"].item() == pytest.approx(of_first, abs=1e-5)
        found = [(each.grad * sines(0.4, 5, 4)).sum().item() for each in vectors]
        assert found == pytest.approx(others[:2], abs=1e-5)
        assert [(bank * sines(0.5, 20, 4)).sum().item() for bank in banks] == pytest.approx(others[2:], rel=1e-6)
    if loss == "nce":
        found = [each.log_normalizer.exp().item() for each in (model.first_nce, model.second_nce)]
        assert found == pytest.approx([310.6030884, 504.8008423], rel=1e-6)


def test_lab_equals_a_slow_formula():
    """CIE 1976 of sRGB, pixel by pixel; grey has next to no a and b, and known colours have their values."""
    model = CMCForPreTraining(CMCConfig(**TINY)).backbone
    pixels = torch.rand(1, 3, 5, 4)
    pixels[0, :, 0] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.02, 0.02, 0.02]]).T
    lab = model.convert(pixels) * torch.tensor(LAB_STD).view(3, 1, 1) + torch.tensor(LAB_MEAN).view(3, 1, 1)
    for y in range(5):
        for x in range(4):
            expected = slow_lab(pixels[0, :, y, x].tolist())
            np.testing.assert_allclose(lab[0, :, y, x], expected, atol=1e-3)
    known = [(53.24, 80.09, 67.20), (87.74, -86.18, 83.18), (32.30, 79.19, -107.86)]  # red, green, blue
    np.testing.assert_allclose(lab[0, :, 0, :3].T, known, atol=0.05)
    assert lab[0, 1:, 0, 3].abs().max() < 1e-3
