"""Views of a batch of images, made on the device in one go.

Each draw belongs to its sample (`hf_ssl.methods._random`), so a view is the same whichever worker, process or batch it
is made in. Each operation equals torchvision's on fixed parameters, and the parameters have torchvision's distribution.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial, wraps

import torch
from torch.amp import is_autocast_available

from ..methods._random import (
    BLUR_STREAM,
    CROP_STREAM,
    FLIP_STREAM,
    GREY_STREAM,
    JITTER_STREAM,
    SOLARIZE_STREAM,
    VIEW_STREAM,
    fold_in,
    uniform,
)

LEAST_CENTER_CROP = 128  # pixels: smaller images are evaluated whole
ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after as many
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLUR_SIGMA = (0.1, 2.0)  # pixels
FAR = 1e6  # pixels: where nothing has weight
BLOCK = 32  # pixels blurred by one product: smaller means fewer multiplications, larger fewer calls
CHUNK = 3 * 2**19  # values augmented together on a CPU, to stay in its cache: ten colour views of 224 pixels


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


def _without_autocast(function):
    """Its matrix products stay in float32, whatever precision is trained in."""

    @wraps(function)
    def outside(pixels, *arguments, **settings):
        if not is_autocast_available(pixels.device.type):
            return function(pixels, *arguments, **settings)
        with torch.autocast(pixels.device.type, enabled=False):
            return function(pixels, *arguments, **settings)

    return outside


@_without_autocast
def resized_crop(images, boxes, size, flip=None, interpolation="bicubic"):
    """Cut each image's box out and resize it to size x size: images (N, C, H, W) float, boxes (N, 4), flip (N,) bool."""
    n, c, h, w = images.shape
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], h, size, interpolation)  # (N, size, H)
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], w, size, interpolation, flip)  # (N, size, W)
    images = images.reshape(n, c * h, w) @ columns.transpose(1, 2)  # (N, C H, size)
    return rows[:, None] @ images.view(n, c, h, size)  # (N, C, size, size)


def _apply_to(chosen, function, pixels, *parameters):
    """`function(pixels, *parameters)` in the rows where `chosen`, pixels as they are in the others; may change them."""
    if pixels.device.type != "cpu":  # all rows: to count the chosen ones, the host would have to wait for the device
        return torch.where(chosen[:, None, None, None], function(pixels, *parameters), pixels)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels
    changed = function(pixels.index_select(0, rows), *(parameter[rows] for parameter in parameters))
    return pixels.index_copy_(0, rows, changed)


def _crop_and_flip(images, boxes, size, flip, interpolation):
    """uint8 images (N, C, H, W) to pixels (N, C, size, size) in [0, 1]. boxes: None if the images are crops already."""
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # crops come channels-last
    if boxes is None:
        return _apply_to(flip, lambda chosen: chosen.flip(-1), pixels)
    return resized_crop(pixels, boxes, size, flip, interpolation).clamp_(0, 1)


