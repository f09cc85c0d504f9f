"""Context encoder: cut a hole into an image and fill it in from what is around, which takes knowing what the whole shows.

Pathak et al. 2016, https://arxiv.org/abs/1604.07379. Official code: https://github.com/pathak22/context-encoder. Squared errors
give the mean of what the hole may hold, which is blurred; a discriminator that tells fills from images makes them sharp.
Deviations: encoders are those of transformers, the paper's AlexNet among them, where its 128 px encoder is a DCGAN's; holes
hold 0, the mean of normalised pixels, and the output is not squashed, so that any normalisation will do; each image has a hole
of its own, where the code has one a batch, and its error is the mean over its own hole; a random region has exactly the area
that is drawn, where the code draws until it lies between 20 and 30%; of such holes the discriminator sees the image with the
fill in its place, in the code all that the decoder gives; `overlap` weights a border around such holes as around the square, in
the code all that is seen has that weight; both players step at once; batch statistics are those of all processes.
"""

import math

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
from ._dcgan import DownConvolutions, UpConvolutions, draw_as_dcgan
from ._detached import with_detached_weights
from ._holes import BLOCKS, CELLS, high_frequencies, mean_over, random_blocks, random_regions
from ._random import HOLE_STREAM, fold_in, uniform
from ._stages import freeze_beside_map

HOLES = ("centre", "blocks", "region")
BORDER_WEIGHT = 10.0  # of the errors in the border around a hole


@strict
class ContextEncoderConfig(SSLConfig):
    """Defaults: the paper's for features, an AlexNet, random regions and squared errors alone.

    backbone_config: of an image encoder of transformers whose last_hidden_state is a map. image_size: pixels, None for 224;
    the command line sets it. hole: "centre", a square of half the image's sides; "blocks", up to a quarter of the image in
    random squares; "region", a random shape of 20 to 30% of it. overlap: pixels of border around a hole that are predicted too,
    with ten times the weight; of "centre" they are the square's own. adversarial_weight: 0 for features, 0.001 for looks, the
    squared errors having the rest. decoder_hidden_size, discriminator_hidden_size: channels next to the image.
    """

    model_type = "ssl_context_encoder"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | None = None
    hole: str = "region"
    overlap: int = 0
    adversarial_weight: float = 0.0
    decoder_hidden_size: int = 64
    discriminator_hidden_size: int = 64

    def validate_ranges(self):
        if self.hole not in HOLES:
            raise ValueError(f"hole must be one of {', '.join(HOLES)}, found '{self.hole}'.")
        self.check_least(overlap=0, adversarial_weight=0, decoder_hidden_size=1, discriminator_hidden_size=1)
        if self.adversarial_weight >= 1:
            raise ValueError(f"adversarial_weight must be below 1, found {self.adversarial_weight}.")
        side = (self.image_size or 224) // 2
        if self.hole == "centre" and side <= 2 * self.overlap:
            raise ValueError(
                f"overlap={self.overlap} leaves nothing of a hole of {side} px: expected at most {(side - 1) // 2}."
            )


