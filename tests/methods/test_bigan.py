import copy

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.test_context_encoder import waves
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import BiGANConfig, BiGANForPreTraining
from hf_ssl.methods.bigan import MEASURE_EVERY, MEASUREMENTS, frechet_distance

TINY = dict(
    backbone_config=TINY_RESNET, image_size=16, latent_size=6, generator_hidden_size=8, discriminator_hidden_size=8,
    joint_hidden_size=16,
)  # fmt: skip


class TestBiGAN(MethodTester):
    model_class = BiGANForPreTraining
    config = TINY | dict(discriminator_rate=0.1)
    chance_loss = 10.0  # of what is measured here: the loss of a game need not fall
    random_arguments = ("sample_seeds",)
    tolerance = 1e-4
    floor = 2e-6

    def batch(self, seed=0):
        seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": waves(8, seed), "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def optimizer(self, model):
        """Two rates, as the loop would have them."""
        groups = {True: [], False: []}
        for name, parameter in model.named_parameters():
            groups[name.startswith("discriminator.")].append(parameter)
        rate = 2e-3 * model.learning_rate_factors["discriminator"]
        return torch.optim.AdamW([{"params": groups[False]}, {"params": groups[True], "lr": rate}], 2e-3, (0.5, 0.999))

    @torch.no_grad()
    def _held_out_loss(self, model):
        """How far the statistics of generated images are from those of real ones: the mean squared difference of the mean
        products of pixels."""
        model = copy.deepcopy(model).eval()
        real = torch.cat([waves(8, 1000 + i) for i in range(16)])
        fake = model.generator(model.draw_latents(real, torch.arange(len(real))))
        products = [images.flatten(1).T @ images.flatten(1) / len(images) for images in (real, fake)]
        return (products[0] - products[1]).square().mean().item() / products[0].square().mean().item()

    def test_all_players_have_the_gradients_of_two_optimizers(self):
        """One backward pass, against one for each side; whose pairs have which label."""
        model, other, batch = self.model().train(), self.model().train(), self.batch()
        latents = 2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) - 1
        output = model(batch["pixel_values"], latents=latents)
        output.loss.backward()
        images = batch["pixel_values"]
        encoded, generated = other.head(other.embed(images)), other.generator(latents)
        of_encoder, of_generator = other.discriminator(images, encoded), other.discriminator(generated, latents)
        bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones(8), torch.zeros(8)
        judges = bce(of_encoder, ones) + bce(of_generator, zeros)
        fools = bce(of_encoder, zeros) + bce(of_generator, ones)
        assert output.loss.item() == pytest.approx((judges + fools).item(), rel=1e-5)
        assert output.metrics["discriminator_loss"].item() == pytest.approx(judges.item(), rel=1e-5)
        assert output.metrics["encoder_generator_loss"].item() == pytest.approx(fools.item(), rel=1e-5)
        right = np.mean([*(of_encoder > 0).tolist(), *(of_generator <= 0).tolist()])
        assert output.metrics["discriminator_accuracy"].item() == pytest.approx(right)
        torch.testing.assert_close(output.logits, torch.cat([of_encoder, of_generator]))
        judge = [name for name, _ in other.named_parameters() if name.startswith("discriminator.")]
        rest = [name for name, _ in other.named_parameters() if name not in judge]
        for loss, names in ((fools, rest), (judges, judge)):
            gradients = torch.autograd.grad(loss, [other.get_parameter(name) for name in names], retain_graph=True)
            for name, expected in zip(names, gradients, strict=True):
                torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-7)

    def test_frechet_distance_equals_that_of_matrix_roots(self):
        """scipy's root of the product, in several dimensions and with covariances of lower rank."""
        generator = np.random.default_rng(0)
        for rank in (3, 5, 20):
            samples = [scale * generator.normal(size=(rank, 5)) + scale for scale in (1.0, 1.5)]
            means, covariances = zip(*((x.mean(0), np.cov(x.T, bias=True)) for x in samples), strict=True)
            root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(5)).real
            expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
            found = frechet_distance(*(torch.from_numpy(np.stack(each)) for each in (means, covariances)))
            assert found.item() == pytest.approx(expected, abs=1e-4)
            same = frechet_distance(*(torch.from_numpy(np.stack([each[0]] * 2)) for each in (means, covariances)))
            assert same.item() == pytest.approx(0, abs=1e-6)

    def test_the_distance_is_measured_once_in_a_while_on_what_is_released(self):
        """In eval mode, as moving averages; counted on from where a checkpoint stopped."""
        model = self.model().train()
        means, products = np.zeros((2, 16)), np.zeros((2, 16, 16))
        for step in range(2 * MEASURE_EVERY + 1):
            batch = self.batch(seed=step)
            if step == MEASURE_EVERY:
                state, model = model.state_dict(), self.model(seed=1).train()
                model.load_state_dict(state)
            released, statistics = copy.deepcopy(model).eval(), None
            with torch.no_grad():
                output = model(**batch)
            if step % MEASURE_EVERY == 0:
                with torch.no_grad():
                    fake = (
                        copy.deepcopy(released)
                        .train()
                        .generator(model.draw_latents(batch["pixel_values"], batch["sample_seeds"]))
                    )
                    # the statistics that the encoder's own forward of this step has moved
                    released.backbone.load_state_dict(model.backbone.state_dict())
                    statistics = [released.embed(each).double().numpy() for each in (batch["pixel_values"], fake)]
                weight = 1 / min(MEASUREMENTS, step // MEASURE_EVERY + 1)
                for place, features in enumerate(statistics):
                    means[place] += weight * (features.mean(0) - means[place])
                    products[place] += weight * (features.T @ features / 8 - products[place])
                covariances = products - means[:, :, None] * means[:, None]
                expected = frechet_distance(torch.from_numpy(means), torch.from_numpy(covariances)).item()
            assert output.metrics["frechet"].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert output.metrics["frechet_of_the_mean"].item() == pytest.approx(np.trace(covariances[0]), rel=1e-3)
        assert model.training and model.backbone.training and model.steps.item() == 2 * MEASURE_EVERY + 1

    def test_vectors_belong_to_the_sample_and_can_be_handed_in(self):
        model, batch = self.model().eval(), self.batch()
        pixels, seeds = batch["pixel_values"], batch["sample_seeds"]
        latents = model.draw_latents(pixels, seeds)
        assert torch.equal(latents[4:], model.draw_latents(pixels[4:], seeds[4:]))
        assert torch.equal(model(pixels, latents=latents).loss, model(**batch).loss)
        many = model.draw_latents(torch.zeros(2000, 1))
        assert many.min() >= -1 and many.max() < 1 and many.var().item() == pytest.approx(1 / 3, abs=0.02)
        with pytest.raises(ValueError, match=r"^latents must be of shape \(8, 6\), found \(8, 5\)"):
            model(pixels, latents=torch.zeros(8, 5))

    @torch.no_grad()
    def test_the_picture_shows_reconstructions_and_samples(self):
        model, batch = self.model().eval(), self.batch()
        image, rebuilt, samples = model.pretext_lines(**batch)
        assert image.images is batch["pixel_values"]
        assert torch.equal(rebuilt.images, model.generator(model.head(model.embed(image.images))))
        latents = model.draw_latents(image.images, batch["sample_seeds"])
        assert torch.equal(samples.images, model.generator(latents))

    def test_half_precision_is_finite(self):
        model = self.model().train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**self.batch())
        output.loss.backward()
        assert output.loss.isfinite() and output.loss.dtype == torch.float32 and output.metrics["frechet"].isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_vit(self):
        model = BiGANForPreTraining(BiGANConfig(**TINY | dict(backbone_config=TINY_VIT))).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(StrictDataclassError, match="latent_size must be at least 1, found 0"):
            BiGANConfig(latent_size=0)
        with pytest.raises(StrictDataclassError, match="discriminator_rate must be positive, found 0.0"):
            BiGANConfig(discriminator_rate=0.0)
        with pytest.raises(ValueError, match="image_size=16 sees no other images: found 16 x 12"):
            self.model()(torch.zeros(2, 3, 16, 12))
