"""Audio columns: files of any format, rate and number of channels that libsndfile reads, as mono waveforms."""

import io
import math

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly

SAMPLING_RATE = 16_000
AUDIO_COLUMNS = ("audio", "file", "path", "flac", "wav", "mp3", "ogg")


def decode_audio(value, sampling_rate=SAMPLING_RATE, start=0.0, seconds=None):
    """A waveform (T,) float32 at `sampling_rate`, channels averaged, at the file's amplitude.

    value: a path, bytes, {"bytes", "path"} as `datasets.Audio(decode=False)` gives them, or {"array", "sampling_rate"}.
    start, seconds: the part that is wanted; no more is decoded. Raises ValueError if it cannot be read, is empty, or
    holds values that are not finite.
    """
    if isinstance(value, dict) and value.get("array") is not None:
        rate, samples = value["sampling_rate"], np.atleast_2d(np.asarray(value["array"], np.float32).T).T  # (T, C)
        first = round(start * rate)
        samples = samples[first : None if seconds is None else first + math.ceil(seconds * rate)]
    else:
        with open_audio(value) as file:
            rate = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            samples = file.read(-1 if seconds is None else math.ceil(seconds * rate), "float32", always_2d=True)
    if len(samples) == 0:
        raise ValueError("the audio is empty")
    if not np.isfinite(samples).all():
        raise ValueError("the audio holds values that are not finite")
    waveform = samples.mean(1)
    if rate != sampling_rate:
        common = math.gcd(rate, sampling_rate)
        waveform = resample_poly(waveform, sampling_rate // common, rate // common)
    return torch.from_numpy(np.ascontiguousarray(waveform, np.float32))


def open_audio(value):
    """An open `soundfile.SoundFile`: its header has been read, its samples not. Raises ValueError."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not value:
        raise ValueError("the audio is empty")
    try:
        return soundfile.SoundFile(io.BytesIO(value) if isinstance(value, bytes) else value)
    except (soundfile.LibsndfileError, TypeError, OSError) as error:
        raise ValueError(f"the audio cannot be read: {error}") from error


__all__ = ["AUDIO_COLUMNS", "SAMPLING_RATE", "decode_audio", "open_audio"]
