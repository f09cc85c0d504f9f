"""The command `hf-ssl` (main.py), and what the scripts are made of: parse.py reads the command line, a file for each kind of
data goes from its arguments to rows and their decoder, pretrain.py from there to the release."""

from .audio import audio_data
from .images import RESNET18, RESNET50, image_data, last_view, one_view, resnet8, two_views, view_size, vit
from .parse import build_model, override_config, parse_arguments, set_up_logging
from .pretrain import (
    Preset,
    count_samples,
    pretrain,
    pretrain_images,
    pretrain_pairs,
    pretrain_with_labels,
    pretrain_words,
)
from .text import sentence_data, sentence_tokenizer, text_data, text_documents, text_tokenizer

__all__ = [
    "RESNET18",
    "RESNET50",
    "Preset",
    "audio_data",
    "build_model",
    "count_samples",
    "image_data",
    "last_view",
    "one_view",
    "override_config",
    "parse_arguments",
    "pretrain",
    "pretrain_images",
    "pretrain_pairs",
    "pretrain_with_labels",
    "pretrain_words",
    "resnet8",
    "sentence_data",
    "sentence_tokenizer",
    "set_up_logging",
    "text_data",
    "text_documents",
    "text_tokenizer",
    "two_views",
    "view_size",
    "vit",
]
