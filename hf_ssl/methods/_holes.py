"""Holes in images: random shapes of them, as context encoders have them, and measures of what fills them."""

import torch
import torch.nn.functional as F

BLOCKS, LARGEST_PART = 8, 0.25  # of blocks, how many are tried, and how much of an image they may cover
CELLS = 8  # of a region's random field along an image: 128 px at the code's 0.06 cells a pixel
REGION_PARTS = (0.2, 0.3)  # of an image that a region covers


def random_blocks(draws, height, width):
    """(N, H, W) bool: squares of an eighth to a quarter of the shorter side, each left out with which all would cover more than
    LARGEST_PART. draws: (N, 3, B) in [0, 1), of B squares side, row and column."""
    shorter = min(height, width)
    least, most = max(1, shorter // 8), max(1, shorter // 4)
    sides = least + (draws[:, 0] * (most - least + 1)).long()  # (N, B)
    tops, lefts = ((draws[:, 1 + i] * (side - sides + 1)).long() for i, side in enumerate((height, width)))
    rows, columns = (torch.arange(side, device=draws.device) for side in (height, width))
    hidden = torch.zeros(len(draws), height, width, dtype=torch.bool, device=draws.device)
    for block in zip(sides.T, tops.T, lefts.T, strict=True):
        side, top, left = (each[:, None] for each in block)
        within_rows, within_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
        together = hidden | (within_rows[:, :, None] & within_columns[:, None, :])
        fits = together.sum((1, 2)) <= LARGEST_PART * height * width
        hidden = torch.where(fits[:, None, None], together, hidden)
    return hidden


def random_regions(fields, shifts, parts, height, width):
    """(N, H, W) bool: where random fields, interpolated to the images, are lowest. fields: (N, c + 4, c + 4), c cells along an
    image. shifts: (N, 2) in [0, 1), by what part of a cell down and across; parts: (N,) in [0, 1), where between REGION_PARTS
    the hidden area lies."""
    cells = fields.shape[1] - 4
    down, across = (
        1.5 + shift[:, None] + (torch.arange(side, device=fields.device) + 0.5) * cells / side
        for shift, side in zip(shifts.unbind(1), (height, width), strict=True)
    )  # (N, H), (N, W), in cells; the outer ones are for the interpolation
    places = torch.stack([across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1)
    places = 2 * places / fields.shape[1] - 1
    smooth = F.grid_sample(fields[:, None], places, mode="bicubic", align_corners=False)[:, 0].flatten(1)
    low, high = REGION_PARTS
    counts = ((low + (high - low) * parts) * height * width).round().long().clamp(min=1)
    ranks = smooth.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks < counts[:, None]).unflatten(1, (height, width))


def mean_over(values, region):
    """The mean over the images of the mean of (N, C, h, w) over the pixels where `region`, (N, 1, h, w), is 1."""
    return ((values * region).sum((1, 2, 3)) / (values.shape[1] * region.sum((1, 2, 3))).clamp(min=1)).mean()


def high_frequencies(images, hole):
    """The mean squared difference of neighbouring pixels within `hole` divided by twice the variance there: the share of the
    spectral energy, a frequency w counting 1 - cos w: about 0 of what is smooth, 1 of white noise, 2 of a chessboard."""
    difference, counts = 0.0, 0.0
    for dim in (-2, -1):
        both = hole.narrow(dim, 1, hole.shape[dim] - 1) & hole.narrow(dim, 0, hole.shape[dim] - 1)
        difference = difference + (images.diff(dim=dim).square() * both).sum()
        counts = counts + both.sum() * images.shape[1]
    area = hole.sum((2, 3), keepdim=True).clamp(min=1)
    centred = images - (images * hole).sum((2, 3), keepdim=True) / area
    variance = (centred.square() * hole).sum() / (hole.sum() * images.shape[1])
    return difference / counts.clamp(min=1) / (2 * variance).clamp(min=1e-8)
