"""A folder or a glob of local files as what a builder of `datasets` reads: its name, and the files of each split.

`datasets` itself looks for words such as "test" in the names of folders and files, and leaves out what has none where others
have one; it does not follow links to folders, and takes brackets in a path for a pattern. Here folders are splits only where
those beside them are too, else classes, and what is left out is said.
"""

import json
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from datasets.data_files import DataFilesList
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

MEDIA = {"imagefolder": "images", "audiofolder": "recordings"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside media: their captions, labels ...
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".tgz": "webdataset", ".txt": "text"}
_BUILDERS |= {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
ENDINGS = (*_BUILDERS, ".jpg", ".png", ".wav", ".flac", ".mp3")  # the best known ones
_BUILDERS |= dict.fromkeys(ImageFolder.EXTENSIONS, "imagefolder") | dict.fromkeys(
    AudioFolder.EXTENSIONS, "audiofolder"
)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_PACKED = ("parquet", "arrow", "webdataset")
# by the kind of sample that is wanted: of the first group that is there at all, the builder with the most bytes
_OF_IMAGES = (("imagefolder", *_PACKED), ("json", "csv"), ("text",))
_WANTED = {"images": _OF_IMAGES, "emoji": _OF_IMAGES, "speech": (("audiofolder", *_PACKED), ("json", "csv"))}
_WANTED["text"] = ((*_PACKED, "text", "json", "csv"),)
# "NA", "None" and "null" are words; a mark before the first letter is none
_OPTIONS = {"csv": {"keep_default_na": False, "na_values": [""]}, "text": {"encoding": "utf-8-sig"}}
_NOT_DATA = ("README.md", "config.json", "dataset_info.json", "dataset_infos.json")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _KEYWORDS.items() for word in words}
_WORDS = "|".join(sorted(_SPLITS, key=len, reverse=True))
_IS_SPLIT = re.compile(rf"({_WORDS})([-._ ]?\d+)?", re.IGNORECASE)
_HAS_SPLIT = re.compile(rf"(?:.*[-._ 0-9])?({_WORDS})(?:[-._ 0-9].*)?", re.IGNORECASE)
_IS_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*")
_SHOWN = 3  # names in a message


@dataclass
class LocalFiles:
    """builder: of `datasets`. splits: {name: paths}. options: of the builder. notes: what a user should know."""

    builder: str
    splits: dict[str, list[str]]
    options: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def arguments(self):
        """For `datasets.load_dataset`."""
        # a list of this kind is not taken for patterns; what is cached of a file ends when the file changes
        files = {
            split: DataFilesList(paths, [(str(os.stat(path).st_mtime_ns),) for path in paths])
            for split, paths in self.splits.items()
        }
        return {"data_files": files} | self.options

    def listed(self, split):
        """The images or recordings in a split that lie beside metadata, which may leave some out; else none."""
        paths = self.splits.get(split, ()) if self.builder in MEDIA else ()
        if not any(os.path.basename(path) in METADATA for path in paths):
            return []
        return [path for path in paths if builder_of(path) == self.builder]


