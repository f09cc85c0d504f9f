"""Operations on the pixels of a batch of images, each as torchvision's on fixed parameters; images are float, in [0, 1]."""

from functools import wraps

import torch
from torch.amp import is_autocast_available

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLOCK = 32  # pixels blurred by one product: smaller means fewer multiplications, larger fewer calls


def without_autocast(function):
    """Its matrix products stay in float32, whatever precision is trained in."""

    @wraps(function)
    def outside(pixels, *arguments, **settings):
        if not is_autocast_available(pixels.device.type):
            return function(pixels, *arguments, **settings)
        with torch.autocast(pixels.device.type, enabled=False):
            return function(pixels, *arguments, **settings)

    return outside


def apply_to(chosen, function, pixels, *parameters):
    """`function(pixels, *parameters)` in the rows where `chosen`, pixels as they are in the others; may change them."""
    if pixels.device.type != "cpu":  # all rows: to count the chosen ones, the host would have to wait for the device
        return torch.where(chosen[:, None, None, None], function(pixels, *parameters), pixels)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels
    changed = function(pixels.index_select(0, rows), *(parameter[rows] for parameter in parameters))
    return pixels.index_copy_(0, rows, changed)


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


@without_autocast
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


def move(pixels, offsets):
    """Images (N, C, H, W) moved by `offsets`, (N, 2) whole pixels downwards and to the right, mirrored at their borders."""
    n, _, height, width = pixels.shape
    rows, columns = (
        _mirrored(torch.arange(length, device=pixels.device) - offset[:, None], length)
        for length, offset in ((height, offsets[:, 0]), (width, offsets[:, 1]))
    )  # (N, H), (N, W): where each pixel comes from
    sample = torch.arange(n, device=pixels.device)[:, None, None]
    return pixels.movedim(1, -1)[sample, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def _mirrored(places, length):
    """Places outside 0 .. length - 1 mirrored at the first and last pixel, which stand once."""
    period = max(1, 2 * (length - 1))
    places = places % period
    return torch.minimum(places, period - places)


def cut_out(pixels, square, side):
    """Grey squares in images (N, C, H, W). square: (N, 2), its centre's place downwards and to the right, in [0, 1). side: as a
    part of the image's; what lies outside is cut off. DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552."""
    inside = []
    for axis, length in ((0, pixels.shape[2]), (1, pixels.shape[3])):
        centre = (square[:, axis, None] * length).floor()  # (N, 1)
        place = torch.arange(length, device=pixels.device) - centre + length * side / 2
        inside.append((place >= 0) & (place < length * side))  # (N, length)
    hole = (inside[0][:, :, None] & inside[1][:, None])[:, None]  # (N, 1, H, W)
    return pixels.masked_fill(hole, 0.5)
