"""Encoders to evaluate: a release of ours, anybody's checkpoint, the same at random initialisation, or raw pixels.

Features must be the same at each load. transformers gives a checkpoint without pooler weights a random pooler, and its
ViT-MAE hides a random 75% of each image; both are seen here and another feature is taken, which `feature` names.
"""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, ViTModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING as DUAL_ENCODERS
from transformers.utils import cached_file

from ..data.images import image_processor
from ..errors import InputError
from ..methods import METHODS

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
SSL_METHODS = {method.config_class.model_type: method for method in METHODS.values()}


@dataclass
class ImageEncoder:
    """`encoder(encoder.preprocess(images))` gives features, (N, D) float32.

    model: in eval mode, float32. feature: what is taken from it, a key of FEATURES. channels: of the images it reads.
    """

    model: nn.Module
    processor: object
    feature: str
    channels: int
    name: str
    revision: str | None = None

    def preprocess(self, images, device=None):
        """A list of uint8 (C, H, W) to the evaluation view, (N, C, H, W) float32."""
        batch = self.processor(images, return_tensors="pt", input_data_format="channels_first", device=device)
        return batch["pixel_values"]

    def __call__(self, pixel_values):
        return FEATURES[self.feature](self.model, pixel_values)

    @property
    def view(self):
        """What the evaluation view does: its side in pixels, and the mean and deviation it normalises by."""
        side = self.preprocess([torch.zeros(self.channels, 64, 64, dtype=torch.uint8)]).shape[-1]
        if not self.processor.do_normalize:
            return {"size": side, "mean": [0.0], "std": [1.0]}
        return {"size": side, "mean": list(self.processor.image_mean), "std": list(self.processor.image_std)}


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
    repo, subfolder = _locate(name_or_path)
    if not Path(repo).is_dir() and (repo.startswith(("/", ".", "~")) or repo.count("/") > 1):
        raise InputError(f"'{name_or_path}' is not a folder that exists, and no Hub id: expected one of the two.")
    source = {"revision": revision, "subfolder": subfolder}
    try:
        config = AutoConfig.from_pretrained(repo, **source)
        model, missing = _load_model(repo, config, source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"'{name_or_path}' is not a folder or Hub id of a loadable model: {reason}.") from error
    if model.main_input_name != "pixel_values" and type(model.config) not in DUAL_ENCODERS:
        reads = f"its model_type '{config.model_type}' reads {model.main_input_name}"
        raise InputError(f"'{name_or_path}' is not an image encoder: {reads}.")
    # norms start at one and zero, so a missing one is the same at each load; anything else would be random
    if random := sorted(key for key in missing if not re.search("pooler|norm", key)):
        raise InputError(f"'{name_or_path}' lacks {len(random)} weights of its encoder, for example '{random[0]}'.")

    vision = model.config.vision_config if type(model.config) in DUAL_ENCODERS else model.config
    settings = vision.to_dict()
    channels = settings.get("num_channels", 3)
    processor = _load_processor(repo, revision, settings.get("image_size") or 224, channels)
    encoder = ImageEncoder(model.float().eval(), processor, POOLED, channels, str(name_or_path), revision)
    encoder.feature = _choose_feature(encoder, pooler_is_random=any("pooler" in key for key in missing))
    return encoder


def random_encoder(encoder, seed):
    """The same architecture at random initialisation, drawn by the release's method, or by transformers."""
    repo, subfolder = _locate(encoder.name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = _pretraining_config(repo, subfolder, encoder.revision)
        if config is not None:
            model = SSL_METHODS[config.model_type](config).export_encoder()
        else:
            model = AutoModel.from_config(encoder.model.config)
    return replace(encoder, model=model.float().eval())


def pixel_encoder(encoder, images):
    """Raw pixels as `encoder` sees them. images: some uint8 (C, H, W) that show if all are grey."""
    grey = all(bool((image == image[:1]).all()) for image in images)
    return PixelEncoder(nn.Identity(), encoder.processor, "pixels", encoder.channels, encoder.name, grey=grey)


def _locate(name_or_path):
    """(folder or Hub id, subfolder): the `pretraining` part of a release shares the image processor at its root."""
    path = str(name_or_path).rstrip("/")
    return (path.removesuffix("/pretraining"), "pretraining") if path.endswith("/pretraining") else (path, "")


def _load_model(repo, config, source) -> tuple[PreTrainedModel, set]:
    """The model and the names of the parameters that are not in its file."""
    if config.model_type in SSL_METHODS:
        return SSL_METHODS[config.model_type].from_pretrained(repo, **source).export_encoder(), set()
    arguments = {"dtype": torch.float32, "output_loading_info": True, **source}
    if config.model_type == "vit_mae":
        model, info = ViTModel.from_pretrained(repo, add_pooling_layer=False, **arguments)
    else:
        model, info = AutoModel.from_pretrained(repo, **arguments)
    return model, set(info["missing_keys"])


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
    if type(model.config) in DUAL_ENCODERS:
        return IMAGE
    try:
        output = model(pixel_values=encoder.preprocess([image]))
    except (ValueError, RuntimeError, TypeError) as error:  # a video model, or one that also needs other inputs
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f"'{encoder.name}' does not encode single images: {reason}.") from error
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


def _pretraining_config(repo, subfolder, revision):
    """The config of the method that made the release, None if it is not one of ours."""
    folders = [subfolder] if subfolder else ["", "pretraining"]
    for folder in folders:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if cached_file(repo, "config.json", subfolder=folder, revision=revision, **quiet) is None:
            continue
        config = AutoConfig.from_pretrained(repo, subfolder=folder, revision=revision)
        if config.model_type in SSL_METHODS:
            return config
    return None


__all__ = ["ImageEncoder", "PixelEncoder", "load_encoder", "pixel_encoder", "random_encoder"]
