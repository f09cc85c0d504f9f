"""Relative position: of two patches of an image, tell where the second lies from the first. A network that can has to
know what the parts of things are, unless it finds a shortcut, which is why so much here is done against those.

Doersch et al. 2015, https://arxiv.org/abs/1505.05192. Official code: https://github.com/cdoersch/deepcontext.
Deviations: one grid an image, of 3 x 3 patches, so that each image gives as many pairs (theirs are as large as images
allow); the noise in place of a dropped colour has a hundredth of the spread of the one that is kept, as in the paper
(their code: of one grey level, about the same); the loss is the mean over pairs, not their sum; the average of the last
map describes a patch, in the paper a layer of 4,096 units on all of it.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._initialization import draw_as_torch
from ._random import (
    DROPPED_COLOUR_STREAM,
    GRID_STREAM,
    JITTERED_PATCH_STREAM,
    PATCH_NOISE_STREAM,
    PATCH_STREAM,
    RESAMPLED_STREAM,
    fold_in,
    uniform,
)
from ._tiles import cut_tiles, in_grid, normalize_tiles, tile_features

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]  # label -> rows and columns of the grid


@strict
class RelativePositionConfig(SSLConfig):
    """Defaults: the paper's.

    backbone_config: of an image encoder of transformers with a pooler_output. patch_size, gap, jitter: pixels, of a
    patch, between two, and by which each patch is shifted at most, up or down and left or right. pairs: "all" 40
    pairs of neighbours of the grid, in both orders, or "centre", the 16 with the central patch. Against shortcuts:
    colour: "drop" all channels but one, "project" away the axis between green and magenta, or "keep".
    resampling_probability: of a patch, to be shrunk to between `smallest_size` pixels and its own and enlarged again.
    normalize_patches: each channel to mean 0, the patch to root mean square 1. learned_scale: whether batch norm has a
    scale and a shift, with which a network can silence activations. head_hidden_size: of the two hidden layers that
    see both patches.
    """

    model_type = "ssl_relative_position"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    patch_size: int = 96
    gap: int = 48
    jitter: int = 7
    pairs: str = "all"
    colour: str = "drop"
    resampling_probability: float = 0.33
    smallest_size: int = 10
    normalize_patches: bool = True
    learned_scale: bool = False
    head_hidden_size: int = 4096

    @property
    def grid_size(self):
        """Pixels of the grid's side, with room for the jitter."""
        return 3 * self.patch_size + 2 * self.gap + 2 * self.jitter

    def validate_ranges(self):
        self.check_least(patch_size=2, gap=0, jitter=0, smallest_size=1, head_hidden_size=1)
        for name, allowed in (("pairs", ("all", "centre")), ("colour", ("drop", "project", "keep"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, found '{getattr(self, name)}'.")
        if not 0 <= self.resampling_probability <= 1:
            raise ValueError(f"resampling_probability must lie in [0, 1], found {self.resampling_probability}.")
        if self.smallest_size >= self.patch_size and self.resampling_probability > 0:
            raise ValueError(
                f"smallest_size must be less than patch_size={self.patch_size}, found {self.smallest_size}."
            )


class RelativePositionForPreTraining(SSLModel):
    config: RelativePositionConfig
    input_modalities = ("image",)

    def __init__(self, config: RelativePositionConfig):
        super().__init__(config)
        width, channels = check_backbone(config.backbone_config), config.backbone_config.num_channels
        if config.colour != "keep" and channels != 3:
            raise ValueError(
                f"colour='{config.colour}' needs images of 3 channels, found {channels}: set colour=keep."
            )
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        hidden = config.head_hidden_size
        self.head = nn.Sequential(
            nn.Linear(2 * width, hidden, bias=False),  # batch norm would take the bias away
            GlobalBatchNorm(hidden, affine=config.learned_scale),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, len(OFFSETS)),
        )
        if not config.learned_scale:
            for module in self.backbone.modules():
                if isinstance(module, GlobalBatchNorm):  # stay 1 and 0, as they are drawn
                    module.requires_grad_(False)
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, **kwargs):
        """pixel_values: (N, C, H, W), H and W at least `config.grid_size`. What is random follows from
        `sample_seeds`, (N,) int64; without them it is drawn afresh. `logits`: (N Q, 8) of Q pairs an image, in the
        order of `neighbours`."""
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, (len(pixel_values),), device=pixel_values.device)
        patches = self.patches(pixel_values, sample_seeds)  # (N, 9, C, s, s)
        features = tile_features(self.backbone, patches)  # (N, 9, D), each patch once, whatever pairs it is in
        first, second, labels = neighbours(self.config.pairs, patches.device)
        pairs = torch.cat([features[:, first], features[:, second]], dim=-1)  # (N, Q, 2 D)
        logits = self.head(pairs.flatten(0, 1))
        labels = labels.repeat(len(patches))
        accuracy, chance = (logits.argmax(1) == labels).float().mean(), F.one_hot(labels).float().mean(0).max()
        return SSLOutput(
            loss=F.cross_entropy(logits.float(), labels),
            logits=logits,
            features=features[:, 4],
            metrics={"accuracy": accuracy, "chance": chance},
        )

    @torch.no_grad()
    def patches(self, images, seeds):
        """(N, C, H, W) to (N, 9, C, s, s): the patches of a grid, row by row, as the network sees them."""
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            patches = cut_tiles(images.float(), *self.places(images.shape[-2:], seeds), config.patch_size)
            # (9 N,), a seed a patch
            each = fold_in(fold_in(seeds, PATCH_STREAM)[:, None], torch.arange(9, device=seeds.device)).flatten()
            patches = patches.flatten(0, 1)
            if config.resampling_probability:
                patches = resample(patches, each, config.resampling_probability, config.smallest_size)
            if config.colour == "drop":
                patches = drop_colours(patches, each)
            elif config.colour == "project":
                patches = project_colours(patches)
            if config.normalize_patches:
                patches = normalize_tiles(patches)
        return patches.unflatten(0, (len(images), 9))

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds):
        """The grid, its patches as the network sees them, and where it puts one of the eight around the centre."""
        cut = cut_tiles(pixel_values, *self.places(pixel_values.shape[-2:], sample_seeds), self.config.patch_size)
        seen, channels = self.patches(pixel_values, sample_seeds), (0, 1, 3, 4)  # to be shown as bright as the images
        (spread, mean), (own, middle) = (torch.std_mean(each, channels, keepdim=True) for each in (cut, seen))
        seen = (seen - middle) / own.clamp(min=1e-6) * spread + mean
        first, _, labels = neighbours(self.config.pairs, pixel_values.device)
        logits = self(pixel_values, sample_seeds).logits.unflatten(0, (len(pixel_values), -1))[:, first == 4]
        label = torch.arange(len(pixel_values), device=pixel_values.device) % len(OFFSETS)
        # pairs of the centre stand in the order of the labels
        answer = logits[torch.arange(len(logits)), label].argmax(1)
        around, image = torch.arange(9, device=label.device).view(1, 9), torch.arange(len(label))
        around = around[around != 4]  # label -> patch
        placed = cut.amax().expand_as(cut).clone()
        placed[:, 4] = cut[:, 4]
        placed[image, around[answer]] = cut[image, around[label]]
        return [
            PretextLine("patches", in_grid(cut, gap=1)),
            PretextLine("as seen", in_grid(seen, gap=1)),
            PretextLine("one placed", in_grid(placed, gap=1), answer == label),
        ]

    def places(self, size, seeds):
        """Rows and columns of the upper left pixels, (N, 9) each: of a grid somewhere in the image, jittered."""
        config = self.config
        self.check_images(*size)
        free = uniform(fold_in(seeds, GRID_STREAM), 2)  # (N, 2)
        shifts = uniform(fold_in(seeds, JITTERED_PATCH_STREAM), 18).view(-1, 2, 9)
        steps = torch.arange(3, device=seeds.device) * (config.patch_size + config.gap)
        grids = steps.repeat_interleave(3), steps.repeat(3)  # (9,) each
        return [
            grid
            + (free[:, axis, None] * (size[axis] - config.grid_size + 1)).long()
            + (shifts[:, axis] * (2 * config.jitter + 1)).long()
            for axis, grid in enumerate(grids)
        ]

    def check_images(self, height, width):
        config = self.config
        if min(height, width) < config.grid_size:
            raise ValueError(
                f"3 x 3 patches of {config.patch_size} px with gap={config.gap} and jitter={config.jitter} need images "
                f"of at least {config.grid_size} px, found {height} x {width}: set image_size, patch_size, gap or jitter."
            )

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)


