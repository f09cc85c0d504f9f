"""Views of a batch of images, made on the device in one go.

Each draw belongs to its sample (`hf_ssl.methods._random`), so a view is the same whichever worker, process or batch it
is made in. What the decoder (`hf_ssl.data.images`) asks of a view: `boxes`, of all its crops of each image, and `crops`,
{prefix: (size, interpolation) of each box}, which says in what tensors these crops come, should it make them itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from ..methods._random import (
    BLUR_STREAM,
    CROP_STREAM,
    CUTOUT_STREAM,
    FLIP_STREAM,
    GREY_STREAM,
    JITTER_STREAM,
    MOVE_STREAM,
    RAND_AUGMENT_STREAM,
    SOLARIZE_STREAM,
    VIEW_STREAM,
    fold_in,
    uniform,
)
from .crops import crop_and_flip, random_crop_boxes, random_square_boxes
from .pixels import apply_to, color_jitter, cut_out, gaussian_blur, grayscale, move, place_of_hue, solarize
from .rand_augment import rand_augment

LEAST_CENTER_CROP = 128  # pixels: smaller images are evaluated whole
BLUR_SIGMA = (0.1, 2.0)  # pixels
CHUNK = 3 * 2**19  # values augmented together on a CPU, to stay in its cache: ten colour views of 224 pixels


@dataclass
class _OneView:
    """A view that only crops and flips.

    size: side of the view in pixels. mean, std: one number a channel or one for all; pixels are scaled to [0, 1] first.
    """

    size: int
    mean: list[float]
    std: list[float]
    interpolation = "bicubic"

    @property
    def crops(self):
        return {"": [(self.size, self.interpolation)]}

    def flips(self, sample_seeds):
        """(N,): which images are mirrored."""
        return torch.zeros_like(sample_seeds, dtype=torch.bool)

    def __call__(self, images, sample_seeds, boxes=None):
        """uint8 images (N, 1, C, H, W) and their boxes (N, 1, 4), None for crops, to the model's batch."""
        boxes = None if boxes is None else boxes[:, 0]
        pixels = crop_and_flip(images[:, 0], boxes, self.size, self.flips(sample_seeds), self.interpolation)
        mean, std = _constants(tuple(self.mean), tuple(self.std), pixels.device)
        return {"pixel_values": pixels.sub_(mean).div_(std), "sample_seeds": sample_seeds}


@dataclass
class RandomResizedCropAndFlip(_OneView):
    """MAE's whole augmentation (its appendix A.1): a random crop, resized with bicubic interpolation, and a flip.

    scale, ratio: of the crop's area and sides, as in torchvision.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): a crop for each image."""
        seeds = fold_in(sample_seeds, CROP_STREAM)
        return random_crop_boxes(seeds, heights, widths, self.scale, self.ratio)[:, None]

    def flips(self, sample_seeds):
        return uniform(fold_in(sample_seeds, FLIP_STREAM), 1)[:, 0] < 0.5


