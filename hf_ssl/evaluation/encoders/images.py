"""Encoders of images: anybody's checkpoint, or raw pixels; reading their rows.

Features must be the same at each load. transformers gives a checkpoint without pooler weights a random pooler; this is
seen here and another feature is taken, which `feature` names.
"""

import logging
import math
from dataclasses import dataclass
from itertools import pairwise

import datasets
import torch
from torch import nn
from transformers import AutoImageProcessor

from ...data.images import PHOTOGRAPH, decode_image, image_processor, image_rows
from ...data.loading import LABEL_COLUMNS, find_column
from ...errors import InputError
from ..features import checked_labels
from .loading import DUAL_ENCODER_CONFIGS, load_model, locate, one_line

logger = logging.getLogger(__name__)

POOLED, IMAGE = "pooler_output", "image features"
CLS, MEAN = "cls token of last_hidden_state", "mean of last_hidden_state"
FEATURES = {  # each (N, C, H, W) to (N, D)
    POOLED: lambda model, pixels: model(pixel_values=pixels).pooler_output.flatten(1),
    CLS: lambda model, pixels: model(pixel_values=pixels).last_hidden_state[:, 0],
    MEAN: lambda model, pixels: _mean_position(model(pixel_values=pixels).last_hidden_state),
    IMAGE: lambda model, pixels: model.get_image_features(pixel_values=pixels).pooler_output,
}
PIXEL_SIDE = 32  # raw pixels of larger images are averaged to at most 32 x 32, the size of CIFAR


@dataclass
class ImageEncoder:
    """`encoder(encoder.preprocess(images))` gives features, (N, D) float32.

    model: in eval mode, float32. feature: what is taken from it, a key of FEATURES. channels: of the images it reads. reason: why
    the last broken image could not be read.
    """

    model: nn.Module
    processor: object
    feature: str
    channels: int
    name: str
    revision: str | None = None
    reason: str | None = None
    kind, unit, batch_size = "image", "img", 256

    def find_columns(self, data, columns=(), label_column=None):
        data, column, label_column = image_and_label(data, *columns or (None,), label_column)
        return data, (column,), label_column

    def read(self, value):
        """uint8 (C, H, W); of a photograph, which is not held whole, its evaluation view, float32."""
        try:
            image = decode_image(value, self.channels)
        except Exception as error:
            self.reason = one_line(error)
            return None
        return image if image[0].numel() <= PHOTOGRAPH else self.preprocess([image])[0]

    def too_long(self, images):
        return 0

    def preprocess(self, images, device=None):
        """A list of what `read` gives to the evaluation view, (N, C, H, W) float32."""
        whole = [image for image in images if image.dtype == torch.uint8]
        how = dict(return_tensors="pt", input_data_format="channels_first", device=device)
        made = self.processor(whole, **how)["pixel_values"] if whole else ()
        if len(made) == len(images):
            return made
        made = iter(made)
        return torch.stack([next(made) if image.dtype == torch.uint8 else image.to(device) for image in images])

    def __call__(self, pixel_values):
        return FEATURES[self.feature](self.model, pixel_values)

    @property
    def view(self):
        """What the evaluation view does: its side in pixels, and the mean and deviation it normalises by."""
        return processor_view(self.processor, self.channels)


@dataclass
class PixelEncoder(ImageEncoder):
    """The processed pixels themselves, at most 32 x 32. grey: all channels hold the same picture, so one is kept."""

    grey: bool = False

    def __call__(self, pixel_values):
        h, w = pixel_values.shape[2:]
        if max(h, w) > PIXEL_SIDE:
            pixel_values = nn.functional.adaptive_avg_pool2d(pixel_values, (min(h, PIXEL_SIDE), min(w, PIXEL_SIDE)))
        return (pixel_values[:, :1] if self.grey else pixel_values).flatten(1)


def load_encoder(name_or_path, revision=None):
    """An ImageEncoder from a folder or Hub id: one of our releases or its `pretraining` part, or any image model that
    AutoModel loads. Raises InputError if there is none, or if its features would be random."""
    model, missing = load_model(name_or_path, revision)
    dual = type(model.config) in DUAL_ENCODER_CONFIGS
    if model.main_input_name != "pixel_values" and not dual:
        reads = f"its model_type '{model.config.model_type}' reads {model.main_input_name}"
        raise InputError(f"'{name_or_path}' is not an image encoder: {reads}.")
    settings = (model.config.vision_config if dual else model.config).to_dict()
    channels = settings.get("num_channels", 3)
    processor = _load_processor(locate(name_or_path)[0], revision, settings.get("image_size") or 224, channels)
    encoder = ImageEncoder(model, processor, POOLED, channels, str(name_or_path), revision)
    encoder.feature = _choose_feature(encoder, pooler_is_random=any("pooler" in key for key in missing))
    return encoder


def processor_view(processor, channels):
    """What an image processor does: {"size": the side of what it gives, in pixels, "mean", "std": what it normalises by}."""
    black = torch.zeros(channels, 64, 64, dtype=torch.uint8)
    side = processor([black], return_tensors="pt", input_data_format="channels_first")["pixel_values"].shape[-1]
    if not processor.do_normalize:
        return {"size": side, "mean": [0.0], "std": [1.0]}
    return {"size": side, "mean": list(processor.image_mean), "std": list(processor.image_std)}


