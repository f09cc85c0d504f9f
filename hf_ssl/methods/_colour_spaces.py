"""Colours of images (N, 3, H, W) in other coordinates, with gradient."""

import torch


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
