"""From a name to rows: Hub ids, local folders and files, the embedded samples; streamed or not."""

import glob
import logging
import os
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import Dataset, IterableDataset
from datasets.packaged_modules.csv import csv
from datasets.packaged_modules.json import json
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import DatasetCard

from ..errors import InputError
from .files import ENDINGS, MEDIA, LocalFiles, files_of_folder, files_of_list, what_it_is

logger = logging.getLogger(__name__)
SAMPLES = Path(__file__).parent / "samples"
EMBEDDED = "hf_ssl/samples/"  # before the name of a sample: a dataset_name, for what reads another by default
LARGEST_DOCUMENT = 2**24  # bytes; a larger .txt file is no document but a list of them
FILES_A_SHARD = 2000  # documents of a stream that lie together: pairs are drawn from them
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "category", "coarse_label")
_MEDIA = (datasets.Image, datasets.Audio)
_MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "<NA>", "#N/A", "#NA")
_BYTES = ("binary", "large_binary")  # of images or recordings, where a column does not say what they are


class DataError(InputError):
    """The data cannot be used as asked. One sentence: what was looked for, what was found, what to do."""


def load_split(dataset_name=None, split="train", *, sample="images", config_name=None, streaming=False):
    """One split of a data set.

    dataset_name: a Hub id; a local folder of images, recordings, texts, parquet files or .tar shards (webdataset), or one
    that `save_to_disk` has left; a file or a glob of files; an embedded sample by its name, such as hf_ssl/samples/emoji; None
    for the one named by `sample`, which also says what is looked for in a folder of several kinds. Each of several .txt files is
    a document; of a single one each paragraph between blank lines, or without them each line. Raises DataError if there is no
    such data set or split.
    """
    if streaming and ("[" in split or "+" in split):
        raise DataError(
            f"split '{split}' is a slice or a sum, which streams do not have: name one whole split, or leave out --streaming."
        )
    found = _find(dataset_name, sample, config_name)
    local = isinstance(found, LocalFiles)
    load = partial(_load, config_name=config_name, split=split, streaming=streaming)
    where = f"The sample '{sample}'" if dataset_name is None else f"dataset_name '{dataset_name}'"
    where += f" (config '{config_name}')" if config_name else ""
    if local and "+" not in split and split.split("[")[0] not in found.splits:
        raise DataError(f"{where} has no readable split '{split}': found {', '.join(sorted(found.splits))}.")
    if local and found.builder == "text":
        found.options["sample_by"] = _document_unit(dataset_name, found.splits)
        if streaming and found.options["sample_by"] == "document":
            load = lambda found: _stream_of_files(found.splits[split])  # noqa: E731
    try:
        try:
            data = load(found)
        except Exception as error:
            if not local or found.builder in MEDIA:
                raise
            data = load(_without_broken_files(found, split, streaming, error))
    except DataError:
        raise
    except Exception as error:  # whatever the reader of a format raises
        raise DataError(f"{where} has no readable split '{split}': {reason(error)}.") from error
    if streaming:
        _name_broken_files(data)
    # of local texts the first row is soon read, and other streams tell their columns even if they have no rows
    if not (len(data) if isinstance(data, Dataset) else not local or data.features or column_names(data)):
        raise DataError(f"{where} is empty: found 0 rows in split '{split}', expected at least 1.")
    if local:
        left = _left_out(found, split, data)
        for note in found.notes + left:
            say_once(f"{dataset_name}: {note}", logging.WARNING)
    if streaming and data.features:
        # files on the Hub would be decoded ahead by threads, even where a column is cast to stay undecoded
        data = data.decode(num_threads=0)
    return data


def _load(found, config_name, split, streaming):
    if isinstance(found, LocalFiles):
        return datasets.load_dataset(found.builder, split=split, streaming=streaming, **found.arguments())
    return datasets.load_dataset(found, config_name, split=split, streaming=streaming)


def _without_broken_files(found, split, streaming, error):
    """Of a stream, the same files with one first that can be read, which tells the columns: what is broken in others is met,
    and counted, later. Raises DataError, with the name of the file, where there is none, and for rows that are not streamed;
    with the name of the column where each file can be read but not all have the same type in it."""
    kinds = {}  # {column: {file: whether it holds text or numbers}}
    for name, paths in found.splits.items():
        if streaming and name != split:
            continue
        for path in paths:
            alone = LocalFiles(found.builder, {name: [path]}, found.options)
            try:
                rows = iter(_load(alone, None, name, streaming=True))
                for row in islice(rows, 1 if streaming else None):
                    for column, value in row.items():
                        if isinstance(value, str | int | float):
                            kind = "text" if isinstance(value, str) else "numbers"
                            kinds.setdefault(column, {}).setdefault(path, set()).add(kind)
            except Exception as problem:
                if not streaming or path == paths[-1]:
                    because = what_it_is(path) or reason(problem)
                    raise DataError(f"The file '{path}' cannot be read: {because}.") from problem
            else:
                if streaming:
                    return replace(found, splits={split: [path, *(other for other in paths if other != path)]})
    for column, (first, *others) in ((column, list(files.items())) for column, files in kinds.items()):
        if other := next((file for file in others if file[1].isdisjoint(first[1])), None):
            held = " and ".join(f"{', '.join(sorted(types))} in '{file}'" for file, types in (first, other))
            raise DataError(
                f"The column '{column}' holds {held}: give it one type in the files of all splits."
            ) from error
    raise error


