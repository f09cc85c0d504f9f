"""PIRL: an image and its shuffled tiles are to have the same representation, another one than other images have. What a
jigsaw puzzle does to an image is not to be recognised, as in the pretext task of that name, but to be seen through.

Misra and van der Maaten 2019, https://arxiv.org/abs/1912.01991. Official code: https://github.com/facebookresearch/vissl,
configs/config/pretrain/pirl. A memory bank has a unit vector for each row of the data, what the network made of whole images
before; image and tiles are both compared with it. The order of the tiles is any of all, as in the paper; it needs no set of
permutations. loss="nce" is equation 5 with the constants of the code, where the sum over negatives in equation 4 is
estimated once, from the first batch; loss="softmax", the code's "cross_entropy", is over the whole bank. Deviations: image and
tiles each have an estimate of their own and the same negatives; with loss="softmax" the bank begins with what the network
makes of all rows before it has learnt anything, the code's with random numbers, from which short runs do not recover; both
crops have the same size; colours change crop by crop, the paper's tile by tile; batch statistics are those of all processes.
"""

import copy

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
from ._initialization import draw_as_torch
from ._memory import fill_bank, move_rows
from ._noise_contrastive import NoiseContrastiveLoss
from ._own_rows import check_bank, draw_noise_rows, own_row_loss, recognition_lines
from ._random import TILE_ORDER_STREAM, TILE_STREAM, fold_in, uniform
from ._tiles import cut_tiles, grid_corners, in_grid, tile_features

LOSSES = ("nce", "softmax")


@strict
class PIRLConfig(SSLConfig):
    """Defaults: the paper's, with a ResNet-50.

    backbone_config: of an image encoder of transformers with a pooler_output. num_samples: n, rows of the data; set by the
    command line. grid: tiles along a side. tile_size: pixels, of a tile, which lies anywhere in its cell of the grid.
    projection_size: P, of the bank's vectors and of what describes one tile. loss: "nce", against noise_samples draws, or
    "softmax", against the whole bank. tiles_weight: the paper's lambda, of the tiles' loss; the image's has the rest.
    bank_momentum: what a vector of the bank keeps of itself when its image is seen.
    """

    model_type = "ssl_pirl"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    grid: int = 3
    tile_size: int = 64
    projection_size: int = 128
    loss: str = "nce"
    noise_samples: int = 32_000
    temperature: float = 0.07
    bank_momentum: float = 0.5
    tiles_weight: float = 0.5

    def validate_ranges(self):
        self.check_least(num_samples=0, grid=2, tile_size=2, projection_size=1, noise_samples=1)
        check_bank(self, LOSSES)
        if not 0 <= self.tiles_weight <= 1:
            raise ValueError(f"tiles_weight must lie in [0, 1], found {self.tiles_weight}.")


