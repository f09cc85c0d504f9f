import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester, on_vectors, sines
from processes import on_pair
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ssl import InstanceDiscriminationConfig, InstanceDiscriminationForPreTraining
from hf_ssl.methods import _noise_contrastive
from hf_ssl.methods._contrastive import CHUNK, bank_cross_entropy
from hf_ssl.methods._distributed import own_part
from hf_ssl.methods._memory import move_rows
from hf_ssl.methods._noise_contrastive import NoiseContrastiveLoss

TINY = dict(backbone_config=TINY_RESNET, num_samples=16, projection_size=12)
# what losses of the authors' code are recorded for: vectors (5, 4) and banks (n, 4) of sines, the rows these vectors have
RECORDED = dict(backbone_config=TINY_RESNET, projection_size=4, noise_samples=6, temperature=0.2)
RECORDED_ROWS = torch.tensor([3, 14, 0, 7, 11])


def chance(draws):
    """The loss of NCE when h is that of ignorance everywhere."""
    return math.log(1 + draws) + draws * math.log(1 + 1 / draws)


class TestInstanceDiscrimination(MethodTester):
    model_class = InstanceDiscriminationForPreTraining
    config = TINY | dict(noise_samples=6, temperature=0.2)
    chance_loss = chance(6)
    tolerance = 2e-5

    def batch(self, seed=0):
        """Eight of sixteen rows, each of which is always the same picture of waves, under noise."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(16, generator=generator)[:8]
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        waves = torch.stack([(y * (0.2 + row % 4 / 3) + x * (0.1 + row // 4 / 3)).sin() for row in rows])
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(7))[rows]
        images = waves[:, None] * (0.4 + colours) + 0.1 * torch.randn(8, 3, 16, 16, generator=generator)
        seeds = torch.randint(2**62, (8,), generator=generator)
        return {"pixel_values": images, "sample_indices": rows, "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def queries(self, model, pixel_values):
        with torch.no_grad():
            projections = model.projector(model.embed(pixel_values)).double().numpy()
        return projections / np.linalg.norm(projections, axis=1, keepdims=True)

    @pytest.mark.parametrize("num_samples", [16, 200], ids=["the whole bank is scored", "the draws are"])
    def test_equals_a_slow_formula(self, num_samples):
        """Equations 4 to 7 of the paper with the constants of the code, draw by draw; Z is that of the first batch, which
        counts the own rows; draws may hit the own row and each other."""
        config = self.config | dict(num_samples=num_samples)
        model = InstanceDiscriminationForPreTraining(InstanceDiscriminationConfig(**config))
        bank, normalizer = model.bank.double().numpy().copy(), None
        for step in range(2):
            batch = self.batch(step)
            noise = torch.randint(num_samples, (8, 6), generator=torch.Generator().manual_seed(step))
            noise[0, :3] = batch["sample_indices"][0]
            v = self.queries(model.eval(), batch["pixel_values"])
            score = lambda i, row: math.exp(v[i] @ bank[row] / 0.2)  # noqa: B023, E731
            rows = [[int(own), *draws] for own, draws in zip(batch["sample_indices"], noise.tolist(), strict=True)]
            if normalizer is None:
                normalizer = num_samples * np.mean([score(i, row) for i in range(8) for row in rows[i]])
            losses, recognized = [], []
            density = 6 / num_samples
            for i in range(8):
                own, *draws = (score(i, row) / normalizer for row in rows[i])
                loss = -math.log(own / (own + density + 1e-7))
                losses.append(loss - sum(math.log(density / (p + density + 1e-7)) for p in draws))
                recognized.append(own / (own + density))
            output = model(**batch, noise=noise)
            assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
            assert output.metrics["recognized"].item() == pytest.approx(np.mean(recognized), rel=1e-4)
            assert model.noise_contrastive_loss.normalized == step
            for module in (
                model.noise_contrastive_loss,
                model,
            ):  # as training does it, with the statistics of evaluation
                module.training = True
            assert model(**batch, noise=noise).loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
            assert model.noise_contrastive_loss.log_normalizer.exp().item() == pytest.approx(normalizer, rel=1e-5)
            for i, (own, *_) in enumerate(rows):
                moved = 0.5 * bank[own] + 0.5 * v[i]
                bank[own] = moved / np.linalg.norm(moved)
            np.testing.assert_allclose(model.bank, bank, atol=1e-6)

    def test_the_bank_begins_with_what_the_network_makes_of_all_rows(self):
        model, features = self.model(), torch.randn(16, 16)
        model.before_epoch(0, lambda: features)
        begun = model.bank.clone()
        expected = F.normalize(features @ model.projector.weight.T + model.projector.bias, dim=1)
        torch.testing.assert_close(begun, expected, rtol=0, atol=1e-6)
        model.before_epoch(1, lambda: 1 / 0)
        assert torch.equal(model.bank, begun)

    def test_gradient_is_that_of_the_bank_as_it_was(self):
        """Both ways to score draws, whose bank has moved on before the backward pass."""
        queries, bank = (F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (4, 30))
        noise, own = torch.randint(30, (4, 9)), torch.tensor([3, 1, 4, 1])
        for dense in (0, 16):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_noise_contrastive, "DENSE", dense)
                loss, memory = NoiseContrastiveLoss(0.3).double(), bank.clone()
                one = queries.clone().requires_grad_()

                def value(queries, loss=loss, memory=memory):
                    return loss(queries, memory[own], memory, noise)[0]

                value(one)  # fixes Z
                assert torch.autograd.gradcheck(value, one)
                expected = torch.autograd.grad(value(one), one)[0]
                total = value(one)
                memory.zero_()
                torch.testing.assert_close(torch.autograd.grad(total, one)[0], expected)

    def test_noise_follows_from_the_seeds_and_is_even(self):
        model = InstanceDiscriminationForPreTraining(InstanceDiscriminationConfig(**TINY, noise_samples=20_000))
        rows = torch.zeros(3, dtype=torch.long)
        noise = model.draw_noise(rows, torch.tensor([5, 6, 5]))
        assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
        counts = torch.bincount(noise[:2].flatten(), minlength=16)
        assert len(counts) == 16 and ((counts - 2500) ** 2 / 2500).sum() < 37.7  # chi-squared, 15: p = 1e-3

    def test_bank_takes_the_images_after_the_loss_and_z_stays(self):
        model, batch = self.model().train(), self.batch()
        before = model.bank.clone()
        torch.testing.assert_close(before.norm(dim=1), torch.ones(16))
        model(**batch)
        rows = batch["sample_indices"]
        others = [row for row in range(16) if row not in rows]
        assert torch.equal(model.bank[others], before[others])
        assert ((model.bank[rows] - before[rows]).norm(dim=1) > 0.1).all()
        torch.testing.assert_close(model.bank.norm(dim=1), torch.ones(16))
        normalizer = model.noise_contrastive_loss.log_normalizer.clone()
        model(**self.batch(1))
        assert torch.equal(model.noise_contrastive_loss.log_normalizer, normalizer)

    def test_proximal_term_holds_images_to_their_rows(self):
        config = InstanceDiscriminationConfig(**self.config, proximal_weight=30.0)
        model, batch = InstanceDiscriminationForPreTraining(config).eval(), self.batch()
        output = model(**batch)
        distance = self.queries(model, batch["pixel_values"]) - model.bank[batch["sample_indices"]].double().numpy()
        expected = (distance**2).sum(1).mean()
        assert output.metrics["proximal"].item() == pytest.approx(expected, rel=1e-5)
        model.config.proximal_weight = 0.0
        assert output.loss.item() == pytest.approx(model(**batch).loss.item() + 30 * expected, rel=1e-5)
        model.config.proximal_weight = 30.0
        output.metrics["proximal"].backward()
        assert model.projector.weight.grad.abs().sum() > 0

    @torch.no_grad()
    def test_the_picture_says_where_the_own_row_stands(self):
        model, batch = self.model().eval(), self.batch()
        scores = self.queries(model, batch["pixel_values"]) @ model.bank.double().numpy().T
        image, nearest = model.pretext_lines(**batch)
        rows = batch["sample_indices"].tolist()
        for i in range(8):
            place = 1 + sum(scores[i] > scores[i, rows[i]])
            assert image.captions[i] == f"place {place}" and image.right[i] == (place == 1)
            other = max((j for j in range(8) if j != i), key=lambda j: scores[i, rows[j]])
            assert torch.equal(nearest.images[i], batch["pixel_values"][other])

    def test_half_precision_is_finite(self):
        for loss in ("nce", "softmax", "parametric"):
            config = InstanceDiscriminationConfig(**self.config | dict(loss=loss, temperature=0.02))
            model = InstanceDiscriminationForPreTraining(config).train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_grey_images_and_vit(self):
        for backbone in (TINY_RESNET | dict(num_channels=1), TINY_VIT):
            config = InstanceDiscriminationConfig(**self.config | dict(backbone_config=backbone))
            model, batch = InstanceDiscriminationForPreTraining(config).train(), self.batch()
            batch["pixel_values"] = batch["pixel_values"][:, : backbone.get("num_channels", 3)]
            model(**batch).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (dict(loss="best"), "loss must be one of nce, softmax, parametric, found 'best'"),
            (dict(noise_samples=0), "noise_samples must be at least 1, found 0"),
            (dict(temperature=0.0), "temperature must be positive, found 0.0"),
            (dict(bank_momentum=1.0), r"bank_momentum must lie in \[0, 1\), found 1.0"),
            (dict(loss="parametric", proximal_weight=1.0), "loss=parametric has no bank: expected proximal_weight=0"),
        ],
    )
    def test_impossible_configs_are_refused(self, wrong, message):
        with pytest.raises(StrictDataclassError, match=message):
            InstanceDiscriminationConfig(**wrong)


class TestSoftmax(MethodTester):
    model_class = InstanceDiscriminationForPreTraining
    config = TINY | dict(loss="softmax")
    chance_loss = math.log(16)
    tolerance = 2e-5
    batch, inputs, queries = (getattr(TestInstanceDiscrimination, name) for name in ("batch", "inputs", "queries"))

    def test_loss_equals_a_slow_formula(self):
        """Equation 2 of the paper: the own row stands once among the candidates."""
        model, batch = self.model().eval(), self.batch()
        scores = self.queries(model, batch["pixel_values"]) @ model.bank.double().numpy().T / 0.07
        expected = np.mean(
            [np.log(np.exp(own).sum()) - own[row] for own, row in zip(scores, batch["sample_indices"], strict=True)]
        )
        output = model(**batch)
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(output.logits.detach(), scores, atol=1e-4)
        assert output.metrics["nats"].item() == pytest.approx(math.log(16) - expected, abs=1e-5)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(16))


class TestParametric(MethodTester):
    model_class = InstanceDiscriminationForPreTraining
    config = TINY | dict(loss="parametric")
    chance_loss = math.log(16)
    tolerance = 2e-5
    batch, inputs = TestInstanceDiscrimination.batch, TestInstanceDiscrimination.inputs

    def test_loss_equals_a_slow_formula(self):
        """Equation 1 of the paper: projections as they are against weights that are learnt."""
        model, batch = self.model().eval(), self.batch()
        with torch.no_grad():
            scores = (model.projector(model.embed(batch["pixel_values"])) @ model.classifier.weight.T).double().numpy()
        losses = [
            np.log(np.exp(own).sum()) - own[row] for own, row in zip(scores, batch["sample_indices"], strict=True)
        ]
        assert model(**batch).loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert not hasattr(model, "bank")


def recorded_noise(rows):
    """(5, 6); of 20 rows, four draws hit the own row."""
    k = torch.arange(30)
    return ((k * k + 3 * k) % rows).view(5, 6)


def bank_of_sines(phase, rows):
    return F.normalize(sines(phase, rows, 4), dim=1)


@pytest.mark.parametrize(
    "loss, rows, recorded",
    [
        ("nce", 20, [(5.77258825, -0.10025384, 47.01919937), (2.79764581, 0.07185418, 42.50152206)]),
        ("nce", 120, [(6.16730690, -0.16942205, 307.60598755), (3.01285219, 0.04825290, 303.08831787)]),
        ("softmax", 20, [(6.48285675, -0.19125916, 47.01919937), (3.34086919, 0.03651169, 42.50152206)]),
    ],
    ids=["the whole bank is scored", "the draws are", "softmax"],
)
def test_loss_gradient_and_bank_are_those_of_the_authors_code(loss, rows, recorded):
    """Recorded, over two batches of which the first fixes Z, from NCEAverage of lib/NCEAverage.py, given the draws, and
    NCECriterion of lib/NCECriterion.py; for the softmax from LinearAverage of lib/LinearAverage.py. Commit f7cfe29."""
    model = on_vectors(InstanceDiscriminationForPreTraining)(
        InstanceDiscriminationConfig(**RECORDED, num_samples=rows, loss=loss)
    ).train()
    model.bank.copy_(bank_of_sines(0.1, rows))
    for phase, (expected, slope, moved) in zip((0.2, 0.3), recorded, strict=True):
        vectors = sines(phase, 5, 4).requires_grad_()
        output = model(vectors, RECORDED_ROWS, noise=recorded_noise(rows) if loss == "nce" else None)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(expected, abs=1e-5)
        assert (vectors.grad * sines(0.4, 5, 4)).sum().item() == pytest.approx(slope, abs=1e-5)
        assert (model.bank * sines(0.5, rows, 4)).sum().item() == pytest.approx(moved, rel=1e-6)
    if loss == "nce":
        normalizer = model.noise_contrastive_loss.log_normalizer.exp()
        assert normalizer.item() == pytest.approx({20: 447.0492859, 120: 3731.208008}[rows], rel=1e-6)


@pytest.mark.parametrize("size", [100, CHUNK + 300])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2])
def test_softmax_over_the_bank_in_chunks_is_the_plain_one(size, temperature):
    generator = torch.Generator().manual_seed(0)
    queries, bank = (F.normalize(torch.randn(n, 32, generator=generator), dim=1) for n in (16, size))
    rows = torch.randint(size, (16,), generator=generator)
    queries = F.normalize(queries + 0.5 * bank[rows], dim=1).requires_grad_()
    plain = F.cross_entropy(queries @ bank.T / temperature, rows)
    expected = torch.autograd.grad(plain, queries)[0]
    loss = bank_cross_entropy(queries, bank, rows, temperature)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    bank.zero_()  # which has moved on at the backward
    torch.testing.assert_close(torch.autograd.grad(loss, queries)[0], expected, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """The elements of the largest new tensor that is made within it."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        old = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in old:
                self.elements = max(self.elements, each.numel())
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_over_the_bank_makes_no_large_tensor(dtype):
    rows, width, batch = 20_000, 64, 64
    model = InstanceDiscriminationForPreTraining(
        InstanceDiscriminationConfig(**TINY | dict(loss="softmax", num_samples=rows, projection_size=width))
    ).train()
    images, indices = torch.randn(batch, 3, 8, 8), torch.arange(batch)
    with Largest() as largest, torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        model(images, indices).loss.backward()
    assert largest.elements <= batch * CHUNK < batch * rows / 4 and CHUNK * width <= batch * CHUNK


