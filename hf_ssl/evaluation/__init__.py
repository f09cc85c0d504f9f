"""Evaluation of frozen features, and fine-tuning, beside the same encoder at random initialisation and raw features.

`ENCODERS[what the model reads]` loads one of our releases or anybody's checkpoint, `EVALUATIONS[what the model reads]` runs
the asked protocols on it. Each protocol is also a plain function of tensors, and two of them are `evaluate` metrics (folder
metrics/).
"""

from . import audio, images, pairs, text
from .audio import evaluate_audio
from .encoders.audio import AudioEncoder, MFCCEncoder, load_audio_encoder, mfcc_encoder
from .encoders.images import ImageEncoder, PixelEncoder, load_encoder, pixel_encoder
from .encoders.loading import PAIRS, find_modality, modality_of, random_encoder
from .encoders.pairs import DualEncoder, load_dual_encoder
from .encoders.text import BagOfWords, TextEncoder, bag_of_words, load_text_encoder
from .features import Features, checksum, extract, frozen
from .images import evaluate_images
from .pairs import evaluate_pairs
from .protocols.clusters import cluster_agreement
from .protocols.fine_tune import LabelledRows, fine_tune
from .protocols.fine_tune_text import fine_tune_text
from .protocols.knn import knn_predict, nearest
from .protocols.linear_probe import linear_probe
from .protocols.low_label import balanced_subset, low_label
from .protocols.phones import classify_frames
from .protocols.words import WordVectors
from .results import Metric, results_table
from .text import evaluate_text

EVALUATIONS = {"image": evaluate_images, "text": evaluate_text, "audio": evaluate_audio, PAIRS: evaluate_pairs}
ENCODERS = {  # by what is read: from a folder or Hub id, and a revision
    "image": load_encoder,
    "text": load_text_encoder,
    "audio": load_audio_encoder,
    PAIRS: load_dual_encoder,
}
PROTOCOLS = {
    "image": images.PROTOCOLS,
    "text": text.PROTOCOLS,
    "audio": audio.PROTOCOLS,
    PAIRS: pairs.PROTOCOLS,
}

__all__ = [
    "ENCODERS",
    "EVALUATIONS",
    "PROTOCOLS",
    "AudioEncoder",
    "BagOfWords",
    "DualEncoder",
    "Features",
    "ImageEncoder",
    "LabelledRows",
    "MFCCEncoder",
    "Metric",
    "PixelEncoder",
    "TextEncoder",
    "WordVectors",
    "bag_of_words",
    "balanced_subset",
    "checksum",
    "classify_frames",
    "cluster_agreement",
    "evaluate_audio",
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
    "load_audio_encoder",
    "load_dual_encoder",
    "load_encoder",
    "load_text_encoder",
    "low_label",
    "mfcc_encoder",
    "modality_of",
    "nearest",
    "pixel_encoder",
    "random_encoder",
    "results_table",
]
