"""BiGAN: a generator makes images of random vectors, an encoder makes vectors of images, and a discriminator is to tell the
pairs of one from those of the other. Both fool it best where each is the inverse of the other, so that the encoder learns what
the generator makes images of.

Donahue et al. 2017, https://arxiv.org/abs/1605.09782. Official code: https://github.com/jeffdonahue/bigan. Deviations: encoders
are those of transformers, and the representation is their pooled output, of which a linear layer makes the vector; generator and
discriminator are a DCGAN's, the discriminator's last layers see image and vector together; all see images of one size, where
the paper's larger encoder sees 112 px and the others 64; images are not squashed; all players step at once; batch statistics
are those of all processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._dcgan import DownConvolutions, Generator, draw_as_dcgan
from ._detached import with_detached_weights
from ._distributed import gather
from ._random import LATENT_STREAM, fold_in, uniform

MEASURE_EVERY = 20  # steps from one Frechet distance to the next
MEASUREMENTS = 10  # how many batches it averages over


@strict
class BiGANConfig(SSLConfig):
    """Defaults: the paper's for ImageNet, an AlexNet and 200 numbers.

    backbone_config: of an image encoder of transformers with a pooler_output. image_size: pixels, None for 224; the command
    line sets it. latent_size: numbers of the vector z that an image is made of, uniform in [-1, 1). generator_hidden_size,
    discriminator_hidden_size: channels next to the image. joint_hidden_size: of the discriminator's layers that see both.
    discriminator_rate: the part of the learning rate at which the discriminator learns, for runs in which it wins.
    """

    model_type = "ssl_bigan"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | None = None
    latent_size: int = 200
    generator_hidden_size: int = 64
    discriminator_hidden_size: int = 64
    joint_hidden_size: int = 1024
    discriminator_rate: float = 1.0

    def validate_ranges(self):
        self.check_least(latent_size=1, generator_hidden_size=1, discriminator_hidden_size=1, joint_hidden_size=1)
        self.check_positive("discriminator_rate")


class BiGANForPreTraining(SSLModel):
    config: BiGANConfig
    input_modalities = ("image",)

    def __init__(self, config: BiGANConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        channels, size = config.backbone_config.num_channels, config.image_size or 224
        self.head = nn.Linear(width, config.latent_size)
        self.generator = Generator(config.latent_size, channels, size, config.generator_hidden_size)
        self.discriminator = JointDiscriminator(config, channels, size)
        self.learning_rate_factors = {"discriminator": config.discriminator_rate}
        # of real and of generated images
        self.register_buffer("feature_means", torch.zeros(2, width))
        self.register_buffer("feature_products", torch.zeros(2, width, width))
        self.register_buffer("frechet", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.steps_done = None  # the same number where no device has to be asked for it
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, latents=None, **kwargs):
        """pixel_values: (N, C, H, W). latents: (N, Z) in [-1, 1), what images are made of; they follow from `sample_seeds`, (N,)
        int64, and without those are drawn afresh. `logits`: (2 N,), of the pairs of encoder and of generator."""
        self.check_images(*pixel_values.shape[-2:])
        latents = self.draw_latents(pixel_values, sample_seeds, latents)
        features = self.embed(pixel_values)  # (N, D)
        encoded, generated = self.head(features), self.generator(latents)  # (N, Z), (N, C, H, W)
        images = pixel_values.to(generated.dtype)

        of_encoder = with_detached_weights(self.discriminator, images, encoded).float()
        of_generator = with_detached_weights(self.discriminator, generated, latents).float()
        fools = F.softplus(of_encoder).mean() + F.softplus(-of_generator).mean()  # each with the other's label
        on_encoder = self.discriminator(images, encoded.detach()).float()
        on_generator = self.discriminator(generated.detach(), latents).float()
        judges = F.softplus(-on_encoder).mean() + F.softplus(on_generator).mean()

        if self.training:
            self.count_step(pixel_values, generated.detach())
        accuracy = ((on_encoder > 0).float().mean() + (on_generator <= 0).float().mean()) / 2
        metrics = {
            "encoder_generator_loss": fools.detach(),
            "discriminator_loss": judges.detach(),
            "discriminator_accuracy": accuracy,
            "frechet": self.frechet.clone(),
            "frechet_of_the_mean": (self.feature_products[0].diagonal() - self.feature_means[0].square()).sum(),
        }
        logits = torch.cat([on_encoder, on_generator])
        return SSLOutput(loss=fools + judges, logits=logits, features=features, metrics=metrics)

    def draw_latents(self, images, seeds=None, latents=None):
        shape = (len(images), self.config.latent_size)
        if latents is None:
            if seeds is None:
                seeds = torch.randint(2**62, shape[:1], device=images.device)
            latents = 2 * uniform(fold_in(seeds, LATENT_STREAM), shape[1]) - 1
        if latents.shape != shape:
            raise ValueError(f"latents must be of shape {shape}, found {tuple(latents.shape)}.")
        return latents.to(self.head.weight.dtype)

    @torch.no_grad()
    def count_step(self, images, generated):
        """Every MEASURE_EVERY steps look how far generated images are from real ones, as the encoder sees both when it is not
        trained. Which step it is, is asked of the device once a process."""
        if self.steps_done is None:
            self.steps_done = int(self.steps)
        if self.steps_done % MEASURE_EVERY == 0:
            self.measure(images, generated)
        self.steps_done += 1
        self.steps += 1

    def measure(self, images, generated):
        """The Frechet distance between normal distributions with the means and covariances of the features, moving averages
        over MEASUREMENTS batches: one batch has too few images for so many features."""
        self.backbone.eval()
        momentum = min(1 - 1 / MEASUREMENTS, 1 - 1 / (self.steps_done // MEASURE_EVERY + 1))
        with torch.autocast(images.device.type, enabled=False):
            for place, batch in enumerate((images, generated)):
                features = gather(self.embed(batch)).to(self.feature_means.dtype)  # (W N, D)
                self.feature_means[place].lerp_(features.mean(0), 1 - momentum)
                self.feature_products[place].lerp_(features.T @ features / len(features), 1 - momentum)
            self.frechet.copy_(frechet_distance(self.feature_means.double(), self.covariances()))
        self.backbone.train()

    def covariances(self):
        """(2, D, D) float64, of the features of real images and of generated ones."""
        means = self.feature_means.double()
        return self.feature_products.double() - means[:, :, None] * means[:, None, :]

    def check_images(self, height, width):
        size = self.config.image_size or 224
        if (height, width) != (size, size):
            raise ValueError(f"A BiGAN with image_size={size} sees no other images: found {height} x {width}.")

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """Images, what the generator makes of their vectors, and what it makes of random ones."""
        samples = self.generator(self.draw_latents(pixel_values, sample_seeds))
        rebuilt = self.generator(self.head(self.embed(pixel_values)))
        return [
            PretextLine("image", pixel_values),
            PretextLine("rebuilt", rebuilt.float()),
            PretextLine("samples", samples.float()),
        ]

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_dcgan(module)
        if module is self:
            for buffer in (self.feature_means, self.feature_products, self.frechet, self.steps):
                init.zeros_(buffer)


class JointDiscriminator(nn.Module):
    """Images, (N, C, H, W), with vectors, (N, Z), to logits, (N,): high for an image and its encoding."""

    def __init__(self, config, channels, size):
        super().__init__()
        self.images = DownConvolutions(channels, size, config.discriminator_hidden_size)
        hidden = config.joint_hidden_size
        self.vectors = nn.Sequential(nn.Linear(config.latent_size, hidden), nn.LeakyReLU(0.2, inplace=True))
        self.both = nn.Sequential(
            nn.Linear(self.images.width + hidden, hidden), nn.LeakyReLU(0.2, inplace=True), nn.Linear(hidden, 1)
        )  # fmt: skip

    def forward(self, images, vectors):
        return self.both(torch.cat([self.images(images), self.vectors(vectors)], dim=1))[:, 0]


def frechet_distance(means, covariances):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of means (2, D) and covariances (2, D, D), float64: Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500, equation 6. The trace of the root is that of the root of C1^(1/2) C2 C1^(1/2)."""
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    together = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = covariances.diagonal(dim1=1, dim2=2).sum()
    return ((means[0] - means[1]).square().sum() + traces - 2 * together).clamp(min=0)


__all__ = ["BiGANConfig", "BiGANForPreTraining"]
