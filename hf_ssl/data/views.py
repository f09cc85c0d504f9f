"""Views of a batch of images, made on the device in one go.

Each draw belongs to its sample (`hf_ssl.methods._random`), so a view is the same whichever worker, process or batch it
is made in. Each operation equals torchvision's on fixed parameters, and the parameters have torchvision's distribution.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..methods._random import fold_in, uniform

CROP_STREAM, FLIP_STREAM = 101, 102  # separate the draws of the operations
ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after as many


def random_crop_boxes(seeds, heights, widths, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    """Boxes of RandomResizedCrop, (N, 4) int64: top, left, height, width. `heights` and `widths`: (N,) pixels."""
    heights, widths = heights[:, None].double(), widths[:, None].double()
    draws = uniform(seeds, 2 * ATTEMPTS + 2).double()  # (N, 22): ten areas, ten ratios, top, left
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[:, :ATTEMPTS])
    log_ratio = math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws[:, ATTEMPTS : 2 * ATTEMPTS]
    w, h = (area * log_ratio.exp()).sqrt().round(), (area / log_ratio.exp()).sqrt().round()  # (N, 10)
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    first = fits.long().argmax(dim=1, keepdim=True)  # the first attempt that fits

    # if none fits: the largest centre crop with an allowed ratio
    image_ratio = widths / heights
    fallback_w = torch.where(image_ratio > ratio[1], (heights * ratio[1]).round(), widths)
    fallback_h = torch.where(image_ratio < ratio[0], (widths / ratio[0]).round(), heights)
    found = fits.any(dim=1, keepdim=True)
    w = torch.where(found, w.gather(1, first), fallback_w)
    h = torch.where(found, h.gather(1, first), fallback_h)
    top = torch.where(found, (draws[:, -2:-1] * (heights - h + 1)).floor(), ((heights - h) / 2).floor())
    left = torch.where(found, (draws[:, -1:] * (widths - w + 1)).floor(), ((widths - w) / 2).floor())
    return torch.cat([top, left, h, w], dim=1).long()


def _resize_weights(start, length, in_size, out_size):
    """Antialiased bicubic interpolation from pixels start .. start + length: (N, out_size, in_size), rows sum to 1."""
    start, length = start[:, None, None].float(), length[:, None, None].float()
    stretch = length / out_size
    support = stretch.clamp(min=1.0)
    centre = (torch.arange(out_size, device=start.device)[:, None] + 0.5) * stretch  # (N, out_size, 1)
    pixel = torch.arange(in_size, device=start.device) - start  # (N, 1, in_size), relative to the crop
    x = ((pixel + 0.5 - centre) / support).abs()
    a = -0.5  # as PIL and torchvision's antialiased bicubic
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((pixel >= 0) & (pixel < length), weights, 0.0)
    return weights / weights.sum(-1, keepdim=True)


def resized_crop(images, boxes, size, flip=None):
    """Cut each image's box out and resize it to size x size: images (N, C, H, W) float, boxes (N, 4), flip (N,) bool."""
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], images.shape[2], size)  # (N, size, H)
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], images.shape[3], size)  # (N, size, W)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ images @ columns.transpose(1, 2)[:, None]  # (N, C, size, size)


@dataclass
class RandomResizedCropAndFlip:
    """MAE's whole augmentation (its appendix A.1): a random crop, resized with bicubic interpolation, and a flip.

    size: side of the view in pixels. scale, ratio: of the crop's area and sides, as in torchvision. mean, std: one number
    a channel or one for all; pixels are scaled to [0, 1] first.
    """

    size: int
    mean: list[float]
    std: list[float]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def boxes(self, sample_seeds, heights, widths):
        return random_crop_boxes(fold_in(sample_seeds, CROP_STREAM), heights, widths, self.scale, self.ratio)

    def __call__(self, images, boxes, sample_seeds):
        """uint8 images (N, C, H, W) and their boxes (N, 4) to the model's batch."""
        flip = uniform(fold_in(sample_seeds, FLIP_STREAM), 1)[:, 0] < 0.5
        pixels = resized_crop(images.float().div_(255), boxes, self.size, flip).clamp_(0, 1)
        mean, std = _constants(tuple(self.mean), tuple(self.std), pixels.device)
        return {"pixel_values": pixels.sub_(mean).div_(std), "sample_seeds": sample_seeds}


@lru_cache
def _constants(mean, std, device):
    """(C, 1, 1) each, moved to the device once."""
    return tuple(torch.tensor(value, device=device).reshape(-1, 1, 1) for value in (mean, std))