def move_on_each_process():
    """A bank after two images of row 3, the one on the first process, the other on the last, and two others."""
    bank = F.normalize(torch.arange(20.0).view(5, 4).sin(), dim=1)
    indices, rows = torch.tensor([3, 0, 3, 1]), F.normalize(torch.arange(16.0).view(4, 4).cos(), dim=1)
    move_rows(bank, own_part(indices), own_part(rows), 0.75)
    return bank


def test_a_row_that_stands_twice_moves_to_its_last_image_on_all_processes():
    before = F.normalize(torch.arange(20.0).view(5, 4).sin(), dim=1)
    rows = F.normalize(torch.arange(16.0).view(4, 4).cos(), dim=1)
    expected = before.clone()
    for index, row in ((3, 2), (0, 1), (1, 3)):
        moved = 0.75 * before[index] + 0.25 * rows[row]
        expected[index] = moved / moved.norm()
    for bank in (move_on_each_process(), *on_pair(move_on_each_process)):
        torch.testing.assert_close(torch.as_tensor(bank), expected)


def test_two_images_of_a_row_in_one_batch_train():
    model = InstanceDiscriminationForPreTraining(InstanceDiscriminationConfig(**TINY, noise_samples=6)).train()
    batch = TestInstanceDiscrimination().batch()
    batch["sample_indices"][5] = batch["sample_indices"][2]
    again = copy.deepcopy(model)
    losses = [each(**batch).loss for each in (model, again)]
    assert torch.equal(*losses) and torch.equal(model.bank, again.bank)
