"""Pretext tasks against what first comes to mind: PIL, and loops over images, tiles and pairs.

Both sides crop, flip and normalise alike, have the same networks and the same optimizer. `task` is the batch as the network
sees it, with its labels, made of decoded images on one thread; `step` is that and a step of training.
"""

import random
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import to_tensor

from hf_ssl.cli import RESNET18, resnet8
from hf_ssl.data import RandomResizedCropAndFlip
from hf_ssl.data.views import CenterCrop
from hf_ssl.methods import METHODS
from hf_ssl.methods._backbone import pooled
from hf_ssl.methods.relative_position import neighbours
from hf_ssl.methods.rotation import rotate
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from .timing import device, interleave, place, print_speed, timed, verdict

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
METHODS_COMPARED = ("rotation", "relative_position", "jigsaw", "exemplar")
DEMANDED = 3.0
RATE = 0.01


class Size(NamedTuple):
    name: str
    pixels: int
    batch: int
    backbone: dict
    patch: int  # pixels of a patch or tile
    gap: int
    exemplar: int  # pixels of its patch

    def config(self, method):
        return {
            "rotation": {},
            "relative_position": dict(
                patch_size=self.patch, gap=self.gap, jitter=1, smallest_size=3, head_hidden_size=512
            ),
            "jigsaw": dict(
                tile_size=self.patch, channel_shift=0, permutations=100, tile_features_size=128, head_hidden_size=512
            ),
            "exemplar": dict(patch_size=self.exemplar, num_samples=1000),
        }[method] | {"backbone_config": self.backbone}


SIZES = {
    size.name: size
    for size in (Size("r8-28", 28, 128, resnet8(32), 8, 1, 20), Size("r18-96", 96, 32, RESNET18, 24, 8, 64))
}


def images(size):
    """uint8 images, (N, 1, 3, S, S), without sharp edges."""
    noise = torch.rand(size.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size.pixels, mode="bicubic").clamp(0, 1).mul(255).byte()[:, None]


# -- ours --------------------------------------------------------------------------------------------------------------


def our_model(method, size):
    torch.manual_seed(0)
    model_class = METHODS[method]
    return model_class(model_class.config_class(**size.config(method))).to(device()).train()


def our_batch(method, size):
    """A function that gives the arguments of `forward`, with other draws at each call."""
    pixels, rows = images(size).to(device()), torch.arange(size.batch, device=device())
    if method == "exemplar":
        view = CenterCrop(size.pixels, [0.0], [1.0])
    else:
        view = RandomResizedCropAndFlip(size.pixels, MEAN, STD)
    sides, calls = torch.full_like(rows, size.pixels), iter(range(10**9))

    def batch():
        seeds = rows + 1000 * next(calls)
        boxes = None if method == "exemplar" else view.boxes(seeds, sides, sides)
        made = view(pixels, seeds, boxes)
        return made | ({"sample_indices": rows} if method == "exemplar" else {})

    return batch


def our_task(method, model, batch):
    made = batch()
    with torch.no_grad():
        match method:
            case "rotation":
                return rotate(made["pixel_values"], 4)
            case "relative_position":
                return model.patches(made["pixel_values"], made["sample_seeds"])
            case "jigsaw":
                return model.as_seen(
                    model.puzzles(made["pixel_values"], made["sample_seeds"])[2], made["sample_seeds"]
                )
            case "exemplar":
                return model.exemplars(made["pixel_values"], made["sample_indices"], made["sample_seeds"])


# -- the other side ----------------------------------------------------------------------------------------------------

CROP = {}  # side -> torchvision's crop


