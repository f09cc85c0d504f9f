"""From a name to rows: Hub ids, local folders and files, the embedded samples; streamed or not."""

import glob
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset

from ..errors import InputError

SAMPLES = Path(__file__).parent / "samples"
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "category", "coarse_label")
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow", ".txt": "text"}
_BUILDERS |= dict.fromkeys((".flac", ".wav", ".mp3", ".ogg", ".opus"), "audiofolder")


class DataError(InputError):
    """The data cannot be used as asked. One sentence: what was looked for, what was found, what to do."""


def load_split(dataset_name=None, split="train", *, sample="images", config_name=None, streaming=False):
    """One split of a data set.

    dataset_name: a Hub id; a local folder of parquet files, .tar shards (webdataset), images (imagefolder) or audio
    (audiofolder); a glob of files; None for the embedded sample named by `sample`. Raises DataError if there is no such
    data set or split.
    """
    builder, arguments = _find(dataset_name, sample)
    try:
        data = datasets.load_dataset(builder, config_name, split=split, streaming=streaming, **arguments)
    except (FileNotFoundError, ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).strip().split("\n")[:2]).rstrip(".")
        where = f"The sample '{sample}'" if dataset_name is None else f"dataset_name '{dataset_name}'"
        where += f" (config '{config_name}')" if config_name else ""
        if "corresponds to no data" in reason:
            reason = "the data set is empty: found 0 rows, expected at least 1"
        raise DataError(f"{where} has no readable split '{split}': {reason}.") from error
    if isinstance(data, Dataset) and len(data) == 0:
        raise DataError(
            f"dataset_name '{dataset_name}' is empty: found 0 rows in split '{split}', expected at least 1."
        )
    if streaming and data.features:
        # files on the Hub would be decoded ahead by threads, even where a column is cast to stay undecoded
        data = data.decode(num_threads=0)
    return data


def _encode_audio(self, value, encode=datasets.Audio.encode_example):
    """Paths and bytes as they are; the original asks for torchcodec even where there is nothing to encode."""
    if isinstance(value, str | Path):
        return {"bytes": None, "path": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and "array" not in value:
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return encode(self, value)


datasets.Audio.encode_example = _encode_audio  # which audiofolder and webdataset call for each row, streamed or not


def _find(dataset_name, sample):
    """The builder and its arguments for `datasets.load_dataset`."""
    if dataset_name is None:
        return str(SAMPLES / sample), {}
    path = Path(dataset_name)
    if path.is_dir():
        if not any(path.rglob("*.*")):
            raise DataError(
                f"dataset_name '{dataset_name}' is a folder without files: expected images, audio, parquet or .tar."
            )
        return str(path), {}
    if files := sorted(glob.glob(str(dataset_name))):
        suffix = Path(files[0]).suffix.lower()
        if suffix not in _BUILDERS:
            raise DataError(
                f"dataset_name '{dataset_name}' names '{suffix}' files: expected one of {sorted(_BUILDERS)}."
            )
        return _BUILDERS[suffix], {"data_files": {"train": files}}
    if path.is_absolute() or dataset_name.startswith(".") or dataset_name.count("/") > 1 or "*" in dataset_name:
        raise DataError(
            f"dataset_name '{dataset_name}' was not found: expected a Hub id, a folder or a glob of files."
        )
    return dataset_name, {}


def column_names(data):
    """The columns of a data set or stream; a stream that does not declare them is asked for its first row."""
    if data.column_names is not None:
        return list(data.column_names)
    return list(next(iter(data.take(1)), {}))


def find_column(data, name, kind, candidates, feature_types=()):
    """The column called `name`, or, if that is None, the one whose type or usual name says that it holds the `kind`.

    Raises DataError with the columns that there are.
    """
    names = column_names(data)
    if name is not None:
        if name not in names:
            raise DataError(f"{kind}_column '{name}' is not in the data set: found the columns {names}.")
        return name
    typed = [column for column, feature in (data.features or {}).items() if isinstance(feature, feature_types)]
    named = [column for column in candidates if column in names]
    if not typed + named:
        raise DataError(f"No {kind} column was found among {names}: name it with --{kind}_column.")
    return (typed + named)[0]


def raw_column(data, column, decoder):
    """`data` with `column` left undecoded (bytes or a path), so that workers decode it, and broken rows can be skipped."""
    if data.features is not None and isinstance(data.features[column], decoder):
        return data.cast_column(column, decoder(decode=False))
    return data


__all__ = [
    "LABEL_COLUMNS",
    "SAMPLES",
    "DataError",
    "Dataset",
    "IterableDataset",
    "column_names",
    "find_column",
    "load_split",
    "raw_column",
]
