"""Two views of photographs, from PNG files in memory: ours beside torchvision's and lightly's transforms."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_ssl.data import VIEWS, ImageDecoder, TrainLoader, Views

from .timing import device

WORKERS = 2  # processes that decode, on either side
NORMALIZE = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
SOURCES = {32: (32, 2048), 224: (256, 256)}  # pixels of a view -> pixels of the photographs, and how many


def blur_probability(pixels):
    return 0.5 if pixels > 64 else 0.0  # recipes for CIFAR leave the blur out


@lru_cache
def photographs(pixels):
    """PNG files: squares cut at random out of the two photographs that come with scikit-learn."""
    side, count = SOURCES[pixels]
    scenes = [Image.fromarray(scene) for scene in load_sample_images().images]
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        scene = scenes[random.integers(len(scenes))]
        cut = random.integers(scene.height * 3 // 5, scene.height + 1)
        left, top = random.integers(scene.width - cut + 1), random.integers(scene.height - cut + 1)
        file = io.BytesIO()
        scene.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + cut, top + cut)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def open_png(file):
    return Image.open(io.BytesIO(file)).convert("RGB")


@dataclass
class Twice:
    view: Callable

    def __call__(self, image):
        return self.view(image), self.view(image)


def torchvision_transform(pixels):
    """MoCo v2's, as in main_moco.py, with torchvision's blur; two views."""
    blur = v2.GaussianBlur(2 * (pixels // 20) + 1, (0.1, 2.0))
    view = v2.Compose([
        v2.RandomResizedCrop(pixels, scale=(0.2, 1.0)),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([blur], p=blur_probability(pixels))] if blur_probability(pixels) else []),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(*NORMALIZE),
    ])  # fmt: skip
    return Twice(view)


def lightly_transform(pixels):
    from lightly.transforms import MoCoV2Transform

    return MoCoV2Transform(input_size=pixels, gaussian_blur=blur_probability(pixels))


class Transformed(Dataset):
    def __init__(self, pixels, transform):
        self.files, self.transform = photographs(pixels), transform(pixels)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        return self.transform(open_png(self.files[row]))


def their_views(pixels, batch, transform):
    """Pairs of (N, 3, H, W) without end."""
    data = Transformed(pixels, transform)
    order = RandomSampler(data, replacement=True, num_samples=10**9)
    yield from DataLoader(data, batch, sampler=order, num_workers=WORKERS)


class Decoded:
    """Arrays in memory as TrainLoader reads them."""

    def __init__(self, pixels):
        self.images = [np.asarray(open_png(file)) for file in photographs(pixels)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return {"image": [self.images[row] for row in rows]}


def our_views(pixels, batch, decoded=False):
    """Batches of the model without end, as the loop makes them."""
    if decoded:
        data = Decoded(pixels)
    else:
        data = datasets.Dataset.from_dict({"image": [{"bytes": file, "path": None} for file in photographs(pixels)]})
    recipes = [replace(recipe, blur_probability=blur_probability(pixels)) for recipe in VIEWS["moco_v2"]]
    view = Views(pixels, *NORMALIZE, recipes)
    for tensors in TrainLoader(data, ImageDecoder("image", 3, view), batch, seed=0, num_workers=WORKERS):
        yield view(**{name: value.to(device(), non_blocking=True) for name, value in tensors.items()})


def check_views(pixels):
    """Both sides must make the same thing of one image, up to their random draws."""
    ours, (theirs, _) = (
        next(our_views(pixels, 64))["pixel_values"],
        next(their_views(pixels, 64, torchvision_transform)),
    )
    statistics = [(views.mean().item(), views.std().item()) for views in (ours, theirs)]
    if ours.shape != theirs.shape or max(abs(a - b) for a, b in zip(*statistics, strict=True)) > 0.3:
        raise ValueError(f"The views differ before the timing: mean and standard deviation {statistics}.")
