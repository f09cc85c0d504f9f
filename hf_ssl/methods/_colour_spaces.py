"""Colours of images (N, 3, H, W) in other coordinates, with gradient."""

import torch

XYZ_OF_RGB = (  # ITU-R BT.709, of linear red, green and blue
    (0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227),
)  # fmt: skip


def rgb_to_hsv(rgb):
    """Red, green and blue in [0, 1] to hue in [0, 1), saturation and value in [0, 1]. Grey has the hue 0."""
    high, place = rgb.max(1)
    chroma = high - rgb.amin(1)
    # from the largest channel on, the next minus the one before it, in sextants of the circle
    ahead, behind = rgb.roll(-1, 1), rgb.roll(1, 1)
    turn = (ahead - behind).gather(1, place[:, None])[:, 0] / chroma.clamp(min=1e-12)
    hue = ((2 * place + turn) / 6) % 1.0
    return torch.stack([hue, chroma / high.clamp(min=1e-12), high], dim=1)


def hsv_to_rgb(hsv):
    """The inverse of `rgb_to_hsv`; a hue outside of [0, 1) goes round the circle."""
    hue, saturation, value = hsv.unbind(1)
    sextants = torch.arange(5, 0, -2, device=hsv.device).view(3, 1, 1)  # of red, green, blue
    place = (sextants + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(place, 4 - place).clamp(0, 1))


def rgb_to_lab(rgb):
    """sRGB in [0, 1] to CIE L*a*b* under its own white (D65): L in [0, 100], a and b from about -108 to 98, of grey 0."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    # in parts of white's, which are sums of rows
    xyz = torch.stack([sum(w / sum(row) * linear[:, c] for c, w in enumerate(row)) for row in XYZ_OF_RGB], dim=1)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
