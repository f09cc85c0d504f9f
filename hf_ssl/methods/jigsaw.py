"""Jigsaw: cut an image into nine tiles, shuffle them by one of a set of permutations, and tell which. Each tile is
seen alone, by one network, so that it has to know of each part of a thing what it is.

Noroozi and Favaro 2016, https://arxiv.org/abs/1603.09246. Official code:
https://github.com/MehdiNoroozi/JigsawPuzzleSolver. damaged=True: Kim et al. 2018, https://arxiv.org/abs/1802.01880:
grey tiles, one of which is missing and drawn anew, and all coloured. Deviations: the network is the same in transfer
(theirs has another stride in its first layer then), and the average of its last map describes a tile; their code also
projects some of the colour puzzles onto a line, which the paper does not say; of damaged puzzles the missing tile and
the colours are learnt by squared errors, without an adversary, at `completed_size` pixels.
"""

import itertools
from functools import lru_cache

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
from ._colour_spaces import LUMA
from ._initialization import draw_as_torch
from ._random import (
    GREY_PUZZLE_STREAM,
    MISSING_TILE_STREAM,
    PERMUTATION_STREAM,
    TILE_CHANNEL_STREAM,
    TILE_STREAM,
    fold_in,
    seed_from,
    uniform,
)
from ._tiles import cut_tiles, grid_corners, in_grid, normalize_tiles, tile_features

TILES = 9
MOST_PERMUTATIONS = 362_880  # 9!


@strict
class JigsawConfig(SSLConfig):
    """Defaults: the paper's.

    backbone_config: of an image encoder of transformers with a pooler_output. tile_size: pixels, of a tile, which
    lies anywhere in its cell, a ninth of the image. channel_shift: pixels by which each channel of a tile is shifted
    besides, at most. permutations: how many; each is drawn to be as far as possible from those before it, in the
    "mean" or the "minimum" of the Hamming distances (permutation_distance), the first by permutation_seed.
    grey_probability: of a puzzle. normalize_tiles: each channel of each tile to mean 0 and root mean square 1, so
    that edges cannot be matched by their brightness. tile_features_size: units that describe one tile;
    head_hidden_size: units that see all nine. damaged: all grey, one tile missing; completed_weight: of the completed
    tile and colours in the loss. completed_size: their side in pixels.
    """

    model_type = "ssl_jigsaw"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet", init_kwargs={"stride": 2})
    }

    backbone_config: dict | PreTrainedConfig | None = None
    tile_size: int = 64
    channel_shift: int = 2
    permutations: int = 1000
    permutation_distance: str = "mean"
    permutation_seed: int = 0
    grey_probability: float = 0.3
    normalize_tiles: bool = True
    tile_features_size: int = 1024
    head_hidden_size: int = 4096
    damaged: bool = False
    completed_weight: float = 1.0
    completed_size: int = 8

    def validate_ranges(self):
        self.check_least(
            tile_size=2, channel_shift=0, permutations=2, tile_features_size=1, head_hidden_size=1, completed_size=1
        )
        if self.permutations > MOST_PERMUTATIONS:
            raise ValueError(f"permutations must be at most 9! = {MOST_PERMUTATIONS}, found {self.permutations}.")
        if self.permutation_distance not in ("mean", "minimum"):
            raise ValueError(
                f"permutation_distance must be one of mean, minimum, found '{self.permutation_distance}'."
            )
        if not 0 <= self.grey_probability <= 1:
            raise ValueError(f"grey_probability must lie in [0, 1], found {self.grey_probability}.")


