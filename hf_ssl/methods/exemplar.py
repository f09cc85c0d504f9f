"""Exemplar networks: every patch is a class of its own, seen under many transformations, and the network tells
classes apart. What it learns of a patch is what the transformations leave of it.

Dosovitskiy et al. 2014, https://arxiv.org/abs/1406.6909. There is no official code. loss="triplet":
Doersch and Zisserman 2017, https://arxiv.org/abs/1708.07860, section 3. Deviations: one patch of every image of the
data, where the paper takes some thousands of an unlabelled set; transformations are drawn anew in each epoch, where the
paper has a hundred or so for each class; the principal components of colours are those of natural images (Ruderman et
al. 1998, https://doi.org/10.1364/JOSAA.15.002036), not of the data; the layer between features and classes, which the
paper has too, has no dropout.
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
from ._colour_spaces import hsv_to_rgb, rgb_to_hsv
from ._distributed import gather, gather_with_gradient
from ._initialization import draw_as_torch
from ._random import EXEMPLAR_COLOUR_STREAM, EXEMPLAR_PATCH_STREAM, EXEMPLAR_PLACE_STREAM, fold_in, uniform
from ._tiles import cut_tiles, tile_features

COLOUR_AXES = ((1.0, 1.0, 1.0), (1.0, 1.0, -2.0), (1.0, -1.0, 0.0))  # brightness, yellow to blue, red to green


@strict
class ExemplarConfig(SSLConfig):
    """Defaults: the paper's, with a ResNet-50; the paper uses small networks of three to five layers for 32 px.

    backbone_config: of an image encoder of transformers with a pooler_output. num_samples: the classes, rows of the
    data; set by the command line. patch_size: pixels. transforms: K, of each patch in a step. loss: "softmax" over
    all classes, or "triplet", by which two transforms of one patch are nearer by `margin`, in cosine, than those of
    two patches. head_hidden_size: units of the layer between features and classes, or triplets. Ranges, each drawn
    uniformly: translation: parts of the patch, up or down and left or right. scale: of its side, by logarithm.
    rotation: degrees, either way. contrast: factor of each principal component of its colours, by logarithm. power,
    factor, shift: of saturation and value, one after the other, the first two by logarithm. hue: parts of the circle,
    either way.
    """

    model_type = "ssl_exemplar"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    patch_size: int = 32
    transforms: int = 2
    loss: str = "softmax"
    margin: float = 0.5
    head_hidden_size: int = 512
    translation: float = 0.2
    scale: tuple[float, float] | list[float] = (0.7, 1.4)
    rotation: float = 20.0
    contrast: tuple[float, float] | list[float] = (0.5, 2.0)
    power: tuple[float, float] | list[float] = (0.25, 4.0)
    factor: tuple[float, float] | list[float] = (0.7, 1.4)
    shift: float = 0.1
    hue: float = 0.1

    def validate_ranges(self):
        self.check_least(
            num_samples=0,
            patch_size=4,
            transforms=1,
            head_hidden_size=1,
            margin=0,
            translation=0,
            rotation=0,
            shift=0,
            hue=0,
        )
        if self.loss not in ("softmax", "triplet"):
            raise ValueError(f"loss must be one of softmax, triplet, found '{self.loss}'.")
        if self.loss == "triplet" and self.transforms < 2:
            raise ValueError(f"loss=triplet needs transforms of at least 2, found {self.transforms}.")
        for name in ("scale", "contrast", "power", "factor"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise ValueError(f"{name} must be two positive numbers, the smaller one first, found {values}.")


class ExemplarForPreTraining(SSLModel):
    config: ExemplarConfig
    input_modalities = ("image",)
    uses_sample_indices = True

    def __init__(self, config: ExemplarConfig):
        super().__init__(config)
        width, channels = check_backbone(config.backbone_config), config.backbone_config.num_channels
        if channels not in (1, 3):
            raise ValueError(f"exemplar needs images of 1 or 3 channels, found {channels}.")
        self.compares_samples = config.loss == "triplet"
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        outputs = config.num_samples if config.loss == "softmax" else config.head_hidden_size
        self.head = nn.Sequential(
            nn.Linear(width, config.head_hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(config.head_hidden_size, outputs),
        )
        self.post_init()

    def forward(self, pixel_values, sample_indices, sample_seeds=None, **kwargs):
        """pixel_values: (N, C, H, W) in [0, 1], images as they are. sample_indices: (N,), their rows, which decide
        where the patch of an image lies, always the same. `sample_seeds`, (N,) int64, decide the transformations;
        without them they are drawn afresh. `logits`: (N K, num_samples), image by image, with loss="softmax"."""
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, (len(pixel_values),), device=pixel_values.device)
        patches = self.exemplars(pixel_values, sample_indices, sample_seeds)  # (N, K, C, s, s)
        features = tile_features(self.backbone, patches)  # (N, K, D)
        if self.config.loss == "triplet":
            projections = F.normalize(self.head(features).float(), dim=-1)
            loss, accuracy, chance = triplet_loss(projections, sample_indices, self.config.margin)
            return SSLOutput(loss=loss, features=features[:, 0], metrics={"accuracy": accuracy, "chance": chance})
        logits = self.head(features.flatten(0, 1))
        labels = sample_indices.repeat_interleave(self.config.transforms)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return SSLOutput(
            loss=F.cross_entropy(logits.float(), labels),
            logits=logits,
            features=features[:, 0],
            metrics={"accuracy": accuracy, "chance": accuracy.new_tensor(1 / self.config.num_samples)},
        )

    @torch.no_grad()
    def exemplars(self, images, indices, seeds):
        """(N, C, H, W) to (N, K, C, s, s): of the patch of each image K transformations."""
        size = self.config.patch_size
        self.check_images(*images.shape[-2:])
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            centres = patch_centres(images, size, uniform(fold_in(indices, EXEMPLAR_PATCH_STREAM), 1)[:, 0])  # (N, 2)
            number = torch.arange(self.config.transforms, device=seeds.device)
            place, colour = (
                fold_in(fold_in(seeds, stream)[:, None], number)  # (N, K), a seed a patch
                for stream in (EXEMPLAR_PLACE_STREAM, EXEMPLAR_COLOUR_STREAM)
            )
            patches = self.moved(images, centres, place)
            return self.coloured(patches.flatten(0, 1), colour.flatten()).view_as(patches)

    def check_images(self, height, width):
        if min(height, width) < self.config.patch_size:
            raise ValueError(
                f"Patches of patch_size={self.config.patch_size} px do not fit in images of {height} x {width} px: "
                "set image_size or patch_size."
            )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds, count=4):
        """The images, the patch of each, and `count` of its transformations."""
        size = self.config.patch_size
        draws = uniform(fold_in(sample_indices, EXEMPLAR_PATCH_STREAM), 1)[:, 0]
        corners = (patch_centres(pixel_values, size, draws) - (size - 1) / 2).round().long()
        patch = cut_tiles(pixel_values, corners[:, :1], corners[:, 1:], size)[:, 0]
        others = [self.exemplars(pixel_values, sample_indices, fold_in(sample_seeds, i))[:, 0] for i in range(count)]
        return [
            PretextLine("image", pixel_values),
            PretextLine("patch", patch),
            *(PretextLine(f"as {number}", images) for number, images in enumerate(others, 1)),
        ]

    def moved(self, images, centres, seeds):
        """Squares around `centres` (N, 2), moved, scaled and turned: (N, K, C, s, s). Beyond the image's border it is
        mirrored."""
        config, (n, k), (height, width) = self.config, seeds.shape, images.shape[-2:]
        draws = uniform(seeds.flatten(), 4).view(n, k, 4)
        moves = (2 * draws[..., :2] - 1) * config.translation * config.patch_size  # (N, K, 2)
        scales = _log_uniform(draws[..., 2], config.scale)
        angles = (2 * draws[..., 3] - 1) * (config.rotation * torch.pi / 180)
        steps = torch.arange(config.patch_size, device=images.device) - (config.patch_size - 1) / 2
        y, x = torch.meshgrid(steps, steps, indexing="ij")  # (s, s)
        cos, sin = (f(angles)[..., None, None] / scales[..., None, None] for f in (torch.cos, torch.sin))
        middles = (centres[:, None] + moves)[..., None, None]  # (N, K, 2, 1, 1)
        rows, columns = middles[:, :, 0] + cos * y + sin * x, middles[:, :, 1] - sin * y + cos * x
        # where the corners of the image are -1 and 1, image by image all K squares one below the other
        places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
        patches = F.grid_sample(images, places.flatten(1, 2), padding_mode="reflection", align_corners=False)
        return patches.unflatten(2, (k, -1)).transpose(1, 2)

    def coloured(self, patches, seeds):
        """(M, C, s, s) in [0, 1], each with another contrast, saturation, value and hue."""
        config, draws = self.config, uniform(seeds, 10)[..., None, None]  # (M, 10, 1, 1)
        contrast = _log_uniform(draws[:, :3], config.contrast)
        mean = patches.mean((2, 3), keepdim=True)
        if patches.shape[1] == 1:
            value = (mean + contrast[:, :1] * (patches - mean)).clamp(0, 1)
            return self.bent(value, draws[:, 3:4], draws[:, 4:5], draws[:, 5:6])
        axes = _colour_axes(patches.device)
        components = torch.einsum("ac,mchw->mahw", axes, patches - mean) * contrast
        hue, *others = rgb_to_hsv((mean + torch.einsum("ac,mahw->mchw", axes, components)).clamp(0, 1)).split(1, dim=1)
        saturation, value = (
            self.bent(channel, *draws[:, at : at + 3].split(1, dim=1))
            for channel, at in zip(others, (3, 6), strict=True)
        )
        hue = hue + (2 * draws[:, 9:] - 1) * config.hue
        return hsv_to_rgb(torch.cat([hue, saturation, value], dim=1))

    def bent(self, channel, power, factor, shift):
        """A power of it, times a factor, plus a number, as draws (M, 1, 1, 1) say, in [0, 1]."""
        config = self.config
        bent = channel ** _log_uniform(power, config.power) * _log_uniform(factor, config.factor)
        return (bent + (2 * shift - 1) * config.shift).clamp(0, 1)

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)


def patch_centres(images, size, draws):
    """(N, 2), row and column of the middle of a patch of each image, drawn in proportion to the mean squared gradient
    in it."""
    grey = images.mean(1, keepdim=True)
    down, right = F.pad(grey.diff(dim=2), (0, 0, 0, 1)), F.pad(grey.diff(dim=3), (0, 1))
    energy = (
        F.avg_pool2d(down.square() + right.square(), size, stride=1) + 1e-8
    )  # of each patch; of flat images all alike
    columns, total = energy.shape[-1], energy.flatten(1).cumsum(1)
    place = torch.searchsorted(total, draws[:, None] * total[:, -1:], right=True).clamp(max=total.shape[1] - 1)
    return torch.cat([place // columns, place % columns], dim=1) + (size - 1) / 2


def triplet_loss(features, indices, margin):
    """Of unit features (N, K, D), of K transforms each: the mean of max(0, margin + cosine with each patch of another
    class - cosine with another transform of the own class), over all triples of the whole batch; how often the nearest
    of all patches is of the own class; and how often it would be by chance."""
    everyone, owners = gather_with_gradient(features), gather(indices)  # (W N, K, D), (W N,)
    count = features.shape[1]
    own = torch.einsum("nkd,njd->nkj", features, features)  # (N, K, K)
    pairs = ~torch.eye(count, dtype=torch.bool, device=features.device)
    own = own[:, pairs].view(-1, count, count - 1)  # (N, K, K - 1)
    other = torch.einsum("nkd,mjd->nkmj", features, everyone)  # (N, K, W N, K)
    gaps = own[..., None, None] - other[:, :, None]  # (N, K, K - 1, W N, K)
    differs = indices[:, None] != owners  # (N, W N): a row may stand twice in a batch
    counts = differs.float()[:, None, None, :, None].expand_as(gaps)
    loss = ((margin - gaps).clamp(min=0) * counts).sum() / counts.sum().clamp(min=1)
    nearest = other.masked_fill(~differs[:, None, :, None], -torch.inf).amax((2, 3))  # (N, K)
    chance = (count - 1) / (count - 1 + count * differs.sum(1).float())  # (N,)
    return loss, (own.amax(-1) > nearest).float().mean(), chance.mean()


@lru_cache
def _colour_axes(device):
    return F.normalize(torch.tensor(COLOUR_AXES, device=device), dim=1)


def _log_uniform(draws, limits):
    low, high = limits
    return low * (high / low) ** draws


__all__ = ["ExemplarConfig", "ExemplarForPreTraining"]