def _grey(pixels):
    """(N, 1, H, W): torchvision's luma, or the mean of other than three channels."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _blend(pixels, operation, factor):
    """One of brightness, contrast and saturation: a blend with black, the image's mean grey, or each pixel's grey.

    operation, factor: (N,). With factor 1 nothing changes. In place.
    """
    operation, factor = operation[:, None, None, None], factor[:, None, None, None]
    grey = _grey(pixels)
    mean_grey = grey.mean(dim=(1, 2, 3), keepdim=True)
    mean_grey *= (1 - factor) * (operation == CONTRAST)
    grey.mul_((1 - factor) * (operation == SATURATION)).add_(mean_grey)
    return pixels.mul_(factor).add_(grey).clamp_(0, 1)


def adjust_hue(pixels, shift):
    """Turn the hue by `shift` (N,) in [-0.5, 0.5] of the circle, keeping the HSV value and saturation. In place.

    In sextants and with chroma C = max - min, the hue's distance from red is 1 + (G + B - R - min) / C, on the side of
    green if G > B; a channel is min + C clamp(2 - distance of the hue from the channel's own, 0, 1).
    """
    red, green, blue = pixels.split(1, dim=1)  # (N, 1, H, W)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)
    chroma = high.sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma + 1e-20).add_(1).copysign_(green - blue)  # -3 to 3
    turn = 6 * shift[:, None] - torch.arange(0, 6, 2, device=shift.device)  # (N, 3), from each channel's own hue
    turn = (turn + 3).remainder(6) - 3
    torch.add(hue, turn[:, :, None, None], out=pixels)  # -6 to 6: its distance from 0 on the circle is 3 - ||x| - 3|
    low.sub_(chroma)
    return pixels.abs_().sub_(3).abs_().clamp_(1, 2).mul_(chroma).add_(low)


def color_jitter(pixels, factors, turns):
    """torchvision's ColorJitter for a batch, each image with its own factors and order. In place.

    factors: (N, 4) of brightness, contrast, saturation and hue. turns: (N, 4), the smallest goes first. Without three
    channels there is neither saturation nor hue.

    Three operations come before the hue or after it, so each is written twice. On a CPU it takes the rows from the first image
    that it changes to the last. Sorted by `place_of_hue` these are all changed: the i-th of the three comes before
    the hue where the place is above i, and after it where the place is 0 to i.
    """
    others = turns[:, :HUE].argsort(dim=1)  # (N, 3): brightness, contrast and saturation in their order
    factor = factors.gather(1, others)
    early = turns.gather(1, others) < turns[:, HUE:]  # (N, 3): before the hue
    has_hue = pixels.shape[1] == 3
    if not has_hue:
        factor, early = torch.where(others == SATURATION, 1.0, factor), torch.zeros_like(early)
    hue = factors[:, HUE]
    for now in (early, ~early) if has_hue else (~early,):
        for i in range(HUE):
            own = torch.where(now[:, i], factor[:, i], 1.0)
            rows = _span(own != 1)
            _blend(pixels[rows], others[rows, i], own[rows])
        if now is early:
            rows = _span(hue != 0)
            adjust_hue(pixels[rows], hue[rows])
    return pixels


def place_of_hue(factors, turns):
    """(N,): how many other operations of the jitter come before the hue; -1 without hue."""
    return torch.where(factors[:, HUE] != 0, (turns[:, :HUE] < turns[:, HUE:]).sum(1), -1)


def _span(chosen):
    """The rows from the first of the chosen (N,) to the last; all where the host would have to wait for the device."""
    if chosen.device.type != "cpu":
        return slice(None)
    rows = chosen.nonzero()[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1) if rows else slice(0)


def grayscale(pixels):
    """Images of three channels in grey; others as they are."""
    return _grey(pixels).expand_as(pixels) if pixels.shape[1] == 3 else pixels


@_without_autocast
def gaussian_blur(pixels, sigma, kernel_size):
    """torchvision's: with an odd kernel_size and reflected borders; sigma (N,). Images are square.

    A product with a banded matrix from either side, block by block of its diagonal. That is two to ten times as many
    products as a convolution makes, but of matrices: from 64 pixels on a CPU is faster with them, at 224 three times.
    """
    n, c, size, _ = pixels.shape
    radius = kernel_size // 2
    distance = torch.arange(-radius, radius + 1, device=pixels.device)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None].expand(-1, size, -1)  # (N, size, K)
    source = (torch.arange(size, device=pixels.device)[:, None] + distance).abs()  # (size, K): where a weight belongs
    source = torch.minimum(source, 2 * (size - 1) - source).expand(n, -1, -1)
    band = pixels.new_zeros(n, size, size).scatter_add_(2, source, kernel)

    rows = pixels.reshape(n, c * size, size)
    across, blurred = torch.empty_like(rows), torch.empty_like(pixels)
    blocks = [(slice(i, i + BLOCK), slice(max(0, i - radius), i + BLOCK + radius)) for i in range(0, size, BLOCK)]
    for block, near in blocks:
        across[:, :, block] = rows[:, :, near] @ band[:, block, near].transpose(1, 2)
    across = across.view_as(pixels)
    for block, near in blocks:
        blurred[:, :, block] = band[:, None, block, near] @ across[:, :, near]
    return blurred


def solarize(pixels):
    """Images with what is brighter than 0.5 inverted."""
    return torch.minimum(pixels, 1 - pixels)


def _one_view(view, images, sample_seeds, boxes, flip):
    """The batch of a `view` that only crops and flips: images (N, 1, C, H, W), boxes (N, 1, 4) or None, flip (N,)."""
    boxes = None if boxes is None else boxes[:, 0]
    pixels = _crop_and_flip(images[:, 0], boxes, view.size, flip, view.interpolation)
    mean, std = _constants(tuple(view.mean), tuple(view.std), pixels.device)
    return {"pixel_values": pixels.sub_(mean).div_(std), "sample_seeds": sample_seeds}


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
    interpolation = "bicubic"

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): a crop for each image."""
        seeds = fold_in(sample_seeds, CROP_STREAM)
        return random_crop_boxes(seeds, heights, widths, self.scale, self.ratio)[:, None]

    def __call__(self, images, sample_seeds, boxes=None):
        """uint8 images (N, 1, C, H, W) and their boxes (N, 1, 4), None for crops, to the model's batch."""
        flip = uniform(fold_in(sample_seeds, FLIP_STREAM), 1)[:, 0] < 0.5
        return _one_view(self, images, sample_seeds, boxes, flip)


@dataclass
class RandomSquareCrop:
    """CLIP's whole augmentation (section 2.5): a random square of the image, resized with bicubic interpolation. There is no
    flip, since captions know left from right.

    size, mean, std: as above. scale: of the square's area, as a part of that of the largest square; the paper's is (1, 1).
    """

    size: int
    mean: list[float]
    std: list[float]
    scale: tuple[float, float] = (1.0, 1.0)
    interpolation = "bicubic"

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): a crop for each image."""
        return random_square_boxes(fold_in(sample_seeds, CROP_STREAM), heights, widths, self.scale)[:, None]

    def __call__(self, images, sample_seeds, boxes=None):
        """uint8 images (N, 1, C, H, W) and their boxes (N, 1, 4), None for crops, to the model's batch."""
        stays = torch.zeros_like(sample_seeds, dtype=torch.bool)
        return _one_view(self, images, sample_seeds, boxes, stays)


