"""RandAugment of a batch: torchvision's operations, drawn from each sample's seed.

Cubuk et al. 2019, https://arxiv.org/abs/1909.13719, as FixMatch uses it: each image gets its own strength, not all the same.
"""

from functools import cache

import torch
from torchvision.transforms.v2 import RandAugment

from ..errors import InputError
from ..methods._random import uniform
from .pixels import without_autocast

STRENGTHS = 10  # of 31 steps each: 0, 3 .. 27, from nothing to torchvision's strongest but one


@cache
def _transform(operations, strength):
    return RandAugment(operations, strength * 3, fill=127)


@without_autocast
def rand_augment(pixels, seeds, operations=2):
    """Images (N, C, H, W) in [0, 1], each after `operations` of RandAugment. seeds: (N,) int64. Raises InputError unless they
    have one channel or three."""
    if pixels.shape[1] not in (1, 3):
        raise InputError(f"RandAugment changes grey and colour images: found {pixels.shape[1]} channels.")
    strengths = (uniform(seeds, 1)[:, 0] * STRENGTHS).long().tolist()
    images = pixels.mul(255).round_().to(torch.uint8)  # what posterising and equalising work on
    changed = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws on the CPU, whatever the images are on
        for image, seed, strength in zip(images, seeds.tolist(), strengths, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(_transform(operations, strength)(image))
    return torch.stack(changed).to(pixels.dtype).div_(255)
