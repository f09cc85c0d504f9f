"""Colours as classes: points of the ab plane of Lab, between which a colour is shared out, and back again.

Zhang et al. 2016, https://arxiv.org/abs/1603.08511 (section 2), and its code, resources/caffe_traininglayers.py of
https://github.com/richzhang/colorization. Colorization and split-brain autoencoders.
"""

from functools import cache

import torch

from ._colour_spaces import rgb_to_lab

GRID = 10  # between points, in units of a and b
LEVELS = 256  # of red, green and blue


@cache
def gamut_bins():
    """(Q, 2) float64, the points of a grid of 10 that are corners of a square in which there is a colour of sRGB: Q = 309.

    The paper counts 313 "in gamut", a file of its code, and does not say how. Points that are the nearest one of some colour
    are 262 of ours; the others have at most a part of a colour that is shared out among several.
    """
    levels = torch.linspace(0, 1, LEVELS, dtype=torch.float64, device="cpu")
    one, other = (each.flatten() for each in torch.meshgrid(levels, levels, indexing="ij"))
    faces = []  # of the cube: from its inside L leads to one of them, along which a and b do not change
    for channel in range(3):
        for level in (0.0, 1.0):
            face = [one, other]
            face.insert(channel, torch.full_like(one, level))
            faces.append(torch.stack(face))
    ab = rgb_to_lab(torch.cat(faces, dim=1)[None, :, :, None])[0, 1:, :, 0].T  # (n, 2)
    a, b = (ab / GRID).floor().long().unbind(1)
    squares = torch.unique((a + 50) * 100 + b + 50)  # as one number each
    corners = torch.unique(torch.cat([squares + corner for corner in (0, 1, 100, 101)]))
    return torch.stack([corners // 100 - 50, corners % 100 - 50], dim=1).double() * GRID


def share_out(ab, bins, neighbours, sigma):
    """(indices, shares), (..., k) both, of colours (..., 2): their `neighbours` nearest of the `bins`, (Q, 2), nearest first,
    by a Gaussian of the distance; the shares of a colour sum to 1."""
    flat = ab.flatten(0, -2).float()
    distances = torch.cdist(flat, bins.to(flat), compute_mode="donot_use_mm_for_euclid_dist")  # (M, Q)
    nearest, indices = distances.topk(neighbours, largest=False)
    shares = (-nearest.square() / (2 * sigma**2)).softmax(1)
    return indices.unflatten(0, ab.shape[:-1]), shares.unflatten(0, ab.shape[:-1])


def shared_cross_entropy(logits, indices, shares):
    """(...), the cross-entropy of logits (..., Q) with targets as `share_out` gives them, in float32."""
    return -(logits.float().log_softmax(-1).gather(-1, indices) * shares).sum(-1)


def rebalancing_weights(counts, bins, neighbours, sigma, uniform):
    """(Q,), how much a colour of each bin counts, in the mean over colours 1: the rarer the more.

    counts: (Q,), colours seen that were nearest to each bin; their distribution is smoothed as colours are shared out. uniform:
    the paper's lambda, the part of a uniform distribution that it is mixed with. Equation 4.
    """
    indices, shares = share_out(bins, bins, neighbours, sigma)
    frequency = counts.float() / counts.sum()
    frequency = torch.zeros_like(frequency).scatter_add(0, indices.flatten(), (frequency[:, None] * shares).flatten())
    weights = 1 / ((1 - uniform) * frequency + uniform / len(bins))
    return weights / (weights * frequency).sum()


def annealed_mean(logits, bins, temperature):
    """(..., 2), between the mean (temperature 1) and the mode (towards 0) of the colours that logits (..., Q) speak of."""
    return (logits.float() / temperature).softmax(-1) @ bins.float()