@dataclass
class CenterCrop:
    """The evaluation transform (`hf_ssl.data.images.image_processor`), nothing drawn: the centre of an image, of which 224 of
    256 parts are kept a side; below 128 pixels the whole image, resized.

    size, mean, std: as above.
    """

    size: int
    mean: list[float]
    std: list[float]
    interpolation = "bicubic"

    def boxes(self, sample_seeds, heights, widths):
        """(N, 1, 4): the same crop of an image in every epoch."""
        if self.size < LEAST_CENTER_CROP:
            return torch.stack([torch.zeros_like(heights), torch.zeros_like(widths), heights, widths], dim=1)[:, None]
        side = (torch.minimum(heights, widths) * (224 / 256)).round().long()
        return torch.stack([(heights - side) // 2, (widths - side) // 2, side, side], dim=1)[:, None]

    def __call__(self, images, sample_seeds, boxes=None):
        """uint8 images (N, 1, C, H, W) and their boxes (N, 1, 4), None for crops, to the model's batch."""
        stays = torch.zeros_like(sample_seeds, dtype=torch.bool)
        return _one_view(self, images, sample_seeds, boxes, stays)


@dataclass
class TwoViews:
    """Two augmentations of each image for methods that compare them; TWO_VIEWS has the papers'.

    size, scale, ratio, mean, std: as above. interpolation: "bilinear" or "bicubic". color_jitter: ranges of brightness,
    contrast, saturation and hue as torchvision's ColorJitter takes them, all multiplied by jitter_strength.
    Deviations: the blur is torchvision's, with a kernel of a tenth of the size and reflected borders, where MoCo's is
    PIL's and SimCLR's has zeros around; contrast turns around the mean grey, where SimCLR's turns around each channel's.
    """

    size: int
    mean: list[float]
    std: list[float]
    scale: tuple[float, float]
    interpolation: str
    color_jitter: tuple[float, float, float, float]
    jitter_probability: float
    grayscale_probability: float
    blur_probability: float
    solarize_probability: float = 0.0
    jitter_strength: float = 1.0
    grayscale_first: bool = False
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def boxes(self, sample_seeds, heights, widths):
        """(N, 2, 4): two crops of each image."""
        seeds = [fold_in(fold_in(sample_seeds, VIEW_STREAM + view), CROP_STREAM) for view in range(2)]
        return torch.stack([random_crop_boxes(s, heights, widths, self.scale, self.ratio) for s in seeds], dim=1)

    def __call__(self, images, sample_seeds, boxes=None):
        """uint8 images (N, 1 or 2, C, H, W) and their boxes (N, 2, 4), None for crops, to the model's batch."""
        views = []
        for view in range(2):
            source = images[:, min(view, images.shape[1] - 1)]  # both views crop the same image, or each has its own
            draws = self.draw(sample_seeds, view) | ({} if boxes is None else {"boxes": boxes[:, view]})
            views.append(self._view(source, draws))
        return {"pixel_values": views[0], "pixel_values_2": views[1], "sample_seeds": sample_seeds}

    def draw(self, sample_seeds, view):
        """What is drawn for view 0 or 1 beside its crop: a dict of (N,) or (N, 4), the arguments of `_augment`."""
        seeds = fold_in(sample_seeds, VIEW_STREAM + view)
        flip, grey, solar = (uniform(fold_in(seeds, s), 1)[:, 0] for s in (FLIP_STREAM, GREY_STREAM, SOLARIZE_STREAM))
        jitter, blur = uniform(fold_in(seeds, JITTER_STREAM), 9), uniform(fold_in(seeds, BLUR_STREAM), 2)
        *spread, hue = (self.jitter_strength * value for value in self.color_jitter)
        ranges = [(max(0.0, 1 - value), 1 + value, 1.0) for value in spread] + [(-hue, hue, 0.0)]
        jittered = jitter[:, 8] < self.jitter_probability
        factors = [  # what changes nothing where there is no jitter
            torch.where(jittered, low + (high - low) * jitter[:, i], identity)
            for i, (low, high, identity) in enumerate(ranges)
        ]
        return {
            "flip": flip < 0.5,
            "factors": torch.stack(factors, dim=1),
            "turns": jitter[:, 4:8],
            "grey": grey < self.grayscale_probability,
            "blurred": blur[:, 0] < self.blur_probability,
            "sigma": BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * blur[:, 1],
            "solarized": solar < self.solarize_probability,
        }

    def _view(self, images, draws):
        """uint8 images (N, C, H, W) to one view of each, (N, C, size, size)."""
        n, c = images.shape[:2]
        mean, std = _constants(tuple(self.mean), tuple(self.std), images.device)
        if images.device.type != "cpu":
            return self._augment(images, **draws).sub_(mean).div_(std)
        view = torch.empty(n, c, self.size, self.size)
        step = max(1, CHUNK // (c * self.size**2))
        for rows in place_of_hue(draws["factors"], draws["turns"]).argsort().split(step):
            # decoded images lie in memory with their channels last: so each is copied in one piece
            chunk = images.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
            pixels = self._augment(chunk, **{name: value[rows] for name, value in draws.items()})
            view.index_copy_(0, rows, pixels.sub_(mean).div_(std))
        return view

    def _augment(self, images, flip, factors, turns, grey, blurred, sigma, solarized, boxes=None):
        pixels = _crop_and_flip(images, boxes, self.size, flip, self.interpolation)
        if self.grayscale_first:
            pixels = _apply_to(grey, grayscale, pixels)
        if self.jitter_probability:
            pixels = color_jitter(pixels, factors, turns)
        if not self.grayscale_first:
            pixels = _apply_to(grey, grayscale, pixels)
        if self.blur_probability:
            kernel_size = max(3, 2 * (self.size // 20) + 1)  # a tenth of the size
            pixels = _apply_to(blurred, partial(gaussian_blur, kernel_size=kernel_size), pixels, sigma)
        if self.solarize_probability:
            pixels = _apply_to(solarized, solarize, pixels)
        return pixels


# https://github.com/facebookresearch/moco, main_moco.py
MOCO_V1 = dict(
    scale=(0.2, 1.0), interpolation="bilinear", grayscale_probability=0.2, grayscale_first=True,
    color_jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, blur_probability=0.0,
)  # fmt: skip
MOCO_V2 = dict(
    scale=(0.2, 1.0), interpolation="bilinear", color_jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8,
    grayscale_probability=0.2, blur_probability=0.5,
)  # fmt: skip


# https://arxiv.org/abs/2002.05709, appendix A, and https://github.com/google-research/simclr, data_util.py
SIMCLR = dict(
    scale=(0.08, 1.0), interpolation="bicubic", color_jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8,
    grayscale_probability=0.2, blur_probability=0.5,
)  # fmt: skip
TWO_VIEWS = {"moco_v1": MOCO_V1, "moco_v2": MOCO_V2, "simclr": SIMCLR}


@lru_cache
def _constants(mean, std, device):
    """(C, 1, 1) each, moved to the device once."""
    return tuple(torch.tensor(value, device=device).reshape(-1, 1, 1) for value in (mean, std))
