"""Crops of a batch of images: boxes with torchvision's distribution, and what is in them, resized as torchvision does."""

import math

import torch

from ..methods._random import uniform
from .pixels import apply_to, without_autocast

ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after as many
FAR = 1e6  # pixels: where nothing has weight


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


def random_square_boxes(seeds, heights, widths, scale=(1.0, 1.0)):
    """Boxes of squares at random places, (N, 4) int64: top, left, height, width. scale: of their area, as a part of that of
    the largest square; `heights` and `widths`: (N,) pixels."""
    draws = uniform(seeds, 3).double()  # (N, 3): area, top, left
    side = torch.minimum(heights, widths) * (scale[0] + (scale[1] - scale[0]) * draws[:, 0]).sqrt()
    side = side.round().clamp(min=1)
    top, left = ((draws[:, i] * (edge - side + 1)).floor() for i, edge in ((1, heights), (2, widths)))
    return torch.stack([top, left, side, side], dim=1).long()


def _bilinear(x):
    return x.neg_().add_(1).clamp_(min=0)


def _bicubic(x):
    """PIL's and torchvision's, with a = -0.5: (3 x - 5) x^2 / 2 + 1 below 1, ((5 - x) x - 8) x / 2 + 2 from there to 2."""
    near, far = (1 - x).clamp_(min=0), x.neg_().add_(2).clamp_(min=0)
    return near.square().mul_(1 - 2 * near).add_(far.square().mul_(far.sub_(1)), alpha=0.5)


INTERPOLATIONS = {"bilinear": _bilinear, "bicubic": _bicubic}  # weight at distance x


def _resize_weights(start, length, in_size, out_size, interpolation, flip=None):
    """Antialiased interpolation from pixels start .. start + length: (N, out_size, in_size), rows sum to 1."""
    start, length = start[:, None].float(), length[:, None].float()
    stretch = length / out_size
    place = torch.arange(out_size, device=start.device)  # (out_size,)
    if flip is not None:
        place = torch.where(flip[:, None], out_size - 1 - place, place)  # (N, out_size)
    centre = (place + 0.5) * stretch
    pixel = torch.arange(in_size, device=start.device) - start  # (N, in_size), relative to the crop
    pixel = torch.where((pixel >= 0) & (pixel < length), pixel + 0.5, FAR)
    x = (pixel[:, None] - centre[:, :, None]).div_(stretch.clamp(min=1.0)[:, None]).abs_()  # (N, out_size, in_size)
    weights = INTERPOLATIONS[interpolation](x)
    return weights.div_(weights.sum(-1, keepdim=True))


@without_autocast
def resized_crop(images, boxes, size, flip=None, interpolation="bicubic"):
    """Cut each image's box out and resize it to size x size: images (N, C, H, W) float, boxes (N, 4), flip (N,) bool."""
    n, c, h, w = images.shape
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], h, size, interpolation)  # (N, size, H)
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], w, size, interpolation, flip)  # (N, size, W)
    images = images.reshape(n, c * h, w) @ columns.transpose(1, 2)  # (N, C H, size)
    return rows[:, None] @ images.view(n, c, h, size)  # (N, C, size, size)


def crop_and_flip(images, boxes, size, flip, interpolation):
    """uint8 images (N, C, H, W) to pixels (N, C, size, size) in [0, 1]. boxes: None if the images are crops already."""
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # crops come channels-last
    if boxes is None:
        return apply_to(flip, lambda chosen: chosen.flip(-1), pixels)
    return resized_crop(pixels, boxes, size, flip, interpolation).clamp_(0, 1)