def _name_broken_files(data):
    """Let a stream that comes to a file which cannot be read raise a DataError that names it."""
    examples = data._ex_iterable
    while hasattr(examples, "ex_iterable"):
        examples = examples.ex_iterable
    for name in ("generate_examples_fn", "generate_tables_fn"):  # of the two kinds of stream that builders give
        if (read := getattr(examples, name, None)) is not None:
            setattr(examples, name, partial(_read_shard, read))


def _read_shard(read, **shard):
    try:
        yield from read(**shard)
    except Exception as error:
        files = (value[0] for value in shard.values() if isinstance(value, list) and len(value) == 1)
        file = next((file for file in files if isinstance(file, str)), None)
        because = (what_it_is(file) if file else None) or reason(error)
        where = f"The file '{file}'" if file else "A part of the stream"
        raise DataError(f"{where} cannot be read: {because}.") from error


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
            with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
                yield {"text": file.read()}
        except UnicodeDecodeError as error:
            say_once(f"The file {path} is left out: it is not UTF-8 ({error.reason}).", logging.WARNING)


def _left_out(found, split, data):
    """What to say of images or recordings that no row has, since metadata.csv does not list them."""
    lie = found.listed(split)
    if not lie or not isinstance(data, Dataset):
        return []
    left = set(map(os.path.normpath, lie))
    for column, feature in data.features.items():
        if isinstance(feature, _MEDIA):
            stored = data.select_columns([column]).with_format("arrow")[:][column]
            left.difference_update(
                os.path.normpath(path) for path in pc.struct_field(stored, "path").to_pylist() if path
            )
    if not left:
        return []
    return [
        f"{len(left)} of {len(lie)} {MEDIA[found.builder]} are not read, since the metadata beside them do not list them."
    ]


def reason(error):
    """The cause that an exception wraps, in one line."""
    while error.__cause__ is not None and not isinstance(error, DataError):
        error = error.__cause__
    text = " ".join(str(error).strip().split("\n")[:2]).rstrip(".") or type(error).__name__
    if isinstance(error, yaml.YAMLError):
        return f"the metadata of its README.md are no YAML ({text}): put values with a colon in quotes"
    if "Error tokenizing data" in text:
        return f"{text}: put commas between columns (tabs in .tsv files), and texts with commas in quotes"
    if "corresponds to no data" in text or "at least one example" in text:
        return "the data set is empty: found 0 rows, expected at least 1"
    if "don't share the same prefix or the same types" in text:
        return (
            "the first samples of its .tar files have not all the same extensions, such as jpg in some and png in others, or "
            "lack a file that others have: rename them to one (images may stay as they are), and leave out the rest"
        )
    return text


@cache
def say_once(message, level=logging.INFO):
    """Tell the user, once, what several parts of a run come across."""
    logger.log(level, "%s", message)


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


def _or_none(kind, decode):
    """A broken text, number or JSON in a tar as a missing value, so that one which nobody reads does no harm."""

    def decode_if_whole(data):
        try:
            return decode(data)
        except Exception as error:
            say_once(f"A .{kind} in a .tar is broken, and taken to be missing: {reason(error)}.", logging.WARNING)
            return None

    return decode_if_whole


WebDataset.DECODERS = {kind: _or_none(kind, decode) for kind, decode in WebDataset.DECODERS.items()}


def _typed_columns(self, table, cast=csv.Csv._cast_table):
    """Columns of numbers that "NA" and the like are missing from, as numbers: only in texts are these words. Raises DataError
    where `pandas` has taken the first field of rows for an index."""
    if "__index_level_0__" in table.column_names:
        raise DataError("its rows have more fields than its header: put texts with commas in quotes")
    for number, name in enumerate(table.column_names):
        missing = pc.is_in(table[name], pa.array(_MISSING, table[name].type)) if _is_text(table[name].type) else None
        if missing is None or not pc.any(missing).as_py():
            continue
        values = pc.if_else(missing, None, table[name])
        for kind in (pa.float64(), pa.bool_()):
            try:
                if values.null_count < len(values):
                    table = table.set_column(number, name, values.cast(kind))
                    break
            except pa.ArrowInvalid:
                pass
    return cast(self, table)


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


