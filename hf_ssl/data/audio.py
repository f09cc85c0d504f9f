"""Audio columns: files of any format, rate and number of channels that libsndfile reads, as mono waveforms."""

import math
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.utils.file_utils import xopen

from .loading import DataError, find_column, raw_column

SAMPLING_RATE = 16_000
AUDIO_COLUMNS = ("audio", "file", "path", "flac", "wav", "mp3", "ogg", "opus")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "speakers", "client_id")
LOBES = 10  # of the low-pass filter on each side, as `resample_poly` has them
MP3_START = 4608  # frames that its decoder takes to come to itself: four of its blocks
RATES = 1_000, 1_000_000  # Hz that a header may say: slower or faster than any recorder, it is broken
MOST_FRAMES = 2**40  # samples; a header that promises more does not know


def audio_rows(data, audio_column=None):
    """(data with the audio column undecoded, that column's name)."""
    if find_spec("soundfile") is None:
        raise DataError('Recordings are decoded by soundfile, which is not installed: pip install "hf_ssl[audio]".')
    column = find_column(data, audio_column, "audio", AUDIO_COLUMNS, (datasets.Audio,), values=False)
    kind = (data.features or {}).get(column)
    known = ("binary", "large_binary", "string", "large_string", "dict")
    if kind is not None and not isinstance(kind, dict) and getattr(kind, "dtype", None) not in known:
        found = getattr(kind, "dtype", type(kind).__name__)
        raise DataError(f"audio_column '{column}' holds {found} values: expected audio, bytes or paths.")
    return raw_column(data, column, datasets.Audio), column


def decode_audio(value, sampling_rate=SAMPLING_RATE, start=0.0, seconds=None):
    """A waveform (T,) float32 at `sampling_rate`, channels averaged, at the file's amplitude.

    value: a path, bytes, {"bytes", "path"} as `datasets.Audio(decode=False)` gives them, or {"array", "sampling_rate"}.
    start, seconds: the part that is wanted, sample for sample what the whole file would have there; no more is decoded than
    it and the reach of the low-pass filter. Raises ValueError if it cannot be read, is empty, or holds values that are
    not finite.
    """
    first = round(start * sampling_rate)
    count = None if seconds is None else round(seconds * sampling_rate)
    if isinstance(value, dict) and value.get("array") is not None:
        rate, samples = _array_rate(value), np.atleast_2d(np.asarray(value["array"], np.float32).T).T  # (T, C)
        begin, end, skip = _frames(rate, sampling_rate, first, count)
        samples = samples[begin:end]
    else:
        with open_audio(value) as file:
            rate = file.samplerate
            begin, end, skip = _frames(rate, sampling_rate, first, count)
            samples = _read(file, begin, end, value)
    if not np.isfinite(samples).all():
        raise ValueError(f"the audio{_name(value)} holds values that are not finite")
    waveform = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)
    if rate != sampling_rate and len(waveform):
        from scipy.signal import resample_poly  # takes a second to import

        up, down = _ratio(rate, sampling_rate)
        waveform = resample_poly(waveform, up, down, window=_low_pass(up, down))
    waveform = waveform[skip : None if count is None else skip + count]
    if len(waveform) == 0:
        raise ValueError(f"the audio{_name(value)} " + ("is empty" if first == 0 else f"ends before {start:.2f} s"))
    return torch.from_numpy(np.ascontiguousarray(waveform, np.float32))


def audio_length(value, sampling_rate=SAMPLING_RATE):
    """The samples that the header promises at `sampling_rate`. Raises ValueError if it cannot be read or does not say."""
    if isinstance(value, dict) and value.get("array") is not None:
        return len(value["array"]) * sampling_rate // _array_rate(value)
    with open_audio(value) as file:
        if file.frames > MOST_FRAMES:
            raise ValueError(f"the audio{_name(value)} does not say how long it is")
        return file.frames * sampling_rate // file.samplerate


def open_audio(value):
    """An open `soundfile.SoundFile`: its header has been read, its samples not. Raises ValueError."""
    source = value
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if not source:
        raise ValueError(f"the audio{_name(value)} is empty")
    import soundfile  # an extra: who has no recordings need not have it

    try:
        if isinstance(source, bytes | pa.Buffer):
            source = pa.BufferReader(source)  # without a copy
        elif "://" in str(source):  # on the Hub or inside an archive
            source = xopen(str(source), "rb")
        file = soundfile.SoundFile(source)
    except (RuntimeError, TypeError, OSError) as error:
        raise _unreadable(error, value) from error
    _check_rate(file.samplerate, value)
    return file


def _read(file, begin, end, value):
    """Frames begin .. end, or as far as they go, (T, C) float32."""
    try:
        if file.seekable():
            early = min(begin, MP3_START if file.format == "MP3" else 0)
            file.seek(min(begin - early, file.frames))
            return file.read(-1 if end is None else end - begin + early, "float32", always_2d=True)[early:]
        # some codecs, such as GSM's, are read from the start alone
        return file.read(min(file.frames, file.frames if end is None else end), "float32", always_2d=True)[begin:]
    except (RuntimeError, OSError) as error:  # for instance, a FLAC file that was cut off
        raise _unreadable(error, value) from error


def _check_rate(rate, value):
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"the audio{_name(value)} claims a rate of {rate} Hz: expected {RATES[0]} to {RATES[1]}")


def _array_rate(value):
    """The sampling rate of {"array", "sampling_rate"}, an int."""
    rate = value.get("sampling_rate")
    if rate is not None:
        _check_rate(rate, value)
    if rate is None or rate % 1:
        raise ValueError(f"the audio{_name(value)} has the sampling_rate {rate}: expected a whole number of Hz")
    return int(rate)


def _unreadable(error, value):
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    if isinstance(path, str | Path) and "://" not in str(path) and not os.path.exists(path):
        return ValueError(f"the audio{_name(value)} cannot be read: there is no such file")
    return ValueError(f"the audio{_name(value)} cannot be read: {getattr(error, 'error_string', error)}")


def _name(value):
    """The file of a value in messages, where it has one."""
    path = value.get("path") if isinstance(value, dict) else value
    return f" '{path}'" if isinstance(path, str | Path) and path else ""


def _ratio(rate, sampling_rate):
    common = math.gcd(rate, sampling_rate)
    return sampling_rate // common, rate // common


def _frames(rate, sampling_rate, first, count):
    """What to read for `count` samples from `first` on: (begin, end, how many resampled ones to skip).

    `begin` is where a sample coincides with a frame, which comes every `down` frames, so that parts equal the whole.
    """
    up, down = _ratio(rate, sampling_rate)
    margin = 0 if up == down else -(-LOBES // min(up, down))  # the filter's reach, in units of `down` frames
    block = max(first // up - margin, 0)
    end = None if count is None else -(-(first + count) * down // up) + margin * down
    return block * down, end, first - block * up


@lru_cache(maxsize=16)
def _low_pass(up, down):
    """The filter that `resample_poly` would compute at each call."""
    from scipy.signal import firwin

    widest = max(up, down)
    return firwin(2 * LOBES * widest + 1, 1 / widest, window=("kaiser", 5.0)).astype(np.float32)


__all__ = [
    "AUDIO_COLUMNS",
    "SAMPLING_RATE",
    "SPEAKER_COLUMNS",
    "audio_length",
    "audio_rows",
    "decode_audio",
    "open_audio",
]
