"""Data sets, their rows as batches that resume exactly, and the views that are made of them."""

from .images import ImageDecoder, decode_image, image_processor, image_rows
from .loader import TrainLoader
from .loading import DataError, load_split
from .segments import TokenBatches, token_rows
from .sentence_windows import WindowBatches, sentence_rows
from .text import passages, sentences, text_rows
from .views import TWO_VIEWS, RandomResizedCropAndFlip, TwoViews
from .wordpiece import train_wordpiece

__all__ = [
    "TWO_VIEWS",
    "DataError",
    "ImageDecoder",
    "RandomResizedCropAndFlip",
    "TokenBatches",
    "TrainLoader",
    "TwoViews",
    "WindowBatches",
    "decode_image",
    "image_processor",
    "image_rows",
    "load_split",
    "passages",
    "sentence_rows",
    "sentences",
    "text_rows",
    "token_rows",
    "train_wordpiece",
]
