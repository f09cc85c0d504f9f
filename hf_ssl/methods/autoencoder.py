"""Autoencoders: make a short code of an image and the image of the code. Denoising ones are shown the image under noise and asked
for it without; sparse ones may use few units of the code at a time.

Denoising: Vincent et al. 2008 and 2010, https://www.jmlr.org/papers/v11/vincent10a.html, and what it learns, Alain and Bengio
2012, https://arxiv.org/abs/1211.4246. Sparse: Ng's notes of CS294A,
https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf. Deviations: encoder and decoder are convolutional and trained as
one, not layer by layer; errors are squared, and means over pixels as well as images, where the notes have sums, and so is the
penalty over units; noise hits whole pixels, all channels of which are alike in grey images; masked ones hold 0, the mean of
normalised pixels, salt and pepper the image's own extremes.
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._dcgan import Generator, draw_as_dcgan
from ._distributed import sum_with_gradient, world_size
from ._random import CORRUPTION_STREAM, fold_in, normal, uniform

CORRUPTIONS = ("none", "gaussian", "masking", "salt_and_pepper")
SPARSITIES = ("none", "kl", "l1")


@strict
class AutoencoderConfig(SSLConfig):
    """Defaults: a plain autoencoder with a ResNet-50.

    backbone_config: of an image encoder of transformers with a pooler_output. image_size: pixels, None for 224; the command line
    sets it. code_size: units of the code, which a linear layer makes of the pooled output. corruption: "none", "gaussian",
    "masking" or "salt_and_pepper"; corruption_level: its standard deviation, in units of normalised pixels, or the part of the
    pixels that it hits. sparsity: "none"; "kl", the divergence of a unit's mean activation from sparsity_target, the code
    being sigmoids; "l1", the mean activation, the code being rectified. sparsity_weight: of that in the loss.
    decoder_hidden_size: channels next to the image.
    """

    model_type = "ssl_autoencoder"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | None = None
    code_size: int = 256
    corruption: str = "none"
    corruption_level: float = 0.25
    sparsity: str = "none"
    sparsity_weight: float = 1.0
    sparsity_target: float = 0.05
    decoder_hidden_size: int = 64

    def validate_ranges(self):
        for name, values in (("corruption", CORRUPTIONS), ("sparsity", SPARSITIES)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, found '{getattr(self, name)}'.")
        self.check_least(code_size=1, sparsity_weight=0, decoder_hidden_size=1)
        self.check_positive("corruption_level")
        if self.corruption in ("masking", "salt_and_pepper") and self.corruption_level >= 1:
            raise ValueError(
                f"corruption_level must be below 1 with corruption={self.corruption}, found {self.corruption_level}: nothing of "
                "an image would be left."
            )
        if not 0 < self.sparsity_target < 1:
            raise ValueError(f"sparsity_target must lie between 0 and 1, found {self.sparsity_target}.")


class AutoencoderForPreTraining(SSLModel):
    config: AutoencoderConfig
    input_modalities = ("image",)

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.code = nn.Linear(width, config.code_size)
        self.activation = {"none": nn.Identity(), "kl": nn.Sigmoid(), "l1": nn.ReLU()}[config.sparsity]
        channels, size = config.backbone_config.num_channels, config.image_size or 224
        self.decoder = Generator(config.code_size, channels, size, config.decoder_hidden_size)
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W). noise: of "gaussian" normal numbers, (N, C, H, W), else uniform ones in [0, 1), (N, 1, H,
        W); it follows from `sample_seeds`, (N,) int64, and without those is drawn afresh. `logits`: (N, C, H, W), the images of
        the codes."""
        self.check_images(*pixel_values.shape[-2:])
        seen = self.corrupt(pixel_values, sample_seeds, noise)
        features = self.embed(seen)  # (N, D)
        code = self.activation(self.code(features))  # (N, K)
        rebuilt, truth = self.decoder(code), pixel_values.float()
        loss = l2 = (rebuilt.float() - truth).square().mean()
        with torch.no_grad():
            plain = (truth - truth.mean((2, 3), keepdim=True)).square().mean()
            metrics = {"l2": l2.detach(), "one_colour_l2": plain}
            if self.config.corruption != "none":
                metrics["corrupted_l2"] = (seen.float() - truth).square().mean()
        if self.config.sparsity != "none":
            penalty, activation = self.penalty(code.float())
            loss = l2 + self.config.sparsity_weight * penalty
            metrics |= {"sparsity_loss": penalty.detach(), "mean_activation": activation.detach()}
        return SSLOutput(loss=loss, logits=rebuilt, features=features, metrics=metrics)

    @torch.no_grad()
    def corrupt(self, images, seeds=None, noise=None):
        """The images as the encoder sees them in training."""
        config, (count, channels, height, width) = self.config, images.shape
        if config.corruption == "none":
            return images
        shape = (channels if config.corruption == "gaussian" else 1, height, width)
        if noise is None:
            if seeds is None:
                seeds = torch.randint(2**62, (count,), device=images.device)
            draw = normal if config.corruption == "gaussian" else uniform
            noise = draw(fold_in(seeds, CORRUPTION_STREAM), math.prod(shape)).view(count, *shape)
        if noise.shape != (count, *shape):
            raise ValueError(f"noise must be of shape {(count, *shape)}, found {tuple(noise.shape)}.")
        if config.corruption == "gaussian":
            return images + config.corruption_level * noise.to(images.dtype)
        hit = noise < config.corruption_level
        if config.corruption == "masking":
            return images.masked_fill(hit, 0)
        pepper, salt = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        return torch.where(hit, torch.where(noise < config.corruption_level / 2, pepper, salt), images)

    def penalty(self, code):
        """Of a code (N, K) what keeps its units silent, and their mean activation over the batch of all processes."""
        mean = sum_with_gradient(code.mean(0)) / world_size()  # (K,)
        if self.config.sparsity == "l1":
            return mean.mean(), mean.mean()  # of what is not negative
        target, mean = self.config.sparsity_target, mean.clamp(1e-6, 1 - 1e-6)
        divergence = target * (target / mean).log() + (1 - target) * ((1 - target) / (1 - mean)).log()
        return divergence.mean(), mean.mean()

    def check_images(self, height, width):
        size = self.config.image_size or 224
        if (height, width) != (size, size):
            raise ValueError(f"An autoencoder with image_size={size} sees no other images: found {height} x {width}.")

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """The images as they are seen, as they are rebuilt, with the squared error relative to that of an image of one colour,
        and as they are."""
        seen = self.corrupt(pixel_values, sample_seeds)
        rebuilt = self.decoder(self.activation(self.code(self.embed(seen)))).float()
        errors = (rebuilt - pixel_values).square().mean((1, 2, 3))
        parts = errors / pixel_values.var((2, 3), correction=0).mean(1).clamp(min=1e-8)
        lines = [
            PretextLine("rebuilt", rebuilt, parts < 1, [f"{100 * part:.0f}%" for part in parts.tolist()]),
            PretextLine("truth", pixel_values),
        ]
        return lines if self.config.corruption == "none" else [PretextLine("seen", seen), *lines]

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_dcgan(module)


__all__ = ["AutoencoderConfig", "AutoencoderForPreTraining"]