def pixel_encoder(encoder, images):
    """Raw pixels as `encoder` sees them. images: some uint8 (C, H, W) that show if all are grey."""
    grey = all(bool((image == image[:1]).all()) for image in images)
    return PixelEncoder(nn.Identity(), encoder.processor, "pixels", encoder.channels, encoder.name, grey=grey)


def image_and_label(data, image_column=None, label_column=None):
    """(data with only these two columns, images undecoded; the name of the image column; that of the label column)."""
    label_column = find_column(data, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
    data, image_column = image_rows(data, image_column)
    return data.select_columns([image_column, label_column]), image_column, label_column


def decode_rows(data, image_column, channels, rows):
    """Images of the given rows, in their order, as uint8 (channels, H, W), photographs reduced."""
    if isinstance(data, datasets.Dataset):
        return [_decode(data[row][image_column], channels) for row in rows]
    wanted = set(rows)
    found = {i: _decode(row[image_column], channels) for i, row in enumerate(data) if i in wanted}
    return [found[row] for row in rows]


def labelled_images(data, image_column, label_column, channels):
    """(every image that can be decoded, uint8 (channels, H, W), photographs reduced; their labels, (N,) int64)."""
    rows = [(_decode(row[image_column], channels), row[label_column]) for row in data]
    rows = [(image, label) for image, label in rows if image is not None]
    return [image for image, _ in rows], torch.tensor(checked_labels([label for _, label in rows], label_column))


def first_images(data, image_column, channels, count):
    """The first `count` images that can be decoded, or as many as there are, uint8 (channels, H, W), photographs reduced."""
    return list(_first(data, image_column, channels, count).values())


def _first(data, image_column, channels, count):
    """{row: image} of `first_images`."""
    images, reason = {}, "the data are empty"
    for row, values in enumerate(data):
        try:
            images[row] = _reduced(decode_image(values[image_column], channels))
        except Exception as error:
            reason = one_line(error)
        if len(images) == count:
            break
    if not images:
        raise InputError(
            f"image_column '{image_column}' holds no image that can be decoded, the last because: {reason}."
        )
    return images


def spread_images(data, image_column, channels, count):
    """{row: image} of `count` images that can be decoded, or as many as there are, spread evenly over the rows, since rows
    often lie class by class; of a stream the first."""
    if not isinstance(data, datasets.Dataset) or len(data) <= count:
        return _first(data, image_column, channels, count)
    images, edges = {}, [len(data) * i // count for i in range(count + 1)]
    for start, stop in pairwise(edges):
        try:
            part = _first(data.select(range(start, stop)), image_column, channels, 1)
            images |= {start + row: image for row, image in part.items()}
        except InputError as error:
            reason = error
    if not images:
        raise reason
    return images


def _decode(value, channels):
    """uint8 (channels, H, W), a photograph reduced, None if it is broken."""
    try:
        return _reduced(decode_image(value, channels))
    except Exception:
        return None


def _reduced(image):
    """A uint8 image (C, H, W) with at most PHOTOGRAPH pixels."""
    factor = min(math.ceil((image[0].numel() / PHOTOGRAPH) ** 0.5), *image.shape[1:])
    return image if factor <= 1 else nn.functional.avg_pool2d(image.float(), factor).round().byte()


def _load_processor(repo, revision, size, channels):
    try:
        return AutoImageProcessor.from_pretrained(repo, revision=revision, backend="torchvision")
    except (OSError, ValueError):
        side = min(size) if isinstance(size, (list, tuple)) else size
        logger.warning("%s has no image processor: images are resized to %dx%d and normalised.", repo, side, side)
        return image_processor(side, channels)


@torch.no_grad()
def _choose_feature(encoder, pooler_is_random):
    model, image = encoder.model, torch.zeros(encoder.channels, 64, 64, dtype=torch.uint8)
    if type(model.config) in DUAL_ENCODER_CONFIGS:
        return IMAGE
    try:
        output = model(pixel_values=encoder.preprocess([image]))
    except (ValueError, RuntimeError, TypeError) as error:  # a video model, or one that also needs other inputs
        raise InputError(f"'{encoder.name}' does not encode single images: {one_line(error)}.") from error
    if "pooler_output" in output and not pooler_is_random:
        return POOLED
    has_cls_token = any("cls_token" in name or "class_embedding" in name for name, _ in model.named_parameters())
    feature = CLS if has_cls_token else MEAN
    if pooler_is_random:
        logger.warning("%s has no pooler weights: features are the %s.", encoder.name, feature)
    return feature


def _mean_position(hidden):
    """Mean over tokens (N, L, D) or over a map (N, D, H, W)."""
    return hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)


__all__ = [
    "ImageEncoder",
    "PixelEncoder",
    "decode_rows",
    "first_images",
    "image_and_label",
    "labelled_images",
    "load_encoder",
    "pixel_encoder",
    "processor_view",
    "spread_images",
]