def builder_of(path):
    """The builder for a file of this name, None if there is none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def files_of_folder(folder, sample):
    """The LocalFiles of a folder, None if it holds none that can be read. sample: the kind of data that is wanted."""
    folder = Path(folder).absolute()
    if (folder / "dataset_dict.json").is_file():  # DatasetDict.save_to_disk
        return _saved(
            {split: folder / split for split in json.loads((folder / "dataset_dict.json").read_text())["splits"]}
        )
    if (folder / "state.json").is_file():  # Dataset.save_to_disk
        return _saved({"train": folder})
    dead = []
    files = sorted(_walk(folder, dead))
    found = files_of_list(files, sample)
    if found is None:
        return None
    if dead:
        found.notes.append(f"{len(dead)} links point to files that are not there: {_named(sorted(dead), folder)}.")
    [(_, taken)] = found.splits.items()
    parts = {path: Path(path).relative_to(folder).parts for path in taken}
    if found.builder in MEDIA:
        found.splits, found.options = _splits_of_media(found, parts)
    else:
        found.splits = _splits_of_shards(parts)
    if left := sorted(set(taken).difference(*found.splits.values())):
        found.notes.append(
            f"{len(left)} of {len(taken)} files are left out, since other names beside them are those of splits: "
            f"{_named(left, folder)}. Move them into the folder of a split, or name the folder that is meant."
        )
    kinds = Counter(
        Path(path).suffix.lower() for path in files if builder_of(path) != found.builder and path not in parts
    )
    if kinds:
        counts = ", ".join(f"{count} '{suffix}'" for suffix, count in kinds.most_common(_SHOWN))
        found.notes.append(f"Other files there are not read: {counts}{' ...' * (len(kinds) > _SHOWN)}.")
    return found


def files_of_list(files, sample):
    """Files as one split, "train"; None if there is none that can be read."""
    builders = {path: builder_of(path) for path in files}
    data = {path: builder for path, builder in builders.items() if os.path.basename(path) not in METADATA} or builders
    size = {}
    for path, builder in data.items():
        if builder:
            size[builder] = size.get(builder, 0) + os.path.getsize(path)
    groups = (set(group) & set(size) for group in (*_WANTED[sample], size))
    builder = next((max(sorted(group), key=size.get) for group in groups if group), None)
    if builder is None:
        return None
    with_metadata = builder in MEDIA
    taken = [path for path in files if data.get(path, with_metadata and builder) == builder]
    if with_metadata:
        return LocalFiles(builder, {"train": taken})
    notes, options = [], dict(_OPTIONS.get(builder, {}))
    tabs = [path for path in taken if ".tsv" in map(str.lower, Path(path).suffixes[-2:])]
    if tabs and len(tabs) < len(taken):
        notes.append(
            f"{len(tabs)} .tsv files are not read, since there are .csv files: {_named(tabs)}. Name them by a glob."
        )
        taken = [path for path in taken if path not in tabs]
    elif tabs:
        options["sep"] = "\t"
    sound = [path for path in taken if not _is_empty(path)]
    if 0 < len(sound) < len(taken):
        notes.append(f"{len(taken) - len(sound)} of {len(taken)} files are empty: {_named(set(taken) - set(sound))}.")
    if cut := [path for path in sound if _is_cut_off(path)]:
        notes.append(
            f"{len(cut)} of {len(taken)} .tar files are cut off, so that rows at their ends are missing: {_named(cut)}. Fetch or "
            "write them again."
        )
    return LocalFiles(builder, {"train": sound or taken}, options, notes)


def _walk(folder, dead, above=()):
    """The paths of all files that are data, through links too. dead: takes up the links to files that are not there."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    for entry in os.scandir(folder):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, dead, (*above, real))
        elif entry.is_file() and entry.name not in _NOT_DATA:
            yield entry.path
        elif entry.is_symlink() and builder_of(entry.name):
            dead.append(entry.path)


def _saved(folders):
    """What `save_to_disk` has left."""
    splits = {}
    for split, folder in folders.items():
        state = json.loads((folder / "state.json").read_text())
        splits[split] = [str(folder / file["filename"]) for file in state["_data_files"]]
    return LocalFiles("arrow", splits)


def _split_named(name, pattern):
    match = pattern.fullmatch(name)
    return _SPLITS[match[1].lower()] if match else None


def _splits_of_shards(parts):
    """{split: paths} of files of many rows, by names as `datasets` knows them: of folders, else of the files."""
    by_folder, by_file = {}, {}
    for path, (*folders, name) in parts.items():
        in_folders = [split for folder in folders if (split := _split_named(folder, _HAS_SPLIT))]
        shard = _IS_SHARD.fullmatch(name)
        in_file = shard[1] if shard else _split_named(name.split(".")[0], _HAS_SPLIT)
        if in_folders:
            by_folder.setdefault(in_folders[0], []).append(path)
        if in_file:
            by_file.setdefault(_SPLITS.get(in_file, in_file), []).append(path)
    return by_folder or by_file or {"train": list(parts)}