def cropped(image, size):
    crop = CROP.setdefault(
        size.pixels, RandomResizedCrop(size.pixels, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
    )
    image = crop(image)
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def normalized(image):
    return (to_tensor(image) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def turned(image, model, size):
    """Four images, and by how much each is turned."""
    image = cropped(image, size)
    return [(normalized(image.rotate(90 * label)), label) for label in range(4)]


def patch_pairs(image, model, size):
    """Pairs of neighbours, and where the second lies."""
    image, config, patches = cropped(image, size), model.config, []
    step, free = size.patch + size.gap, size.pixels - config.grid_size
    top, left = random.randint(0, free), random.randint(0, free)
    for row in range(3):
        for column in range(3):
            x = left + column * step + random.randint(0, 2 * config.jitter)
            y = top + row * step + random.randint(0, 2 * config.jitter)
            patch = image.crop((x, y, x + size.patch, y + size.patch))
            if random.random() < config.resampling_probability:
                side = random.randint(config.smallest_size, size.patch - 1)
                patch = patch.resize((side, side), Image.Resampling.BILINEAR)
                patch = patch.resize((size.patch, size.patch), Image.Resampling.BILINEAR)
            patch, kept = normalized(patch), random.randrange(3)
            channel = patch[kept] - patch[kept].mean()
            patch = torch.randn_like(patch) * channel.std() / 100
            patch[kept] = channel
            patches.append(patch / patch.square().mean().sqrt().clamp(min=1e-4))
    return [
        (torch.stack([patches[first], patches[second]]), label) for first, second, label in zip(*_pairs(), strict=True)
    ]


def _pairs():
    return [each.tolist() for each in neighbours("all")]


def shuffled(image, model, size):
    """Nine tiles in one of the orders, and which."""
    image, cell = cropped(image, size), size.pixels // 3
    if random.random() < model.config.grey_probability:
        image = image.convert("L").convert("RGB")
    tiles = []
    for row in range(3):
        for column in range(3):
            x = column * cell + random.randint(0, cell - size.patch)
            y = row * cell + random.randint(0, cell - size.patch)
            tile = normalized(image.crop((x, y, x + size.patch, y + size.patch)))
            tiles.append((tile - tile.mean((1, 2), keepdim=True)) / tile.std((1, 2), keepdim=True).clamp(min=1e-4))
    label = random.randrange(len(model.permutation_set))
    return [(torch.stack([tiles[cell] for cell in model.permutation_set[label].tolist()]), label)]


def transformed(image, model, size, row):
    """Two transformations of one patch, and the row."""
    config, side = model.config, size.exemplar
    pixels = np.asarray(image, dtype=np.float32) / 255
    grey = pixels.mean(2)
    energy = np.zeros_like(grey)
    energy[:-1] += np.diff(grey, axis=0) ** 2
    energy[:, :-1] += np.diff(grey, axis=1) ** 2
    places = np.lib.stride_tricks.sliding_window_view(energy, (side, side)).mean((2, 3))
    chosen = np.random.default_rng(row).choice(places.size, p=places.ravel() / places.sum())
    top, left = divmod(int(chosen), places.shape[1])
    return [(_coloured(_moved(image, top, left, side, config), config), row) for _ in range(config.transforms)]


def _between(limits):
    low, high = limits
    return low * (high / low) ** random.random()


def _moved(image, top, left, side, config):
    scale, angle = _between(config.scale), np.radians(random.uniform(-config.rotation, config.rotation))
    x, y = (at + side / 2 + random.uniform(-1, 1) * config.translation * side for at in (left, top))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    half = side / 2
    matrix = (cos, sin, x - half * (cos + sin), -sin, cos, y - half * (cos - sin))
    return image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _coloured(patch, config):
    pixels = np.asarray(patch, dtype=np.float32).reshape(-1, 3) / 255
    mean = pixels.mean(0)
    _, axes = np.linalg.eigh(np.cov((pixels - mean).T) + 1e-6 * np.eye(3))
    factors = np.array([_between(config.contrast) for _ in range(3)])
    pixels = ((pixels - mean) @ axes * factors) @ axes.T + mean
    patch = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8).reshape(*patch.size, 3))
    hsv = np.asarray(patch.convert("HSV"), dtype=np.float32) / 255
    hsv[..., 0] = (hsv[..., 0] + random.uniform(-config.hue, config.hue)) % 1
    for channel in (1, 2):
        bent = hsv[..., channel] ** _between(config.power) * _between(config.factor)
        hsv[..., channel] = bent + random.uniform(-config.shift, config.shift)
    return to_tensor(Image.fromarray((hsv.clip(0, 1) * 255).astype(np.uint8), "HSV").convert("RGB"))


def naive_task(method, model, size, pictures):
    """(what the network sees, labels)."""
    match method:
        case "exemplar":
            made = [each for row, image in enumerate(pictures) for each in transformed(image, model, size, row)]
        case _:
            one = {"rotation": turned, "relative_position": patch_pairs, "jigsaw": shuffled}[method]
            made = [each for image in pictures for each in one(image, model, size)]
    seen, labels = zip(*made, strict=True)
    return torch.stack(seen).to(device()), torch.tensor(labels, device=device())


def naive_logits(method, model, seen):
    match method:
        case "jigsaw":
            features = [model.tile_head(pooled(model.backbone, seen[:, tile])) for tile in range(9)]
            return model.head(torch.cat(features, dim=1))
        case "relative_position":
            return model.head(torch.cat([pooled(model.backbone, seen[:, side]) for side in range(2)], dim=1))
        case _:
            return model.head(pooled(model.backbone, seen))


# -- both --------------------------------------------------------------------------------------------------------------


def training_step(model, loss):
    """A function that does a step of training on what `loss()` gives."""
    optimizer = build_optimizer(model, RATE, TrainingArguments(optim="sgd"))

    def step():
        found = loss()
        found.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(sizes, rounds, method=None):
    for each in [method] if method else METHODS_COMPARED:
        _compare(each, SIZES[sizes], rounds)


def _compare(method, size, rounds):
    model, other = our_model(method, size), our_model(method, size)
    choose_kernels(model, Accelerator())  # as the loop does
    batch, pictures = (
        our_batch(method, size),
        [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images(size)[:, 0]],
    )

    def naive_loss():
        seen, labels = naive_task(method, other, size, pictures)
        return F.cross_entropy(naive_logits(method, other, seen), labels)

    ours, theirs = "hf_ssl", "PIL and loops"
    parts = {
        "task": {
            theirs: partial(naive_task, method, other, size, pictures),
            ours: partial(our_task, method, model, batch),
        },
        "step": {
            theirs: training_step(other, naive_loss),
            ours: training_step(model, lambda: model(**batch()).loss),
        },
    }
    for part, runs in parts.items():
        seconds = interleave({name: partial(timed, run) for name, run in runs.items()}, rounds)
        title = f"{method}, {part}: {place()}, {size.name}, {size.pixels} px, batch {size.batch}, {rounds} rounds."
        print_speed(title, seconds, {theirs: theirs})
        verdict(f"{method}, {part}", median(seconds[theirs]) / median(seconds[ours]), DEMANDED)
