"""Vectors of images scored with the places of their maps: which place belongs to the image of which vector?

Deep InfoMax and AMDIM.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel
from transformers import initialization as init

from ._base import PretextLine
from ._batch_norm import GlobalBatchNorm
from ._distributed import gather_with_gradient, rank, world_size


class Scorer(nn.Module):
    """(..., inputs) to (..., units), in which dot products are scores; at first, but for `norm`, nearly a copy. norm: of (M,
    units), the last layer. MI1x1ConvNet of https://github.com/rdevon/DIM, FakeRKHSConvNet of
    https://github.com/Philip-Bachman/amdim-public."""

    def __init__(self, inputs, units, norm):
        super().__init__()
        self.hidden = nn.Linear(inputs, units, bias=False)
        self.batch_norm = GlobalBatchNorm(units)
        self.output = nn.Linear(units, units)
        self.shortcut = nn.Linear(inputs, units, bias=False)
        self.norm = norm

    def forward(self, x):
        flat = x.flatten(0, -2)
        hidden = self.batch_norm(self.hidden(flat)).relu()
        return self.norm(self.output(hidden) + self.shortcut(flat)).unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def reset_shortcut(self):
        """1 on its diagonal, and small numbers elsewhere."""
        weight = self.shortcut.weight
        init.uniform_(weight, -0.01, 0.01)
        eye = torch.eye(*weight.shape, dtype=torch.bool, device=weight.device)
        init.copy_(weight, torch.where(eye, torch.ones_like(weight), weight))


def score_places(vectors, places):
    """(N, U) and (N, l, U) of this process to (N, W N, l), in float32: its vectors with the places of all processes' images."""
    everyones = gather_with_gradient(places.float())  # (W N, l, U)
    return (vectors.float() @ everyones.flatten(0, 1).T).unflatten(1, everyones.shape[:2])


def critic_loss(scores, estimator):
    """scores: (N, W N, l), of this process's vectors with the l places of each image of all processes. The negatives are
    all pairs of two images. Sections 3.1 and 3.2 of Deep InfoMax, to be minimised; 0, or with "nce" the log of the number of
    candidates, of a critic that knows nothing."""
    count, everyone, places = scores.shape
    own = torch.arange(count, device=scores.device)
    positive = scores[own, rank() * count + own]  # (N, l)
    is_own = torch.zeros(count, everyone, 1, dtype=torch.bool, device=scores.device)
    is_own[own, rank() * count + own] = True
    if estimator == "jsd":
        negative = (F.softplus(scores) - math.log(2)).masked_fill(is_own, 0)
        pairs = count * (everyone - 1) * places
        return negative.sum() / pairs - (math.log(2) - F.softplus(-positive)).mean()
    negative = scores.masked_fill(is_own, -torch.inf).flatten(1).logsumexp(1)  # (N,)
    if estimator == "nce":
        return (torch.logaddexp(positive, negative[:, None]) - positive).mean()
    pairs = count * world_size() * (everyone - 1) * places
    return gather_with_gradient(negative).logsumexp(0) - math.log(pairs) - positive.mean()


def map_channels(backbone, stage, name):
    """C of the map that is one of the hidden_states of a config's network. Raises ValueError if there is none; name: of the
    setting that says which."""
    size = getattr(backbone, "image_size", None) or 224
    size = size if isinstance(size, list | tuple) else (size, size)
    with torch.device("meta"):  # shapes only
        pixels = torch.zeros(1, backbone.num_channels, *size)
        hidden = AutoModel.from_config(backbone).eval()(pixels, output_hidden_states=True).get("hidden_states") or ()
        if not -len(hidden) <= stage < len(hidden):
            raise ValueError(
                f"{name}={stage} is none of the {len(hidden)} hidden_states of backbone_config of "
                f"model_type '{backbone.model_type}'."
            )
        return as_map(hidden[stage], pixels.shape, backbone).shape[1]


def as_map(hidden, shape, backbone):
    """A hidden state as (N, C, h, w): of tokens, (N, L, C), the last ones, which are the patches'."""
    if hidden.ndim == 4:
        return hidden
    patch = getattr(backbone, "patch_size", None)
    if hidden.ndim != 3 or not isinstance(patch, int):
        raise ValueError(f"backbone_config of model_type '{backbone.model_type}' gives no maps: choose another.")
    rows, columns = shape[2] // patch, shape[3] // patch
    return hidden[:, -rows * columns :].mT.unflatten(2, (rows, columns))


def score_lines(images, scores, sides):
    """Three lines of a picture: images, (N, C, H, W), and how their places score with their own vector and with that of
    another image, the next one, bright for high. scores: (N, N, l), vectors by images; as InfoNCE sees only how those of one
    vector differ, they are taken relative to the log of their mean exponential. sides: of the map, whose product is l."""
    rows = torch.arange(len(scores), device=scores.device)
    scores = scores - scores.flatten(1).logsumexp(1)[:, None, None]  # but for a constant
    maps = torch.stack([scores[rows, rows], scores[rows.roll(-1), rows]])  # (2, N, l)
    low, high = maps.amin((0, 2), keepdim=True), maps.amax((0, 2), keepdim=True)
    shades = F.interpolate(((maps - low) / (high - low).clamp(min=1e-6)).unflatten(2, sides), images.shape[-2:])
    dark, bright = (limit[:, None, None] for limit in (images.amin((0, 2, 3)), images.amax((0, 2, 3))))
    shades = dark + (bright - dark) * shades[:, :, None]  # (2, N, C, H, W)
    own, other = maps.mean(2)
    return [
        PretextLine("image", images),
        PretextLine("scored by\nits vector", shades[0], own > other),
        PretextLine("scored by\nanother's", shades[1]),
    ]
