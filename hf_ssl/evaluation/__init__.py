"""Evaluation of frozen features, and fine-tuning, beside the same encoder at random initialisation and raw pixels.

`evaluate_images` runs the asked protocols on one of our releases or on anybody's checkpoint. Each protocol is also a
plain function of tensors, and two of them are `evaluate` metrics (folder metrics/).
"""

from .encoders import ImageEncoder, PixelEncoder, load_encoder, pixel_encoder, random_encoder
from .features import Features, checksum, extract, frozen
from .fine_tune import LabelledImages, fine_tune
from .images import PROTOCOLS, evaluate_images, results_table
from .knn import knn_predict, nearest
from .linear_probe import linear_probe
from .low_label import balanced_subset, low_label

__all__ = [
    "PROTOCOLS",
    "Features",
    "ImageEncoder",
    "LabelledImages",
    "PixelEncoder",
    "balanced_subset",
    "checksum",
    "evaluate_images",
    "extract",
    "fine_tune",
    "frozen",
    "knn_predict",
    "linear_probe",
    "load_encoder",
    "low_label",
    "nearest",
    "pixel_encoder",
    "random_encoder",
    "results_table",
]