csv.Csv._cast_table = _typed_columns
for _name in (csv.__name__, json.__name__):  # they log the error that they raise
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _find(dataset_name, sample, config_name):
    """What to load: LocalFiles, or what `datasets.load_dataset` finds by itself."""
    if dataset_name is None or is_embedded(dataset_name):
        return str(SAMPLES / str(dataset_name or sample).removeprefix(EMBEDDED))
    if not str(dataset_name).strip():
        raise DataError("dataset_name is empty: expected a Hub id, a folder or a glob of files.")
    path = Path(os.path.expanduser(dataset_name))
    if path.is_dir():
        if config_name or _card_says_what_to_read(path):
            return str(path)
        if (found := files_of_folder(path, sample)) is not None:
            return found
        if any(path.rglob("*.zip")):
            raise DataError(f"dataset_name '{dataset_name}' holds .zip files, which are not read: unpack them there.")
        if any(path.rglob("*.*")):
            endings = sorted({file.suffix for file in path.rglob("*.*") if file.suffix})[:5]
            raise DataError(
                f"dataset_name '{dataset_name}' holds no files that are read: found {', '.join(endings)}, expected images, "
                "audio, parquet, .tar, .arrow, .csv, .jsonl or .txt."
            )
        raise DataError(
            f"dataset_name '{dataset_name}' is a folder without files: expected images, audio, parquet or .tar."
        )
    if (
        files := [str(path.absolute())]
        if path.is_file()
        else sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
    ):
        if (found := files_of_list([os.path.abspath(file) for file in files], sample)) is not None:
            return found
        suffix = Path(files[0]).suffix.lower()
        advice = "unpack them and name the folder" if suffix == ".zip" else f"expected one of {', '.join(ENDINGS)}"
        raise DataError(f"dataset_name '{dataset_name}' names '{suffix}' files, which are not read: {advice}.")
    if path.is_absolute() or dataset_name.startswith((".", "~")) or dataset_name.count("/") > 1 or "*" in dataset_name:
        raise DataError(
            f"dataset_name '{dataset_name}' was not found: expected a Hub id, a folder or a glob of files."
        )
    if path.parent.is_dir():  # else nobody takes it for a folder
        say_once(f"There is no folder or file '{dataset_name}' here: looking for a data set of that name on the Hub.")
    return dataset_name


def is_embedded(dataset_name):
    """Whether it names a sample that ships with the package, such as hf_ssl/samples/emoji."""
    name = str(dataset_name or "")
    return name.startswith(EMBEDDED) and name.removeprefix(EMBEDDED) in {path.name for path in SAMPLES.iterdir()}


def _card_says_what_to_read(folder):
    """Whether the README of a folder names the files of its splits, as those of the Hub do."""
    if not (folder / "README.md").is_file():
        return False
    try:
        return "configs" in DatasetCard.load(folder / "README.md").data.to_dict()
    except Exception:  # a card that is none says nothing of the files
        return False


def column_names(data):
    """The columns of a data set or stream; a stream that does not declare them is asked for its first row."""
    if data.column_names is not None:
        return list(data.column_names)
    return list(next(iter(data.take(1)), {}))


def find_column(data, name, kind, candidates, feature_types=(), values=True):
    """The column called `name`, or, if that is None, the one whose usual name or type says that it holds the `kind`.

    Usual names come first, in the order of `candidates`, then columns of `feature_types`. values: whether plain texts and
    numbers may be meant; else a column of these comes after those of `feature_types`. Where several could be meant, the log
    says which was taken. Raises DataError with the columns that there are.
    """
    names, features = column_names(data), data.features or {}
    if name is not None:
        if name not in names:
            raise DataError(f"{kind}_column '{name}' is not in the data set: found the columns {names}.")
        return name
    typed = [column for column in names if feature_types and isinstance(features.get(column), feature_types)]
    named = [column for column in candidates if column in names]
    weak = [column for column in named if not values and column not in typed and _is_plain(features.get(column))]
    found = list(dict.fromkeys([column for column in named if column not in weak] + typed + weak))
    if not found:
        if names and not values and all(_is_plain(features.get(column)) for column in names):
            kinds = ", ".join(f"'{column}' ({features[column].dtype})" for column in names)
            raise DataError(f"No {kind} column was found: the data set has only {kinds}.")
        raise DataError(f"No {kind} column was found among {names}: name it with --{kind}_column.")
    if len(found) > 1:
        say_once(f"The {kind} column is '{found[0]}', not {found[1:]}, unless --{kind}_column names another.")
    return found[0]


def _is_plain(feature):
    return isinstance(feature, datasets.Value | datasets.ClassLabel) and feature.dtype not in _BYTES


def raw_column(data, column, decoder):
    """`data` with `column` left undecoded (bytes or a path), so that workers decode it, and broken rows can be skipped."""
    if data.features is not None and isinstance(data.features[column], decoder):
        return data.cast_column(column, decoder(decode=False))
    return data


__all__ = [
    "EMBEDDED",
    "LABEL_COLUMNS",
    "SAMPLES",
    "DataError",
    "Dataset",
    "IterableDataset",
    "column_names",
    "find_column",
    "is_embedded",
    "load_split",
    "raw_column",
    "reason",
    "say_once",
]
