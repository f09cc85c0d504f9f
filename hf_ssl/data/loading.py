"""From a name to rows: Hub ids, local folders and files, the embedded samples; streamed or not."""

import glob
import logging
from functools import cache
from pathlib import Path

import datasets
import fsspec
from datasets import Dataset, IterableDataset

from ..errors import InputError

logger = logging.getLogger(__name__)
SAMPLES = Path(__file__).parent / "samples"
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "category", "coarse_label")
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow", ".txt": "text"}
LARGEST_DOCUMENT = 2**24  # bytes; a larger .txt file is no document but a list of them
FILES_A_SHARD = 2000  # documents of a stream that lie together: pairs are drawn from them
_BUILDERS |= dict.fromkeys((".flac", ".wav", ".mp3", ".ogg", ".opus"), "audiofolder")


class DataError(InputError):
    """The data cannot be used as asked. One sentence: what was looked for, what was found, what to do."""


def load_split(dataset_name=None, split="train", *, sample="images", config_name=None, streaming=False):
    """One split of a data set.

    dataset_name: a Hub id; a local folder of parquet files, .tar shards (webdataset), images (imagefolder) or audio
    (audiofolder); a glob of files; None for the embedded sample named by `sample`. Each of several .txt files is a document; of
    a single one each paragraph between blank lines, or without them each line. Raises DataError if there is no such
    data set or split.
    """
    builder, arguments = _find(dataset_name, sample)
    if builder == "text":
        arguments["sample_by"] = _document_unit(dataset_name, arguments["data_files"])
        if streaming and arguments["sample_by"] == "document" and split in arguments["data_files"]:
            return _stream_of_files(arguments["data_files"][split])
    try:
        data = datasets.load_dataset(builder, config_name, split=split, streaming=streaming, **arguments)
    except (FileNotFoundError, ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).strip().split("\n")[:2]).rstrip(".")
        where = f"The sample '{sample}'" if dataset_name is None else f"dataset_name '{dataset_name}'"
        where += f" (config '{config_name}')" if config_name else ""
        if "corresponds to no data" in reason:
            reason = "the data set is empty: found 0 rows, expected at least 1"
        if "don't share the same prefix or the same types" in reason:
            reason = (
                "the samples of its .tar files have not all the same extensions, such as jpg in some and png in others: rename "
                "them to one (images may stay as they are)"
            )
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
        suffixes = {file.suffix.lower() for file in path.rglob("*") if file.is_file() and file.name != "README.md"}
        if suffixes == {".txt"}:
            files = datasets.load_dataset_builder(str(path)).config.data_files
            return "text", {"data_files": {split: list(paths) for split, paths in files.items()}}
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


def _document_unit(dataset_name, files):
    """What of .txt files, {split: paths}, is a document: the value of the builder's `sample_by`. The log says which."""
    paths = [path for split in files.values() for path in split]
    if len(paths) > 1 and max(Path(path).stat().st_size for path in paths) <= LARGEST_DOCUMENT:
        say_once(f"{dataset_name}: {len(paths)} text files, each of them a document")
        return "document"
    with fsspec.open(paths[0], "rb", compression="infer") as file:
        start = file.read(2**20).replace(b"\r\n", b"\n")
    if 100 * start.count(b"\n\n") >= max(1, start.count(b"\n")):  # else they are empty documents among lines
        say_once(f"{dataset_name}: each paragraph, between blank lines, is a document")
        return "paragraph"
    say_once(f"{dataset_name}: each line is a document")
    return "line"


def _stream_of_files(paths):
    """Each file a row: not each a shard, as in `datasets`, of which no two documents would ever be read together."""
    shards = [paths[start : start + FILES_A_SHARD] for start in range(0, len(paths), FILES_A_SHARD)]
    features = datasets.Features({"text": datasets.Value("string")})
    return IterableDataset.from_generator(_texts_of_files, features, {"shards": shards})


def _texts_of_files(shards):
    for path in (path for shard in shards for path in shard):
        try:
            with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as file:
                yield {"text": file.read()}
        except UnicodeDecodeError as error:
            say_once(f"The file {path} is left out: it is not UTF-8 ({error.reason}).", logging.WARNING)


@cache
def say_once(message, level=logging.INFO):
    """Tell the user, once, what several parts of a run come across."""
    logger.log(level, "%s", message)


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
    "say_once",
]
