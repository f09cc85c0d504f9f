"""Encoders of images and of texts into one space: CLIP, its relatives, and two towers that transformers put together."""

from dataclasses import dataclass
from functools import cached_property

from ...errors import InputError
from .images import ImageEncoder, load_encoder
from .loading import DUAL_ENCODER_CONFIGS
from .text import TextEncoder, load_tokenizer, longest

TEXT = "text features"


@dataclass
class TextTower(TextEncoder):
    """`tower(tower.preprocess(texts))` gives what the loss compares with an image's features, (N, D) float32."""

    def _features(self, tokens):
        return self.model.get_text_features(**tokens).pooler_output


@dataclass
class DualEncoder(ImageEncoder):
    """An ImageEncoder with a tower of texts beside it, `texts`, whose tokenizer is loaded when it is asked for."""

    @cached_property
    def texts(self):
        tokenizer = load_tokenizer(self.name, self.revision, self.model.config.get_text_config().vocab_size)
        tower = TextTower(self.model, tokenizer, TEXT, 0, self.name, self.revision)
        tower.max_length = longest(tower)
        if self.model.config.model_type.startswith("siglip"):  # it was trained so, and padding is not masked
            tower.padding = "max_length"
        return tower


def load_dual_encoder(name_or_path, revision=None):
    """A DualEncoder from a folder or Hub id. Raises InputError if it does not encode both images and texts."""
    encoder = load_encoder(name_or_path, revision)
    if type(encoder.model.config) not in DUAL_ENCODER_CONFIGS:
        raise InputError(
            f"'{name_or_path}' encodes images alone: expected an encoder of images and texts, such as CLIP."
        )
    return DualEncoder(**vars(encoder))


__all__ = ["DualEncoder", "TextTower", "load_dual_encoder"]