class JigsawForPreTraining(SSLModel):
    config: JigsawConfig
    input_modalities = ("image",)

    def __init__(self, config: JigsawConfig):
        super().__init__(config)
        width, channels = check_backbone(config.backbone_config), config.backbone_config.num_channels
        if channels != 3 and (config.grey_probability or config.damaged):
            name, value = ("damaged", "false") if config.damaged else ("grey_probability", "0")
            raise ValueError(f"{name} needs images of 3 channels, found {channels}: set {name}={value}.")
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        each, hidden = config.tile_features_size, config.head_hidden_size
        self.tile_head = nn.Sequential(nn.Linear(width, each), nn.ReLU(inplace=True))
        self.head = nn.Sequential(
            nn.Linear(TILES * each, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, config.permutations)
        )
        if config.damaged:
            pixels = config.completed_size**2
            self.colour_head = nn.Linear(each, channels * pixels)
            self.completion_head = nn.Linear(TILES * each, channels * pixels)
        self.register_buffer("permutation_set", torch.empty(config.permutations, TILES, dtype=torch.long))
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, **kwargs):
        """pixel_values: (N, C, H, W), a third of H and of W at least `tile_size` + `channel_shift`. What is random
        follows from `sample_seeds`, (N,) int64; without them it is drawn afresh. `logits`: (N, permutations)."""
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, (len(pixel_values),), device=pixel_values.device)
        labels, order, originals = self.puzzles(pixel_values, sample_seeds)
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            tiles = self.as_seen(originals, sample_seeds)
            missing = (TILES * uniform(fold_in(sample_seeds, MISSING_TILE_STREAM), 1)).long()  # (N, 1), a slot
            if self.config.damaged:
                tiles = tiles.masked_fill(F.one_hot(missing[:, 0], TILES).bool()[..., None, None, None], 0.0)
        features = tile_features(self.backbone, tiles)  # (N, 9, D)
        described = self.tile_head(features)  # (N, 9, F)
        logits = self.head(described.flatten(1))
        loss = F.cross_entropy(logits.float(), labels)
        guess = self.permutation_set[logits.argmax(1)]
        metrics = {
            "accuracy": (logits.argmax(1) == labels).float().mean(),
            "chance": loss.new_tensor(1 / self.config.permutations),
            "tiles_right": (guess == order).float().mean(),
        }
        if self.config.damaged:
            metrics["completion"], metrics["colours"] = self.completion_losses(described, originals, missing)
            loss = loss + self.config.completed_weight * (metrics["completion"] + metrics["colours"])
        return SSLOutput(loss=loss, logits=logits, features=features.mean(1), metrics=metrics)

    @torch.no_grad()
    def puzzles(self, images, seeds):
        """The permutation of each image, (N,), its cells slot by slot, (N, 9), and the tiles that lie there, (N, 9, C, s, s)."""
        draw = uniform(fold_in(seeds, PERMUTATION_STREAM), 1)[:, 0].double()
        labels = (draw * self.config.permutations).long()
        order = self.permutation_set[labels]
        with torch.autocast(images.device.type, enabled=False):
            cells = self.tiles(images.float(), seeds)
        return labels, order, cells.gather(1, order[..., None, None, None].expand_as(cells))

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds):
        """The tiles in their cells, as they are shuffled, and as the model puts them back."""
        _, order, shuffled = self.puzzles(pixel_values, sample_seeds)
        guess = self.permutation_set[self(pixel_values, sample_seeds).logits.argmax(1)]
        places = (each[..., None, None, None].expand_as(shuffled) for each in (order, guess))
        tiles, solved = (in_grid(shuffled.scatter(1, place, shuffled), gap=1) for place in places)
        right = (guess == order).sum(1)
        return [
            PretextLine("tiles", tiles),
            PretextLine("shuffled", in_grid(shuffled, gap=1)),
            PretextLine("solved", solved, right == TILES, [f"{count} of {TILES}" for count in right.tolist()]),
        ]

    def tiles(self, images, seeds):
        """(N, C, H, W) to (N, 9, C, s, s): a tile from each cell, cell by cell, each channel from a place of its own
        nearby."""
        config, (height, width) = self.config, images.shape[-2:]
        most = config.tile_size + config.channel_shift
        self.check_images(height, width)
        channels = images.shape[1]
        at = uniform(fold_in(seeds, TILE_STREAM), 2 * TILES).view(-1, 2, TILES)
        shifts = uniform(fold_in(seeds, TILE_CHANNEL_STREAM), 2 * TILES * channels).view(-1, 2, TILES, channels)
        shifts = (shifts * (config.channel_shift + 1)).long()
        corners = grid_corners(height, width, 3, most, at)
        tops, lefts = (corner[..., None] + shifts[:, axis] for axis, corner in enumerate(corners))  # (N, 9, C)
        cut = [cut_tiles(images[:, c, None], tops[..., c], lefts[..., c], config.tile_size) for c in range(channels)]
        return torch.cat(cut, dim=2)

    def check_images(self, height, width):
        config = self.config
        most = config.tile_size + config.channel_shift
        if min(height, width) // 3 < most:
            raise ValueError(
                f"Tiles of {config.tile_size} px with channel_shift={config.channel_shift} need images of at least "
                f"{3 * most} px, found {height} x {width}: set image_size, tile_size or channel_shift."
            )

    def as_seen(self, tiles, seeds):
        """(N, 9, C, s, s): some puzzles, or if damaged all, without colour, each tile normalised."""
        if self.config.damaged or self.config.grey_probability:
            grey = sum(share * tiles[:, :, c, None] for c, share in enumerate(LUMA)).expand_as(tiles)
            chosen = uniform(fold_in(seeds, GREY_PUZZLE_STREAM), 1) < self.config.grey_probability
            tiles = grey if self.config.damaged else torch.where(chosen[..., None, None, None], grey, tiles)
        return normalize_tiles(tiles, (-2, -1)) if self.config.normalize_tiles else tiles

    def completion_losses(self, described, originals, missing):
        """Mean squared errors of the missing tile, told from the other eight, and of the colours of each tile that is
        there."""
        size = self.config.completed_size
        target = F.adaptive_avg_pool2d(originals.flatten(0, 1), size).flatten(1).unflatten(0, originals.shape[:2])
        is_missing = F.one_hot(missing[:, 0], TILES).bool()  # (N, 9)
        completion = (self.completion_head(described.flatten(1)).float() - target[is_missing]).square().mean()
        errors = (self.colour_head(described).float() - target).square().mean(-1)  # (N, 9)
        return completion, errors.masked_fill(is_missing, 0.0).sum() / (errors.numel() - len(errors))

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            config = self.config
            chosen = distant_permutations(config.permutations, config.permutation_distance, config.permutation_seed)
            init.copy_(self.permutation_set, chosen)
        else:
            draw_as_torch(module)


@lru_cache
def distant_permutations(count, distance="mean", seed=0):
    """(count, 9) int64, each row 0 to 8 in some order: algorithm 1 of the paper. The first is drawn from `seed`, each
    other one is that of all 9! whose mean, or minimum, Hamming distance to those before it is largest, of several the
    first in lexicographic order: the same everywhere."""
    every = torch.tensor(list(itertools.permutations(range(TILES))), dtype=torch.uint8).T.contiguous()  # (9, 9!)
    worst = torch.full((MOST_PERMUTATIONS,), TILES if distance == "minimum" else 0, dtype=torch.int32)
    taken, following = [], seed_from(seed) % MOST_PERMUTATIONS
    for _ in range(count):
        taken.append(following)
        differs = sum((row != row[following]).view(torch.uint8) for row in every)  # (9!,), the Hamming distance
        torch.minimum(worst, differs.int(), out=worst) if distance == "minimum" else worst.add_(differs)
        worst[following] = -(2**30)
        following = int(worst.argmax())  # the first of equal ones
    return every.T[taken].long()


__all__ = ["JigsawConfig", "JigsawForPreTraining"]
