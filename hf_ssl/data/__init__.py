"""Data sets, their rows as batches that resume exactly, and the views that are made of them."""

from .bpe import train_bpe
from .images import ImageDecoder, decode_image, image_processor, image_rows
from .loader import TrainLoader
from .loading import DataError, load_split
from .pairs import PairDecoder, pair_rows
from .segments import TokenBatches, token_rows
from .text import passages, sentences, text_rows
from .views import TWO_VIEWS, RandomResizedCropAndFlip, RandomSquareCrop, TwoViews
from .wordpiece import train_wordpiece

__all__ = [
    "TWO_VIEWS",
    "DataError",
    "ImageDecoder",
    "PairDecoder",
    "RandomResizedCropAndFlip",
    "RandomSquareCrop",
    "TokenBatches",
    "TrainLoader",
    "TwoViews",
    "decode_image",
    "image_processor",
    "image_rows",
    "load_split",
    "pair_rows",
    "passages",
    "sentences",
    "text_rows",
    "token_rows",
    "train_bpe",
    "train_wordpiece",
]
