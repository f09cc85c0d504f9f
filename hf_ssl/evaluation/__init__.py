"""Evaluation of frozen features, and fine-tuning, beside the same encoder at random initialisation and raw features.

`EVALUATIONS[what the model reads]` runs the asked protocols on one of our releases or on anybody's checkpoint. Each
protocol is also a plain function of tensors, and two of them are `evaluate` metrics (folder metrics/).
"""

from . import images, pairs, text
from .dual_encoders import DualEncoder, load_dual_encoder
from .encoders import PAIRS, find_modality, modality_of, random_encoder
from .features import Features, checksum, extract, frozen
from .fine_tune import LabelledRows, fine_tune
from .fine_tune_text import fine_tune_text
from .image_encoders import ImageEncoder, PixelEncoder, load_encoder, pixel_encoder
from .images import evaluate_images
from .knn import knn_predict, nearest
from .linear_probe import linear_probe
from .low_label import balanced_subset, low_label
from .pairs import evaluate_pairs
from .protocols import Metric, results_table
from .text import evaluate_text
from .text_encoders import BagOfWords, TextEncoder, bag_of_words, load_text_encoder
from .words import WordVectors

EVALUATIONS = {"image": evaluate_images, "text": evaluate_text, PAIRS: evaluate_pairs}
NEED_NO_LABELS = (*text.EXTRA, "retrieval")
PROTOCOLS = tuple(dict.fromkeys((*images.PROTOCOLS, *text.PROTOCOLS, *pairs.PROTOCOLS)))

__all__ = [
    "EVALUATIONS",
    "NEED_NO_LABELS",
    "PROTOCOLS",
    "BagOfWords",
    "DualEncoder",
    "Features",
    "ImageEncoder",
    "LabelledRows",
    "Metric",
    "PixelEncoder",
    "TextEncoder",
    "WordVectors",
    "bag_of_words",
    "balanced_subset",
    "checksum",
    "evaluate_images",
    "evaluate_pairs",
    "evaluate_text",
    "extract",
    "find_modality",
    "fine_tune",
    "fine_tune_text",
    "frozen",
    "knn_predict",
    "linear_probe",
    "load_dual_encoder",
    "load_encoder",
    "load_text_encoder",
    "low_label",
    "modality_of",
    "nearest",
    "pixel_encoder",
    "random_encoder",
    "results_table",
]
