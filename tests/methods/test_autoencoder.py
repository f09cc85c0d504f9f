import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_context_encoder import waves
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import AutoencoderConfig, AutoencoderForPreTraining

TINY = dict(backbone_config=TINY_RESNET, image_size=16, code_size=12, decoder_hidden_size=8)


def model_of(**changes):
    torch.manual_seed(0)
    return AutoencoderForPreTraining(AutoencoderConfig(**TINY | changes))


class TestAutoencoder(MethodTester):
    """Denoising and sparse by the divergence, whose means span the batch of all processes."""

    model_class = AutoencoderForPreTraining
    config = TINY | dict(corruption="masking", corruption_level=0.3, sparsity="kl", sparsity_weight=0.05)
    chance_loss = 0.4
    random_arguments = ("sample_seeds",)
    tolerance = 2e-5
    floor = 1e-6

    def batch(self, seed=0):
        seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": waves(8, seed), "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    @pytest.mark.parametrize("sparsity", ["none", "kl", "l1"])
    @torch.no_grad()
    def test_loss_and_metrics_equal_a_slow_formula(self, sparsity):
        """The error of what is rebuilt of the noisy image against the clean one, and the penalty unit by unit."""
        model = model_of(corruption="salt_and_pepper", sparsity=sparsity, sparsity_weight=0.7).eval()
        batch = self.batch()
        clean, seen = (
            batch["pixel_values"].double().numpy(),
            model.corrupt(**{"images": batch["pixel_values"], "seeds": batch["sample_seeds"]}),
        )
        code = model.code(model.embed(seen)).double().numpy()
        code = {"none": code, "kl": 1 / (1 + np.exp(-code)), "l1": np.maximum(code, 0)}[sparsity]
        rebuilt = model.decoder(torch.from_numpy(code).float()).double().numpy()
        l2 = np.mean([(one - other) ** 2 for one, other in zip(rebuilt, clean, strict=True)])
        penalty = 0.0
        for mean in code.mean(0):
            if sparsity == "kl":
                penalty += (0.05 * np.log(0.05 / mean) + 0.95 * np.log(0.95 / (1 - mean))) / 12
            elif sparsity == "l1":
                penalty += mean / 12
        output = model(**batch)
        found = {name: value.item() for name, value in output.metrics.items()}
        assert output.loss.item() == pytest.approx(l2 + 0.7 * penalty, rel=1e-5)
        assert found["l2"] == pytest.approx(l2, rel=1e-5)
        assert found["one_colour_l2"] == pytest.approx(np.mean([c.var() for image in clean for c in image]), rel=1e-5)
        assert found["corrupted_l2"] == pytest.approx(np.mean((seen.double().numpy() - clean) ** 2), rel=1e-5)
        if sparsity != "none":
            assert found["sparsity_loss"] == pytest.approx(penalty, rel=1e-5)
            assert found["mean_activation"] == pytest.approx(code.mean(), rel=1e-5)

    def test_noise_is_what_it_is_called(self):
        """Each kind at the level that is set, whole pixels alike in all channels, the rest untouched."""
        images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1  # nowhere 0
        seeds = torch.arange(64)
        lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        for level in (0.2, 0.5):
            noise = model_of(corruption="gaussian", corruption_level=level).corrupt(images, seeds) - images
            assert noise.mean().item() == pytest.approx(0, abs=5 * level / noise.numel() ** 0.5)
            assert noise.std().item() == pytest.approx(level, rel=5 / (2 * noise.numel()) ** 0.5)
            assert (noise / level).pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / noise.numel()) ** 0.5)
            error = 5 * (level * (1 - level) / (64 * 256)) ** 0.5
            masked = model_of(corruption="masking", corruption_level=level).corrupt(images, seeds)
            hit = (masked == 0).all(1, keepdim=True)
            assert torch.equal(masked, images * ~hit) and hit.float().mean().item() == pytest.approx(level, abs=error)
            peppered = model_of(corruption="salt_and_pepper", corruption_level=level).corrupt(images, seeds)
            salt, pepper = ((peppered == each).all(1, keepdim=True) for each in (highest, lowest))
            assert torch.equal(peppered, torch.where(salt, highest, torch.where(pepper, lowest, images)))
            for each in (salt, pepper):
                assert each.float().mean().item() == pytest.approx(level / 2, abs=error)
        assert model_of().corrupt(images, seeds) is images

    def test_noise_belongs_to_the_sample_and_can_be_handed_in(self):
        images = torch.rand(8, 3, 16, 16)
        for kind, channels in (("gaussian", 3), ("masking", 1), ("salt_and_pepper", 1)):
            model = model_of(corruption=kind)
            assert torch.equal(model.corrupt(images)[:0], images[:0])
            whole = model.corrupt(images, torch.arange(8))
            assert torch.equal(whole[4:], model.corrupt(images[4:], torch.arange(4, 8)))
            noise = torch.rand(8, channels, 16, 16)
            assert torch.equal(model(images, noise=noise).loss, model(images, noise=noise).loss)
            with pytest.raises(
                ValueError, match=rf"^noise must be of shape \(8, {channels}, 16, 16\), found \(8, 2\)"
            ):
                model(images, noise=torch.rand(8, 2))

    def test_representation_and_released_encoder_see_no_noise(self):
        model, images = model_of(corruption="gaussian", corruption_level=2.0).eval(), self.batch()["pixel_values"]
        assert torch.equal(model.embed(images), model.embed(images))
        assert not torch.equal(model(**self.batch()).features, model.embed(images))

    @torch.no_grad()
    def test_the_picture_shows_what_is_rebuilt(self):
        for kind in ("none", "masking"):
            model, batch = model_of(corruption=kind).eval(), self.batch()
            *seen, rebuilt, truth = model.pretext_lines(**batch)
            assert truth.images is batch["pixel_values"] and len(seen) == (kind != "none")
            assert torch.equal(rebuilt.images, model(**batch).logits)
            if seen:
                assert torch.equal(seen[0].images, model.corrupt(truth.images, batch["sample_seeds"]))
            for i in range(8):
                metrics = model(**{name: value[i, None] for name, value in batch.items()}).metrics
                part = (metrics["l2"] / metrics["one_colour_l2"]).item()
                assert rebuilt.captions[i] == f"{100 * part:.0f}%" and bool(rebuilt.right[i]) == (part < 1)

    def test_half_precision_is_finite(self):
        for sparsity in ("kl", "l1"):
            model = model_of(sparsity=sparsity, corruption="gaussian").train()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**self.batch())
            output.loss.backward()
            assert output.loss.isfinite() and output.loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_vit(self):
        model = model_of(backbone_config=TINY_VIT).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (
                dict(corruption="rain"),
                "corruption must be one of none, gaussian, masking, salt_and_pepper, found 'rain'",
            ),
            (dict(sparsity="l2"), "sparsity must be one of none, kl, l1, found 'l2'"),
            (dict(corruption_level=0.0), "corruption_level must be positive, found 0.0"),
            (
                dict(corruption="masking", corruption_level=1.0),
                "must be below 1 with corruption=masking, found 1.0: nothing of an image would be left",
            ),
            (dict(sparsity_target=1.0), "sparsity_target must lie between 0 and 1, found 1.0"),
        ],
    )
    def test_impossible_configs_are_refused(self, wrong, message):
        with pytest.raises(StrictDataclassError, match=message):
            AutoencoderConfig(**wrong)

    def test_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match="image_size=16 sees no other images: found 16 x 12"):
            self.model()(torch.zeros(2, 3, 16, 12))
