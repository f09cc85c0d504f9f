"""Data sets, their rows as batches that resume exactly, and the views that are made of them."""

from .audio import audio_length, audio_rows, decode_audio, open_audio
from .bpe import train_bpe
from .images import ImageDecoder, decode_image, image_processor, image_rows
from .labels import LabelledCompanions, WithLabels
from .loader import TrainLoader
from .loading import DataError, load_split
from .pairs import PairDecoder, pair_rows
from .segments import TokenBatches, token_rows
from .sentence_windows import WindowBatches, sentence_rows
from .text import passages, sentences, text_rows
from .views import VIEWS, RandomResizedCropAndFlip, RandomSquareCrop, ViewRecipe, Views
from .windows import AudioWindows, WaveformBatches, audio_windows, speaker_column
from .wordpiece import train_wordpiece

__all__ = [
    "VIEWS",
    "AudioWindows",
    "DataError",
    "ImageDecoder",
    "LabelledCompanions",
    "WithLabels",
    "PairDecoder",
    "RandomResizedCropAndFlip",
    "RandomSquareCrop",
    "TokenBatches",
    "TrainLoader",
    "ViewRecipe",
    "Views",
    "WaveformBatches",
    "WindowBatches",
    "audio_length",
    "audio_rows",
    "audio_windows",
    "decode_audio",
    "decode_image",
    "image_processor",
    "image_rows",
    "load_split",
    "open_audio",
    "pair_rows",
    "passages",
    "sentence_rows",
    "sentences",
    "speaker_column",
    "text_rows",
    "token_rows",
    "train_bpe",
    "train_wordpiece",
]
