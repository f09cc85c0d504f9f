"""Audio files as windows of one length, each read from its file alone.

A file of n windows and a rest gives n rows. Window k lies at random within the k-th of n equal parts of the file and a quarter
of a window on both sides, so that an epoch goes through the whole file and the next one cuts it elsewhere.
"""

import hashlib
import logging
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import xopen
from tqdm.auto import tqdm

from ..methods._random import seed_from
from .audio import SAMPLING_RATE, SPEAKER_COLUMNS, audio_length, decode_audio
from .loader import Unfit
from .loading import DataError, column_names, find_column

logger = logging.getLogger(__name__)
WINDOW = 20_480  # samples: 1.28 s, as in the paper (van den Oord et al. 2018)
SHIFT = 0.25  # of a window, to both sides
SILENCE = 1e-4  # standard deviation, -80 dB: about three steps of 16 bits
EPSILON = 1e-7  # of the variance, as in transformers' Wav2Vec2FeatureExtractor
UNREADABLE = -1  # length of a file; it keeps a row, so that what is wrong with it is counted


def speaker_column(data, speaker_column=None, needed_by=None):
    """The column of speakers, or None if there is none and nothing needs it.

    needed_by: what asks for it. Raises DataError.
    """
    if speaker_column is None and not set(SPEAKER_COLUMNS) & set(column_names(data)):
        if needed_by is None:
            return None
        raise DataError(
            f"{needed_by} needs to know who speaks, but no speaker column was found among {column_names(data)}: name it with "
            "--speaker_column."
        )
    column = find_column(data, speaker_column, "speaker", SPEAKER_COLUMNS)
    kind = getattr((data.features or {}).get(column), "dtype", "int64")
    if not kind.startswith(("int", "uint", "string", "large_string")):
        if speaker_column is None and needed_by is None:
            return None
        raise DataError(f"speaker_column '{column}' holds {kind} values: expected names or whole numbers.")
    return column


def speaker_id(value):
    """A whole number for a speaker's name or number, the same in every run; -1 for nobody."""
    if value is None or isinstance(value, int):
        return -1 if value is None else value
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big") >> 1


def audio_windows(data, column, window_samples=WINDOW, speakers=None):
    """A data set or stream of files as rows, one for each window: {"audio", "length", "number"}, and "speaker" if
    `speakers` names its column. length: samples of the file at 16 kHz. number: of the window in it.

    Files that are too short are left out. A data set's headers are read once, and their lengths cached; a stream's files when
    they come. Raises DataError if all files are too short.
    """
    data = data.select_columns([column] + [speakers] * bool(speakers))
    if not isinstance(data, Dataset):
        expand = partial(_expand, column=column, speakers=speakers, window=window_samples)
        rows = data.map(expand, batched=True, batch_size=1, remove_columns=column_names(data))
        rows.info.splits = None  # their number is the files', not the windows'
        return rows
    lengths = _lengths(data, column)
    short = int(((lengths < window_samples) & (lengths != UNREADABLE)).sum())
    seconds = window_samples / SAMPLING_RATE
    if short == len(data):
        raise DataError(
            f"All {len(data)} audio files are shorter than window_samples {window_samples} ({seconds:.2f} s at 16 kHz): the "
            f"longest has {lengths.max()}."
        )
    if short:
        logger.warning(
            "%d of %d audio files are shorter than window_samples %d (%.2f s at 16 kHz) and are left out.",
            short, len(data), window_samples, seconds,
        )  # fmt: skip
    return AudioWindows(data, column, lengths, window_samples, speakers)


class AudioWindows:
    """The windows of a data set's files as rows, by number. A file's bytes are looked up for each, not copied."""

    def __init__(self, files, column, lengths, window, speakers=None):
        self.files, self.column, self.info = files.with_format("arrow"), column, files.info
        self.lengths, self.counts = lengths, np.where(lengths == UNREADABLE, 1, lengths // window)  # of each file
        self.ends = np.cumsum(self.counts)
        self.speakers = None if speakers is None else np.array([speaker_id(value) for value in files[speakers][:]])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, key):
        """Row `key`, the columns of a list of rows, or the whole column "speaker"."""
        if key == "speaker":
            return np.repeat(self.speakers, self.counts)
        if isinstance(key, list):
            rows = [self[number] for number in key]
            return {name: [row[name] for row in rows] for name in rows[0]}
        file = int(np.searchsorted(self.ends, key, side="right"))
        number = key - int(self.ends[file] - self.counts[file])
        audio = _uncopied(self.files[file][self.column][0])
        row = {"audio": audio, "length": int(self.lengths[file]), "number": number}
        return row if self.speakers is None else row | {"speaker": int(self.speakers[file])}