class PIRLForPreTraining(SSLModel):
    config: PIRLConfig
    input_modalities = ("image",)
    uses_sample_indices = True

    def __init__(self, config: PIRLConfig):
        super().__init__(config)
        width, tiles = check_backbone(config.backbone_config), config.grid**2
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.projector = nn.Linear(width, config.projection_size)  # f
        self.tile_projector = nn.Linear(width, config.projection_size)  # of one tile
        self.tiles_projector = nn.Linear(tiles * config.projection_size, config.projection_size)  # g, of all
        self.register_buffer("bank", torch.empty(config.num_samples, config.projection_size))  # (n, P)
        nce = config.loss == "nce"
        self.image_nce = NoiseContrastiveLoss(config.temperature) if nce else None
        self.tiles_nce = NoiseContrastiveLoss(config.temperature) if nce else None
        self.post_init()

    def forward(self, pixel_values, sample_indices, pixel_values_2=None, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W). sample_indices: (N,), their rows. pixel_values_2: (N, C, H, W), another crop of each
        image, which is cut into tiles; the same one if it is not given. noise: (N, m), rows of the bank, for loss="nce".
        Tiles and noise follow from `sample_seeds`, (N,) int64; without them they are drawn afresh. `logits`, (N, n), how
        the tiles resemble each row, are only made in eval mode."""
        config = self.config
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, sample_indices.shape, device=sample_indices.device)
        if noise is None and config.loss == "nce":
            noise = draw_noise_rows(sample_indices, sample_seeds, config.noise_samples, config.num_samples)
        features = self.embed(pixel_values)  # (N, D)
        tiles = self.shuffled_tiles(pixel_values if pixel_values_2 is None else pixel_values_2, sample_seeds)
        image_queries = F.normalize(self.projector(features).float(), dim=1)  # (N, P)
        tiles_queries = self.tiles_queries(self.backbone, tiles)  # (N, P)

        image_loss, _ = own_row_loss(
            image_queries, self.bank, sample_indices, config.temperature, self.image_nce, noise
        )
        tiles_loss, metrics = own_row_loss(
            tiles_queries, self.bank, sample_indices, config.temperature, self.tiles_nce, noise
        )
        logits = None if self.training else tiles_queries @ self.bank.to(tiles_queries.dtype).T / config.temperature
        if self.training:
            move_rows(self.bank, sample_indices, image_queries.detach(), config.bank_momentum)  # after the loss
        return SSLOutput(
            loss=config.tiles_weight * tiles_loss + (1 - config.tiles_weight) * image_loss,
            logits=logits,
            features=features,
            projections=image_queries.detach(),
            projections_2=tiles_queries.detach(),
            metrics=metrics | {"image_loss": image_loss.detach(), "tiles_loss": tiles_loss.detach()},
        )

    def tiles_queries(self, backbone, tiles):
        """(N, T, C, s, s) to unit vectors, (N, P), float32."""
        described = self.tile_projector(tile_features(backbone, tiles))  # (N, T, P)
        return F.normalize(self.tiles_projector(described.flatten(1)).float(), dim=1)

    def before_epoch(self, epoch, features):
        """The bank begins with what the network makes of all rows before it has learnt anything."""
        if epoch == 0:
            fill_bank(self.bank, self.projector, features().to(self.dtype))

    @torch.no_grad()
    def shuffled_tiles(self, images, seeds):
        """(N, C, H, W) to (N, T, C, s, s): a tile from each cell of the grid, in an order drawn from all."""
        height, width = images.shape[-2:]
        self.check_images(height, width)
        count, size = self.config.grid**2, self.config.tile_size
        draws = uniform(fold_in(seeds, TILE_STREAM), 2 * count).view(-1, 2, count)
        tiles = cut_tiles(images, *grid_corners(height, width, self.config.grid, size, draws), size)
        order = uniform(fold_in(seeds, TILE_ORDER_STREAM), count).argsort(dim=1, stable=True)
        return tiles.gather(1, order[..., None, None, None].expand_as(tiles))

    def check_images(self, height, width):
        grid, size = self.config.grid, self.config.tile_size
        if min(height, width) // grid < size:
            raise ValueError(
                f"{grid} x {grid} tiles of {size} px need images of at least {grid * size} px, found {height} x {width}: "
                "set image_size, tile_size or grid."
            )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds):
        """The images, their shuffled tiles, above these at which place the tiles have the image's own row among all rows, and
        of the others here the one whose row is nearest to them. Tiles are normalised by their own statistics, as in training:
        the running ones are of images too."""
        tiles = self.shuffled_tiles(pixel_values, sample_seeds)
        queries = self.tiles_queries(copy.deepcopy(self.backbone).train(), tiles)
        recognized = recognition_lines(
            "shuffled tiles",
            in_grid(tiles, gap=1),
            pixel_values,
            queries @ self.bank.to(queries.dtype).T,
            sample_indices,
        )
        return [PretextLine("image", pixel_values), *recognized]

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.copy_(self.bank, F.normalize(torch.randn_like(self.bank), dim=1))
        elif isinstance(module, NoiseContrastiveLoss):
            module.reset()
        else:
            draw_as_torch(module)


__all__ = ["PIRLConfig", "PIRLForPreTraining"]
