"""The maps of every stage of an image encoder, whatever family of transformers it is of, as features of about one width."""

import math
from dataclasses import dataclass, fields

import torch
from torch.nn import functional

from ...errors import InputError
from .images import IMAGE, ImageEncoder
from .loading import one_line

# What the conv layers of AlexNet are pooled to before their probes: 9 to 10 thousand numbers
# (https://github.com/facebookresearch/deepcluster, eval_linear.py)
WIDTH = 9000
MOST = 1.25  # of that width, for a grid that comes closer to it than the next smaller one


@dataclass
class StageEncoder(ImageEncoder):
    """`encoder(pixels)` gives the pooled maps of all stages side by side, (N, the sum of `widths`), from one pass.

    shapes: of the pooled map of each stage, (C, h, w)."""

    shapes: tuple = ()
    batch_size = 64  # all maps of a batch are held at once

    def __call__(self, pixel_values):
        maps = zip(stage_maps(self, pixel_values), self.shapes, strict=True)
        return torch.cat([functional.adaptive_avg_pool2d(each, shape[1:]).flatten(1) for each, shape in maps], dim=1)

    @property
    def widths(self):
        return [math.prod(shape) for shape in self.shapes]


@torch.no_grad()
def stage_encoder(encoder):
    """A StageEncoder of an ImageEncoder. Raises InputError if it does not tell the maps of its stages."""
    device = next(encoder.model.parameters()).device
    black = torch.zeros(encoder.channels, 64, 64, dtype=torch.uint8)
    try:
        maps = stage_maps(encoder, encoder.preprocess([black], device))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"'{encoder.name}' does not tell the maps of its stages, which layer_probe needs: {one_line(error)}."
        ) from error
    known = {each.name: getattr(encoder, each.name) for each in fields(ImageEncoder)}
    return StageEncoder(**known, shapes=tuple(pooled_shapes([tuple(each.shape[1:]) for each in maps])))


def pooled_shapes(shapes, width=WIDTH):
    """The (C, h, w) that maps of the given (C, H, W) are averaged to: to square grids, so that each has about `width` numbers,
    or as many as the smallest map has, if those are fewer."""
    width = min(width, *(math.prod(shape) for shape in shapes))
    pooled = []
    for channels, *sides in shapes:
        fitting = [side for side in range(1, min(sides) + 1) if channels * side**2 <= MOST * width]
        side = min(fitting or [1], key=lambda side: abs(channels * side**2 - width))
        pooled.append((channels, side, side))
    return pooled


def stage_maps(encoder, pixel_values):
    """[(N, C, H, W)] of each of transformers' `hidden_states`, in their order; the first is mostly the stem's.

    Tokens, (N, L, C), are laid out as the image's patches are, without those of classes, registers and detections. Raises
    ValueError if there are none, or if one has no two sides.
    """
    model = encoder.model
    features = model.get_image_features if encoder.feature == IMAGE else model
    hidden = getattr(features(pixel_values=pixel_values, output_hidden_states=True), "hidden_states", None)
    if not hidden:
        raise ValueError(f"its model_type '{model.config.model_type}' gives no hidden_states")
    config = getattr(model.config, "vision_config", model.config)
    return [_as_map(each, *pixel_values.shape[2:], config) for each in hidden]


def _as_map(hidden, height, width, config):
    """A hidden state as (N, C, H, W). height, width: of the image, in pixels."""
    if hidden.ndim == 4:
        _, first, second, third = hidden.shape
        is_first, is_last = (
            abs(h * width - w * height) < max(height, width) for h, w in ((second, third), (first, second))
        )
        return hidden.permute(0, 3, 1, 2) if is_last and not is_first else hidden
    if hidden.ndim != 3:
        raise ValueError(f"a hidden state has the shape {tuple(hidden.shape)}")
    # YOLOS appends those of detections; what others add comes before the patches
    length = hidden.shape[1] - (getattr(config, "num_detection_tokens", None) or 0)
    rows, columns = _grid(length, height, width, config)
    return hidden[:, length - rows * columns : length].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def _grid(length, height, width, config):
    """(rows, columns) of the patches among `length` tokens: what the patch size says, else, after tokens were merged, the
    largest grid of the image's shape that they fill."""
    step = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
    if step and (isinstance(step, int) or len(step) == 2):
        down, across = (step, step) if isinstance(step, int) else step
        rows, columns = height // down, width // across
        if 0 < rows * columns <= length:
            return rows, columns
    for rows in range(math.ceil(math.sqrt(length * height / width)) + 1, 0, -1):
        columns = max(1, round(rows * width / height))
        if rows * columns <= length:
            return rows, columns
    raise ValueError(f"a hidden state has {length} tokens")


__all__ = ["WIDTH", "StageEncoder", "pooled_shapes", "stage_encoder", "stage_maps"]