def _start(length, window, number, seed):
    """Where window `number` of a file of `length` samples begins in the epoch of this seed."""
    part, draw = length / (length // window), seed_from(seed) % 2**24 / 2**24
    start = number * part + draw * (part - window) + (2 * draw - 1) * SHIFT * window
    return min(max(round(start), 0), length - window)


def _uncopied(scalar):
    """What `decode_audio` takes, of one value of an Arrow column."""
    if not scalar.is_valid:
        return None
    if pa.types.is_struct(scalar.type) and "bytes" in scalar:
        path = scalar["path"].as_py() if "path" in scalar else None
        return {"bytes": scalar["bytes"].as_buffer(), "path": path}
    if pa.types.is_binary(scalar.type) or pa.types.is_large_binary(scalar.type):
        return scalar.as_buffer()
    return scalar.as_py()


def _lengths(files, column):
    """The samples of each file at 16 kHz, (files,) int64."""
    with tqdm(total=len(files), desc="reading audio headers", delay=5, dynamic_ncols=True) as progress:

        def read(table):
            progress.update(len(table))
            return {"length": [_length(_uncopied(scalar)) for scalar in table[column]]}

        found = files.with_format("arrow").map(
            read, batched=True, batch_size=100, remove_columns=files.column_names,
            new_fingerprint=Hasher.hash((files._fingerprint, column, SAMPLING_RATE, "audio lengths")),
        )  # fmt: skip
    return np.asarray(found.with_format("numpy")["length"][:])


def _length(value):
    try:
        return audio_length(value)
    except (ValueError, OSError):
        return UNREADABLE


def _expand(rows, column, speakers, window):
    """One row of a stream as its windows, which share its bytes."""
    [value] = rows[column]
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    if isinstance(path, str) and "://" in path:  # read once, not for each window
        with suppress(OSError), xopen(path, "rb") as file:
            value = {"bytes": file.read(), "path": path}
    length = _length(value)
    count = max(length // window, 1)
    windows = {"audio": [value] * count, "length": [length] * count, "number": list(range(count))}
    return windows if speakers is None else windows | {"speaker": [speaker_id(rows[speakers][0])] * count}


class WaveformBatches:
    """Rows of `audio_windows` to `forward`'s arguments. windows_per_speaker: how many stand together in a batch; 0: not."""

    def __init__(self, window_samples=WINDOW, windows_per_speaker=0):
        self.window_samples = window_samples
        self.group_by = ("speaker", windows_per_speaker) if windows_per_speaker else None

    def decode(self, row):
        """(waveform (window_samples,), speaker or None). Raises ValueError for what cannot be read in full, and silence."""
        length, window = row["length"], self.window_samples
        if UNREADABLE < length < window:
            raise Unfit(f"a file of {length} samples at 16 kHz is shorter than window_samples {window}")
        start = 0 if length == UNREADABLE else _start(length, window, row["number"], row["sample_seed"])
        waveform = decode_audio(row["audio"], SAMPLING_RATE, start / SAMPLING_RATE, window / SAMPLING_RATE)
        if len(waveform) < window:
            raise ValueError("the audio ends before its header says")
        if waveform.std() < SILENCE:
            raise Unfit("the audio is silent")
        return waveform, row.get("speaker")

    def collate(self, items, sample_seeds):
        """input_values: (N, window_samples), as loud as the files. speaker_ids: (N,), if there are speakers."""
        waveforms, speakers = zip(*items, strict=True)
        batch = {"input_values": torch.stack(waveforms), "sample_seeds": sample_seeds}
        return batch if speakers[0] is None else batch | {"speaker_ids": torch.tensor(speakers)}

    def view(self, input_values, **others):
        """Each window to zero mean and unit variance, as Wav2Vec2FeatureExtractor does."""
        variance, mean = torch.var_mean(input_values, dim=1, correction=0, keepdim=True)
        return {"input_values": (input_values - mean) * (variance + EPSILON).rsqrt(), **others}


__all__ = ["WINDOW", "AudioWindows", "WaveformBatches", "audio_windows", "speaker_column", "speaker_id"]