@dataclass
class RandomSquareCrop(_OneView):
    """CLIP's whole augmentation (section 2.5): a random square of the image, resized with bicubic interpolation. There is no
    flip, since captions know left from right.

    scale: of the square's area, as a part of that of the largest square; the paper's is (1, 1).
    """

    scale: tuple[float, float] = (1.0, 1.0)

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): a crop for each image."""
        return random_square_boxes(fold_in(sample_seeds, CROP_STREAM), heights, widths, self.scale)[:, None]


@dataclass
class CenterCrop(_OneView):
    """The evaluation transform (`hf_ssl.data.images.image_processor`), nothing drawn: the centre of an image, of which 224 of
    256 parts are kept a side; below 128 pixels the whole image, resized."""

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): the same crop of an image in every epoch."""
        if self.size < LEAST_CENTER_CROP:
            return torch.stack([torch.zeros_like(heights), torch.zeros_like(widths), heights, widths], dim=1)[:, None]
        side = (torch.minimum(heights, widths) * (224 / 256)).round().long()
        return torch.stack([(heights - side) // 2, (widths - side) // 2, side, side], dim=1)[:, None]


@dataclass(frozen=True)
class ViewRecipe:
    """What is done to an image for one view: a crop, a flip, and what of the rest has a probability.

    scale, ratio: of the crop's area and sides, as in torchvision. interpolation: "bilinear" or "bicubic". color_jitter:
    ranges of brightness, contrast, saturation and hue as torchvision's ColorJitter takes them, all multiplied by
    jitter_strength. grayscale_first: before the jitter. move: by how much of its side an image is moved at most, each way, its
    borders mirrored. rand_augment: how many operations of RandAugment follow. cutout: the side of a grey square that is put
    at a random place, as a part of the view's.
    Deviations: the blur is torchvision's, with a kernel of a tenth of the size and reflected borders, where MoCo's is
    PIL's and SimCLR's has zeros around; contrast turns around the mean grey, where SimCLR's turns around each channel's.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bicubic"
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    solarize_probability: float = 0.0
    jitter_strength: float = 1.0
    grayscale_first: bool = False
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    move: float = 0.0
    rand_augment: int = 0
    cutout: float = 0.0

    def boxes(self, seeds, heights, widths):
        """(N, 4): the crop of each image."""
        return random_crop_boxes(fold_in(seeds, CROP_STREAM), heights, widths, self.scale, self.ratio)

    def draw(self, seeds):
        """What is drawn beside the crop: a dict of (N,) or (N, 4), the arguments of `augment`."""
        flip, grey, solar = (uniform(fold_in(seeds, s), 1)[:, 0] for s in (FLIP_STREAM, GREY_STREAM, SOLARIZE_STREAM))
        jitter, blur = uniform(fold_in(seeds, JITTER_STREAM), 9), uniform(fold_in(seeds, BLUR_STREAM), 2)
        *spread, hue = (self.jitter_strength * value for value in self.color_jitter)
        ranges = [(max(0.0, 1 - value), 1 + value, 1.0) for value in spread] + [(-hue, hue, 0.0)]
        jittered = jitter[:, 8] < self.jitter_probability
        factors = [  # what changes nothing where there is no jitter
            torch.where(jittered, low + (high - low) * jitter[:, i], identity)
            for i, (low, high, identity) in enumerate(ranges)
        ]
        draws = {
            "flip": flip < 0.5,
            "factors": torch.stack(factors, dim=1),
            "turns": jitter[:, 4:8],
            "grey": grey < self.grayscale_probability,
            "blurred": blur[:, 0] < self.blur_probability,
            "sigma": BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * blur[:, 1],
            "solarized": solar < self.solarize_probability,
        }
        if self.move:
            draws["offsets"] = self.move * (2 * uniform(fold_in(seeds, MOVE_STREAM), 2) - 1)
        if self.rand_augment:
            draws["operation_seeds"] = fold_in(seeds, RAND_AUGMENT_STREAM)
        if self.cutout:
            draws["square"] = uniform(fold_in(seeds, CUTOUT_STREAM), 2)
        return draws

    def augment(
        self, images, size, flip, factors, turns, grey, blurred, sigma, solarized, offsets=None, operation_seeds=None,
        square=None, boxes=None,
    ):  # fmt: skip
        """uint8 images (N, C, H, W) to pixels (N, C, size, size) in [0, 1]. boxes: None if the images are crops already."""
        pixels = crop_and_flip(images, boxes, size, flip, self.interpolation)
        if self.move:
            pixels = move(pixels, (offsets * size).round().long())
        if self.grayscale_first:
            pixels = apply_to(grey, grayscale, pixels)
        if self.jitter_probability:
            pixels = color_jitter(pixels, factors, turns)
        if not self.grayscale_first:
            pixels = apply_to(grey, grayscale, pixels)
        if self.blur_probability:
            kernel_size = max(3, 2 * (size // 20) + 1)  # a tenth of the size
            pixels = apply_to(blurred, partial(gaussian_blur, kernel_size=kernel_size), pixels, sigma)
        if self.solarize_probability:
            pixels = apply_to(solarized, solarize, pixels)
        if self.rand_augment:
            pixels = rand_augment(pixels, operation_seeds, self.rand_augment)
        if self.cutout:
            pixels = cut_out(pixels, square, self.cutout)
        return pixels


@dataclass
class Views:
    """Several augmentations of each image, for methods that compare them; VIEWS has the papers'.

    size: side of the views in pixels. mean, std: one number a channel or one for all; pixels are scaled to [0, 1] first.
    recipes: of each view. local_size, local_recipes: of further crops of another size (SwAV's and DINO's multi-crop).
    """

    size: int
    mean: list[float]
    std: list[float]
    recipes: Sequence[ViewRecipe]
    local_size: int | None = None
    local_recipes: Sequence[ViewRecipe] = ()

    def __post_init__(self):
        if not self.recipes:
            raise ValueError("recipes is empty: expected one of each view.")
        if bool(self.local_recipes) != (self.local_size is not None):
            raise ValueError(
                f"local_size and local_recipes belong together: found {self.local_size} and {len(self.local_recipes)} recipes."
            )

    @property
    def crops(self):
        crops = {"": [(self.size, recipe.interpolation) for recipe in self.recipes]}
        if self.local_recipes:
            crops["local_"] = [(self.local_size, recipe.interpolation) for recipe in self.local_recipes]
        return crops

    def boxes(self, sample_seeds, heights, widths):
        """(N, V, 4): the crops of each image, the local ones last."""
        recipes = enumerate([*self.recipes, *self.local_recipes])
        seeds = [(recipe, fold_in(sample_seeds, VIEW_STREAM + number)) for number, recipe in recipes]
        return torch.stack([recipe.boxes(own, heights, widths) for recipe, own in seeds], dim=1)

    def __call__(self, images, sample_seeds, boxes=None, local_images=None, local_boxes=None):
        """To the model's batch: pixel_values, pixel_values_2 ... (N, C, size, size), and local_pixel_values, (N, L, C,
        local_size, local_size).

        images: uint8 (N, 1, C, H, W), shared by all crops, or (N, V, C, H, W). boxes: (N, V, 4), None for crops.
        local_images, local_boxes: the same of the local crops; without local_images they are cut from `images`.
        """
        batch = {"sample_seeds": sample_seeds}
        for number in range(len(self.recipes)):
            name = f"pixel_values_{number + 1}" if number else "pixel_values"
            batch[name] = self._view(images, boxes, number, number, self.size, sample_seeds)
        if self.local_recipes:
            sources = images if local_images is None else local_images
            local = (
                self._view(sources, local_boxes, place, len(self.recipes) + place, self.local_size, sample_seeds)
                for place in range(len(self.local_recipes))
            )
            batch["local_pixel_values"] = torch.stack(list(local), dim=1)
        return batch

    def draw(self, sample_seeds, number):
        """What `ViewRecipe.draw` gives for the view of this number, from 0; the local ones come last."""
        recipe = [*self.recipes, *self.local_recipes][number]
        return recipe.draw(fold_in(sample_seeds, VIEW_STREAM + number))

    def _view(self, images, boxes, place, number, size, sample_seeds):
        """View `number`, the one at `place` in images (N, 1 or V, C, H, W) and boxes, as (N, C, size, size)."""
        images = images[:, min(place, images.shape[1] - 1)]
        recipe = [*self.recipes, *self.local_recipes][number]
        draws = self.draw(sample_seeds, number) | ({} if boxes is None else {"boxes": boxes[:, place]})
        n, c = images.shape[:2]
        mean, std = _constants(tuple(self.mean), tuple(self.std), images.device)
        if images.device.type != "cpu":
            return recipe.augment(images, size, **draws).sub_(mean).div_(std)
        view = torch.empty(n, c, size, size)
        step = max(1, CHUNK // (c * size**2))
        for rows in place_of_hue(draws["factors"], draws["turns"]).argsort().split(step):
            # decoded images lie in memory with their channels last: so each is copied in one piece
            chunk = images.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
            pixels = recipe.augment(chunk, size, **{name: value[rows] for name, value in draws.items()})
            view.index_copy_(0, rows, pixels.sub_(mean).div_(std))
        return view


# https://github.com/facebookresearch/moco, main_moco.py
MOCO_V1 = ViewRecipe(
    scale=(0.2, 1.0), interpolation="bilinear", grayscale_probability=0.2, grayscale_first=True,
    color_jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0,
)  # fmt: skip
MOCO_V2 = ViewRecipe(
    scale=(0.2, 1.0), interpolation="bilinear", color_jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8,
    grayscale_probability=0.2, blur_probability=0.5,
)  # fmt: skip


# https://arxiv.org/abs/2002.05709, appendix A, and https://github.com/google-research/simclr, data_util.py
SIMCLR = ViewRecipe(
    scale=(0.08, 1.0), interpolation="bicubic", color_jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8,
    grayscale_probability=0.2, blur_probability=0.5,
)  # fmt: skip


# https://arxiv.org/abs/2006.07733, appendix B, table 6
BYOL = ViewRecipe(
    scale=(0.08, 1.0), interpolation="bicubic", color_jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grayscale_probability=0.2, blur_probability=1.0,
)  # fmt: skip
BYOL_2 = replace(BYOL, blur_probability=0.1, solarize_probability=0.2)
# https://github.com/google-research/fixmatch, libml/augment.py: an eighth of the side; RandAugment and a square of half the side
WEAK = ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), move=0.125)
STRONG = replace(WEAK, rand_augment=2, cutout=0.5)
VIEWS = {
    "moco_v1": (MOCO_V1, MOCO_V1),
    "moco_v2": (MOCO_V2, MOCO_V2),
    "simclr": (SIMCLR, SIMCLR),
    "byol": (BYOL, BYOL_2),
    "weak": (WEAK, WEAK),
    "weak_and_strong": (WEAK, STRONG),
}


@lru_cache
def _constants(mean, std, device):
    """(C, 1, 1) each, moved to the device once."""
    return tuple(torch.tensor(value, device=device).reshape(-1, 1, 1) for value in (mean, std))