@lru_cache
def neighbours(pairs, device=None):
    """(first, second, label), (Q,) each: the patches of a 3 x 3 grid, counted row by row, that lie side by side or
    corner to corner, with the place of the second seen from the first, counted row by row too."""
    found = [
        (3 * y + x, 3 * (y + dy) + x + dx, label)
        for y in range(3)
        for x in range(3)
        for label, (dy, dx) in enumerate(OFFSETS)
        if 0 <= y + dy < 3 and 0 <= x + dx < 3
    ]
    return torch.tensor([pair for pair in found if pairs == "all" or 4 in pair[:2]], device=device).unbind(1)


def resample(patches, seeds, probability, smallest):
    """Shrink some of the patches (M, C, s, s) to a side whose square is uniform between smallest^2 and (s - 1)^2, and
    enlarge them again, linearly: sharpness tells less then."""
    draws, size = uniform(fold_in(seeds, RESAMPLED_STREAM), 2), patches.shape[-1]
    sides = (draws[:, 1] * ((size - 1) ** 2 - smallest**2) + smallest**2).sqrt().long()
    sides = sides.where(draws[:, 0] < probability, size)
    there_and_back = _resampling(size, smallest, patches.device)[sides - smallest]  # (M, s, s)
    return there_and_back.mT[:, None] @ patches @ there_and_back[:, None]


