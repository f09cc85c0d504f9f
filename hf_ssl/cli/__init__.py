"""What the pretraining scripts are made of: the command line, and from its arguments to data, by what they hold."""

from .audio import audio_data
from .images import image_data, two_views, view_size
from .pairs import (
    choose_towers,
    load_towers,
    pair_data,
    pair_decoder,
    pair_processor,
    pair_tokenizer,
    report_cut,
)
from .parse import build_model, override_config, parse_arguments, set_up_logging
from .text import sentence_data, sentence_tokenizer, text_data, text_documents, text_tokenizer, word_corpus

__all__ = [
    "audio_data",
    "build_model",
    "choose_towers",
    "image_data",
    "load_towers",
    "override_config",
    "pair_data",
    "pair_decoder",
    "pair_processor",
    "pair_tokenizer",
    "parse_arguments",
    "report_cut",
    "sentence_data",
    "sentence_tokenizer",
    "set_up_logging",
    "text_data",
    "text_documents",
    "text_tokenizer",
    "two_views",
    "view_size",
    "word_corpus",
]
