"""Square pieces of images: cut at places of their own, normalised each by itself, seen by one network."""

import inspect
import math

import torch

from ._backbone import pooled


def grid_corners(height, width, grid, size, draws):
    """(tops, lefts), (N, T) int64 both: the upper left pixel of a square of `size` px in each of T = grid x grid equal cells,
    row by row. draws: (N, 2, T) in [0, 1), where in its cell it lies."""
    cell = torch.arange(grid**2, device=draws.device)
    tops = cell // grid * (height // grid) + (draws[:, 0] * (height // grid - size + 1)).long()
    lefts = cell % grid * (width // grid) + (draws[:, 1] * (width // grid - size + 1)).long()
    return tops, lefts


def cut_tiles(images, tops, lefts, size):
    """(N, C, H, W) to (N, T, C, size, size): of each image T squares whose upper left pixels are at tops, lefts, (N,
    T)."""
    along = torch.arange(size, device=images.device)
    rows = (tops[..., None] + along)[..., :, None]  # (N, T, size, 1)
    columns = (lefts[..., None] + along)[..., None, :]  # (N, T, 1, size)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3)


def normalize_tiles(tiles, dims=(-3, -2, -1)):
    """Each channel of each to mean 0, and to root mean square 1 over `dims`; a tile of one colour becomes 0."""
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean(dims, keepdim=True).sqrt().clamp(min=1e-4)


def in_grid(tiles, gap):
    """(N, k x k, C, s, s) to pictures of k tiles along a side, row by row, with `gap` pixels of the brightest value of all
    between them."""
    size, along = tiles.shape[-1], math.isqrt(tiles.shape[1])
    side = along * (size + gap) - gap
    grid = tiles.amax().expand(len(tiles), tiles.shape[2], side, side).clone()
    for place in range(tiles.shape[1]):
        top, left = (number * (size + gap) for number in divmod(place, along))
        grid[..., top : top + size, left : left + size] = tiles[:, place]
    return grid


def tile_features(backbone, tiles):
    """(N, T, C, s, s) to (N, T, D), of one batch. A network with a position table has it interpolated to the size of
    a tile."""
    resize = "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters
    arguments = {"interpolate_pos_encoding": True} if resize else {}
    return pooled(backbone, tiles.flatten(0, 1), **arguments).unflatten(0, tiles.shape[:2])