class ContextEncoderForPreTraining(SSLModel):
    config: ContextEncoderConfig
    input_modalities = ("image",)

    def __init__(self, config: ContextEncoderConfig):
        super().__init__(config)
        check_backbone(config.backbone_config)
        size = config.image_size or 224
        self.backbone = build_backbone(config.backbone_config)
        width, height, across = freeze_beside_map(self.backbone, size)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.channelwise = ChannelwiseLinear(width, height * across)
        output = size // 2 if config.hole == "centre" else size
        decoded, channels = 4 * config.decoder_hidden_size, config.backbone_config.num_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(width, decoded, 1, bias=False), GlobalBatchNorm(decoded), nn.ReLU(inplace=True),
            UpConvolutions(decoded, channels, height, output, config.decoder_hidden_size),
        )  # fmt: skip
        if config.adversarial_weight:
            judge = DownConvolutions(channels, output, config.discriminator_hidden_size)
            self.discriminator = nn.Sequential(judge, nn.Linear(judge.width, 1))
            self.learning_rate_factors = {"discriminator": 0.1}  # train.lua: the generator learns ten times as fast
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, hidden=None, **kwargs):
        """pixel_values: (N, C, H, W). hidden: (N, H, W) bool, the holes; they follow from `sample_seeds`, (N,) int64, and
        without those are drawn afresh; that of "centre" cannot be handed in. `logits`: (N, C, h, w), the fill; of "centre" the
        square."""
        self.check_images(*pixel_values.shape[-2:])
        hidden = self.holes(pixel_values, sample_seeds, hidden)  # (N, 1, H, W)
        decoded, features = self.fill_in(pixel_values, hidden)
        fill, truth, hole = decoded.float(), self.window(pixel_values).float(), self.window(hidden)

        overlap = self.config.overlap
        region = F.max_pool2d(hidden.float(), 2 * overlap + 1, stride=1, padding=overlap)
        weights = self.window(torch.where(hidden, 1.0, BORDER_WEIGHT * region))
        # over the pixels predicted, however they are weighted, as in the code
        l2 = mean_over((fill - truth).square() * weights, self.window(region))
        loss, metrics = l2, self.measure(pixel_values.float(), hidden, fill.detach(), truth, hole)
        if weight := self.config.adversarial_weight:
            shown, real = (fill, truth) if self.config.hole == "centre" else (torch.where(hole, fill, truth), truth)
            fools, judges, measured = self.play(shown.to(decoded.dtype), real.to(decoded.dtype))
            loss, metrics = (1 - weight) * l2 + weight * fools + judges, metrics | measured
        return SSLOutput(loss=loss, logits=decoded, features=features, metrics=metrics)

    def fill_in(self, images, hidden):
        """(N, C, h, w), what the decoder makes of the images without what is hidden, and the features, (N, D)."""
        output = self.backbone(images.masked_fill(hidden, 0).to(self.backbone.dtype))
        return self.decoder(self.channelwise(output.last_hidden_state)), output.pooler_output.flatten(1)

    def play(self, fill, real):
        """The loss by which fills pass for images, that of the discriminator, and what is logged. Each player's gradient is that
        of its own loss alone."""
        fools = F.softplus(-with_detached_weights(self.discriminator, fill).float()).mean()  # not saturating
        on_real, on_fill = self.discriminator(real).float(), self.discriminator(fill.detach()).float()
        judges = F.softplus(-on_real).mean() + F.softplus(on_fill).mean()
        accuracy = ((on_real > 0).float().mean() + (on_fill <= 0).float().mean()) / 2
        measured = {"generator_loss": fools, "discriminator_loss": judges, "discriminator_accuracy": accuracy}
        return fools, judges, {name: value.detach() for name, value in measured.items()}

    @torch.no_grad()
    def holes(self, images, seeds=None, hidden=None):
        """(N, 1, H, W) bool, True where an image is hidden."""
        count, _, height, width = images.shape
        if hidden is not None:
            return self.check_holes(hidden, (count, height, width))[:, None]
        if self.config.hole == "centre":
            hidden = torch.zeros(count, 1, height, width, dtype=torch.bool, device=images.device)
            overlap, square = self.config.overlap, self.window(hidden)
            square[..., overlap : square.shape[-2] - overlap, overlap : square.shape[-1] - overlap] = True
            return hidden
        if seeds is None:
            seeds = torch.randint(2**62, (count,), device=images.device)
        seeds = fold_in(seeds, HOLE_STREAM)
        if self.config.hole == "blocks":
            return random_blocks(uniform(seeds, 3 * BLOCKS).view(count, 3, BLOCKS), height, width)[:, None]
        field, shift, part = uniform(seeds, (CELLS + 4) ** 2 + 3).split([(CELLS + 4) ** 2, 2, 1], dim=1)
        return random_regions(field.unflatten(1, (CELLS + 4, -1)), shift, part[:, 0], height, width)[:, None]

    def check_holes(self, hidden, shape):
        if self.config.hole == "centre":
            raise ValueError("hidden cannot be handed in with hole=centre, which has one hole: set hole=region.")
        if hidden.shape != shape or hidden.dtype != torch.bool:
            raise ValueError(
                f"hidden must be bool of shape {tuple(shape)}, found {hidden.dtype} of {tuple(hidden.shape)}."
            )
        counts = hidden.flatten(1).sum(1)
        if ((counts == 0) | (counts == hidden[0].numel())).any():
            raise ValueError(
                "hidden must hide some pixels of each image and leave some, found "
                f"{counts.tolist()} of {hidden[0].numel()} hidden: nothing is left to fill in or to see."
            )
        return hidden

    def window(self, images):
        """What of (N, C, H, W) the decoder fills: all, or of "centre" the square in the middle."""
        if self.config.hole != "centre":
            return images
        (top, height), (left, width) = (((side - side // 2) // 2, side // 2) for side in images.shape[-2:])
        return images[..., top : top + height, left : left + width]

    @torch.no_grad()
    def measure(self, images, hidden, fill, truth, hole):
        """The mean squared error in the holes, that of filling with the mean of the surrounding, and how much of what the
        holes hold changes from pixel to pixel, in the fill and in truth."""
        reach = max(1, images.shape[-1] // 8)
        near = F.max_pool2d(hidden.float(), 2 * reach + 1, stride=1, padding=reach) - hidden.float()
        around = (images * near).sum((2, 3), keepdim=True) / near.sum((2, 3), keepdim=True).clamp(min=1)
        return {
            "hole_l2": mean_over((fill - truth).square(), hole.float()),
            "surrounding_l2": mean_over((around - images).square(), hidden.float()),
            "fill_high_frequencies": high_frequencies(fill, hole),
            "true_high_frequencies": high_frequencies(truth, hole),
        }

    def check_images(self, height, width):
        size = self.config.image_size or 224
        if (height, width) != (size, size):
            raise ValueError(
                f"A context encoder with image_size={size} sees no other images: found {height} x {width}."
            )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """The images with their holes, as the model fills them in, with its error relative to that of the surrounding's mean,
        and as they are."""
        hidden, filled = self.holes(pixel_values, sample_seeds), pixel_values.clone()
        fill = self.fill_in(pixel_values, hidden)[0].float()
        self.window(filled).copy_(torch.where(self.window(hidden), fill, self.window(filled)))
        measured = [
            self.measure(image, hole, *map(self.window, (own, image, hole)))
            for image, hole, own in zip(pixel_values[:, None], hidden[:, None], filled[:, None], strict=True)
        ]
        parts = torch.stack([each["hole_l2"] / each["surrounding_l2"].clamp(min=1e-8) for each in measured])
        return [
            PretextLine("seen", pixel_values.masked_fill(hidden, 0)),
            PretextLine("filled in", filled, parts < 1, [f"{100 * part:.0f}%" for part in parts.tolist()]),
            PretextLine("truth", pixel_values),
        ]

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_dcgan(module)
        if isinstance(module, ChannelwiseLinear):
            bound = 1 / math.sqrt(module.weight.shape[1])
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


class ChannelwiseLinear(nn.Module):
    """A fully connected layer for each channel of (N, C, h, w): every place sees every other, no channel another."""

    def __init__(self, channels, places):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, places, places))
        self.bias = nn.Parameter(torch.empty(channels, places))

    def forward(self, x):
        connected = torch.einsum("ncp,cpq->ncq", x.flatten(2), self.weight) + self.bias
        return connected.view_as(x).relu()


__all__ = ["ContextEncoderConfig", "ContextEncoderForPreTraining"]
