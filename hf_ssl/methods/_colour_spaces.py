"""Colours of images (N, 3, H, W) in other coordinates, with gradient."""

import torch

XYZ_OF_RGB = (  # ITU-R BT.709, of linear red, green and blue
    (0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227),
)  # fmt: skip
RGB_OF_XYZ = (  # its inverse
    (3.24048134, -1.53715152, -0.49853633), (-0.96925495, 1.87599000, 0.04155593), (0.05564664, -0.20404134, 1.05731107),
)  # fmt: skip
WHITE = (0.95047, 1.0, 1.08883)  # X, Y and Z of daylight, CIE D65 seen at 2 degrees
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as PIL makes grey


def rgb_to_grey(rgb):
    """(N, 3, H, W) to (N, 1, H, W), as PIL does."""
    return sum(weight * rgb[:, c, None] for c, weight in enumerate(LUMA))


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
    """sRGB in [0, 1] to CIE L*a*b* (D65): L in [0, 100], a and b from about -108 to 98, of grey within 0.005 of 0, as the
    matrix's white is not quite that of CIE."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = [
        sum(w / white * linear[:, c] for c, w in enumerate(row)) for row, white in zip(XYZ_OF_RGB, WHITE, strict=True)
    ]
    xyz = torch.stack(xyz, dim=1)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab):
    """The inverse of `rgb_to_lab`; of colours that sRGB does not have, each of red, green and blue is clipped to [0, 1]."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], dim=1)
    xyz = torch.where(root > 0.2068966, root**3, (root - 16 / 116) / 7.787)
    linear = [sum(w * WHITE[c] * xyz[:, c] for c, w in enumerate(row)) for row in RGB_OF_XYZ]
    linear = torch.stack(linear, dim=1).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