def _splits_of_media(found, parts):
    """({split: paths}, options of the builder) of images or recordings. What users should know is added to the notes."""
    folders = {path: place[:-1] for path, place in parts.items()}
    level, splits = _split_level(folders, found.notes)
    options = {}
    if splits:
        named = {path: splits.get(place[level]) for path, place in folders.items() if len(place) > level}
        if any(len(place) == level + 1 for path, place in folders.items() if named.get(path)):
            options["drop_labels"] = True  # the folder of an image is a split's, not a class's
            if len({place[:level] for place in folders.values()}) > 1:
                found.notes.append(
                    "No classes are read, since the folders of splits lie in those of classes: turn them round."
                )
    else:
        named = {path: _split_named(place[-1].split(".")[0], _HAS_SPLIT) for path, place in parts.items()}
        if None in named.values() or not {"train"} < set(named.values()):
            named = dict.fromkeys(parts, "train")
    if "drop_labels" not in options and not any(os.path.basename(path) in METADATA for path in parts):
        classes = {place for path, place in folders.items() if named.get(path)}
        if len(classes) > 1 and len({len(place) for place in classes}) > 1:
            found.notes.append(
                f"No classes are read, since the {MEDIA[found.builder]} lie at different depths: put all of them into one folder "
                "for each class."
            )
    by_split = {}
    for path, split in named.items():
        if split:
            by_split.setdefault(split, []).append(path)
    return by_split, options


def _split_level(folders, notes):
    """(the depth at which folders are splits, {name: split}); (0, {}) if all are classes. folders: {path: its folders}."""
    for level in range(max(map(len, folders.values()), default=0)):
        inside = {place[: level + 2]: place[level] for place in folders.values() if len(place) > level}
        names = set(inside.values())
        strict = {name: split for name in names if (split := _split_named(name, _IS_SPLIT))}
        loose = {name: split for name in names if (split := _split_named(name, _HAS_SPLIT))}
        if len(strict) == len(names) and (len(names) == 1 or len(set(strict.values())) > 1):
            return level, strict
        if len(loose) == len(names) and {"train"} < set(loose.values()):
            return level, loose
        if not strict:
            continue
        # splits beside other folders: where they hold the folders of classes and others do not, they are splits all the same
        nested = {name: all(len(place) == level + 2 for place, own in inside.items() if own == name) for name in names}
        some = sorted(strict)[0]
        others = sorted(names - set(strict))
        if others and all(nested[name] for name in strict) and ("train" in strict.values()):
            return level, strict
        if others:
            notes.append(
                f"The folder '{some}' is read as a class beside {_some(others)}, not as a split: to train on it alone, name it "
                "as dataset_name."
            )
            return 0, {}
    return 0, {}


def _some(names):
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + " ..." * (len(names) > _SHOWN)


def _named(paths, folder=None):
    """The first of them, within `folder`, or by their names alone."""
    return _some(sorted(str(Path(path).relative_to(folder)) if folder else Path(path).name for path in paths))


def _is_empty(path):
    """Whether a file has no bytes, or is a tar without members."""
    with open(path, "rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    return not block or (path.lower().endswith(".tar") and not any(block))


def _is_cut_off(path):
    """Whether a tar ends without the mark of its end, as after a broken download: nothing else would tell."""
    if not path.lower().endswith(".tar"):
        return False
    with open(path, "rb") as file:
        if not _is_tar(file.read(tarfile.BLOCKSIZE)):
            return False  # no tar at all, which is found when it is read
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return any(file.read())


def _is_tar(block):
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def what_it_is(path):
    """What a file is instead of data, where its beginning shows it; else None."""
    try:
        if _is_empty(path):
            return "it is empty"
        with open(path, "rb") as file:
            start = file.read(512).lstrip().lower()
    except OSError:  # not on this disk
        return None
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: fetch the file itself by 'git lfs pull'"
    return "it is a web page" if start.startswith((b"<!doctype html", b"<html")) else None


__all__ = ["ENDINGS", "MEDIA", "LocalFiles", "files_of_folder", "files_of_list", "what_it_is"]