@lru_cache
def _resampling(size, smallest, device):
    """What resampling by way of each side from `smallest` to `size` does to a row of pixels from the left: (sides, s,
    s)."""
    basis = torch.eye(size, device=device)[None]
    shrunk = (F.interpolate(basis, side, mode="linear") for side in range(smallest, size + 1))
    return torch.cat([F.interpolate(rows, size, mode="linear") for rows in shrunk])


def project_colours(patches):
    """Take the axis [-1, 2, -1] out of the colours of (M, 3, s, s), between green and magenta, along which lenses
    shift them."""
    red, green, blue = patches.unbind(1)
    share = (2 * green - red - blue) / 6
    return torch.stack([red + share, green - 2 * share, blue + share], dim=1)


def drop_colours(patches, seeds):
    """Keep one channel of each patch (M, 3, s, s), around 0, and put noise of a hundredth of its spread in the place
    of the others."""
    kept = (3 * uniform(fold_in(seeds, DROPPED_COLOUR_STREAM), 1)).long()  # (M, 1)
    channel = patches.gather(1, kept[..., None, None].expand(-1, 1, *patches.shape[-2:]))
    channel = channel - channel.mean((2, 3), keepdim=True)
    noise = uniform(fold_in(seeds, PATCH_NOISE_STREAM), patches[0].numel()).view_as(patches) - 0.5
    noise *= 12**0.5 / 100 * channel.square().mean((2, 3), keepdim=True).sqrt()
    return noise.scatter(1, kept[..., None, None].expand_as(channel), channel)


__all__ = ["RelativePositionConfig", "RelativePositionForPreTraining"]
