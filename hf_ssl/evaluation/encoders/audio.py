"""Encoders of speech: any model of waveforms with a feature extractor, or MFCC; reading their rows and phone labels.

A model gives a vector a frame; the feature of an utterance is their mean over time. Each utterance is encoded by itself,
unpadded: what padding changes depends on the architecture (wav2vec2's first norm counts it in), and a feature must not
depend on the rest of its batch.
"""

import logging
from dataclasses import dataclass
from functools import cache, cached_property

import datasets
import numpy as np
import torch
from scipy.fft import dct
from scipy.signal import savgol_filter
from torch import nn
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ...data.audio import SPEAKER_COLUMNS, audio_rows, decode_audio
from ...data.loading import LABEL_COLUMNS, find_column
from ...errors import InputError
from .loading import load_model, locate, one_line

logger = logging.getLogger(__name__)

MEAN = "mean of last_hidden_state over time"
SHORTEST, LONGEST = 0.025, 60.0  # seconds: a window of MFCC, and of wav2vec2's convolutions; what is read of a file
COEFFICIENTS, MELS = 13, 40
WINDOW, HOP = 0.025, 0.010  # seconds


@dataclass
class AudioEncoder:
    """`encoder(encoder.preprocess(waveforms))` gives features, (N, D) float32; `encoder.frames` those of each frame.

    model: in eval mode, float32. processor: its feature extractor. feature: what is taken from the model.
    """

    model: nn.Module
    processor: object
    feature: str
    name: str
    revision: str | None = None
    reason: str | None = None  # why the last broken row could not be read
    kind, unit, batch_size = "audio", "utterance", 16

    def find_columns(self, data, columns=(), label_column=None):
        return audio_and_label(data, columns, label_column)

    def read(self, value):
        """The waveform (L,) of a row, up to a little more than LONGEST seconds; None if broken or shorter than SHORTEST."""
        rate = self.processor.sampling_rate
        try:
            waveform = decode_audio(value, rate, seconds=LONGEST + SHORTEST)
        except Exception as error:
            self.reason = one_line(error)
            return None
        if len(waveform) < SHORTEST * rate:
            self.reason = f"the audio has {len(waveform)} samples at {rate} Hz, less than {SHORTEST:g} s"
            return None
        return waveform

    def too_long(self, items):
        return sum(len(waveform) > LONGEST * self.processor.sampling_rate for waveform in items)

    def preprocess(self, items, device=None):
        """Waveforms as the feature extractor scales them, each by itself: a list of (L,)."""
        rate, most = self.processor.sampling_rate, int(LONGEST * self.processor.sampling_rate)
        values = (
            self.processor(x[:most].numpy(), sampling_rate=rate, return_tensors="pt").input_values for x in items
        )
        return [value[0].float().to(device) for value in values]

    def frames(self, input_values):
        """Utterances of one length, (N, L), to (N, T, D)."""
        return self.model(input_values=input_values).last_hidden_state

    def __call__(self, inputs):
        return torch.stack([self.frames(values[None])[0].mean(0) for values in inputs])

    @cached_property
    @torch.no_grad()
    def hop(self):
        """Seconds from one frame to the next, found by encoding one second and five."""
        rate, device = self.processor.sampling_rate, next(self.model.parameters(), torch.empty(0)).device
        one, five = (self.frames(torch.zeros(1, seconds * rate, device=device)).shape[1] for seconds in (1, 5))
        return 4 / (five - one)

    def centres(self, count):
        """Seconds at which the first `count` frames stand, (count,)."""
        return (np.arange(count) + 0.5) * self.hop


@dataclass
class MFCCEncoder(AudioEncoder):
    """13 mel-frequency cepstral coefficients with their first and second differences, each 10 ms: (N, T, 39)."""

    def frames(self, input_values):
        rate = self.processor.sampling_rate
        mfcc = [self._coefficients(values, rate) for values in input_values.cpu().numpy()]
        return torch.from_numpy(np.stack(mfcc)).float().to(input_values.device)

    def _coefficients(self, values, rate):
        window, hop = round(WINDOW * rate), round(HOP * rate)
        size = 2 ** (window - 1).bit_length()
        # frame t is centred at hop t + hop / 2, as in a network with such a stride
        log_mels = spectrogram(
            np.pad(values, (window - hop) // 2, "reflect"), window_function(window, "hamming"), window, hop, size,
            power=2.0, center=False, preemphasis=0.97, mel_filters=_mel_filters(size, rate), log_mel="log",
        )  # (MELS, T)  # fmt: skip
        cepstrum = dct(log_mels.T, norm="ortho")[:, :COEFFICIENTS]
        slopes = _slopes(cepstrum)
        return np.concatenate([cepstrum, slopes, _slopes(slopes)], axis=1)


def load_audio_encoder(name_or_path, revision=None):
    """An AudioEncoder from a folder or Hub id: one of our releases or its `pretraining` part, or any model of waveforms
    that AutoModel loads. Raises InputError if there is none, or if its features would be random."""
    model, _ = load_model(name_or_path, revision)
    if model.main_input_name != "input_values":
        reads = f"its model_type '{model.config.model_type}' reads {model.main_input_name}"
        raise InputError(f"'{name_or_path}' is not a speech encoder: {reads}.")
    if model.config.is_encoder_decoder:
        raise InputError(f"'{name_or_path}' is an encoder with a decoder: expected an encoder alone.")
    encoder = AudioEncoder(model, _load_processor(name_or_path, revision), MEAN, str(name_or_path), revision)
    try:
        encoder.hop  # noqa: B018 (encodes a second of silence)
        second = torch.zeros(encoder.processor.sampling_rate)
        with torch.no_grad():
            width = encoder(encoder.preprocess([second])).ndim
        if width != 2:
            raise ValueError("its frames are no vectors")
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"'{name_or_path}' does not give a vector a frame of a waveform: {one_line(error)}."
        ) from error
    return encoder


def mfcc_encoder(encoder):
    """MFCC of what `encoder` reads."""
    name = f"{3 * COEFFICIENTS} MFCC, mean over time"
    return MFCCEncoder(nn.Identity(), encoder.processor, name, encoder.name)


def audio_and_label(data, columns=(), label_column=None):
    """(data with only these columns, audio undecoded; the name of the audio column, as a tuple; that of the labels)."""
    label_column = find_column(data, label_column, "label", SPEAKER_COLUMNS + LABEL_COLUMNS, (datasets.ClassLabel,))
    data, column = audio_rows(data, *columns)
    return data.select_columns([column, label_column]), (column,), label_column


@cache
def _mel_filters(size, rate):
    return mel_filter_bank(size // 2 + 1, MELS, 20.0, rate / 2, rate, mel_scale="htk")


def _slopes(x):
    """The slope of a line through five frames, as HTK's deltas."""
    return savgol_filter(x, 5, 1, deriv=1, axis=0, mode="nearest")


def _load_processor(name_or_path, revision):
    repo = locate(name_or_path)[0]
    try:
        processor = AutoFeatureExtractor.from_pretrained(repo, revision=revision)
    except (OSError, ValueError):
        logger.warning("%s has no feature extractor: waveforms are read at 16 kHz and normalised.", repo)
        return Wav2Vec2FeatureExtractor()
    if processor.model_input_names[0] != "input_values":
        raise InputError(f"'{name_or_path}' has a feature extractor of {processor.model_input_names[0]}.")
    return processor


__all__ = ["AudioEncoder", "MFCCEncoder", "audio_and_label", "load_audio_encoder", "mfcc_encoder"]
