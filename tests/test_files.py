"""Local folders and files: what is read of them, what is left out and said, and which of them is broken."""

import gzip
import io
import logging
import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data import DataError, TrainLoader, image_rows, load_split
from hf_ssl.data.loading import find_column, say_once


def png(value=100):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def put(path, content=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pictures(first, last):
    return [(f"{number:04d}.png", PNG) for number in range(first, last)]


@pytest.fixture(autouse=True)
def messages(caplog):
    """What is said, from the start of a test on."""
    say_once.cache_clear()
    caplog.set_level(logging.INFO)
    return caplog


CAT_AND_DOG = ["cat", "dog"]
TREES = {  # files -> (rows of each split, names of the classes, what is said)
    "split folders": (["train/cat/0", "train/dog/1", "test/cat/2"], {"train": 2, "test": 1}, CAT_AND_DOG, None),
    "deeper": (["data/train/cat/0", "data/train/dog/1", "data/val/cat/2"], {"train": 2, "validation": 1}, CAT_AND_DOG, None),
    "splits without classes": (["train/0", "train/1", "test/2"], {"train": 2, "test": 1}, None, None),
    "named by more": (["train-set/cat/0", "train-set/dog/1", "test-set/cat/2"], {"train": 2, "test": 1}, CAT_AND_DOG, None),
    "a class 'train'": (["bus/0", "car/1", "train/2"], {"train": 3}, ["bus", "car", "train"], "'train' is read as a class"),
    "a class 'test strip'": (["dipstick/0", "test strip/1"], {"train": 2}, ["dipstick", "test strip"], None),
    "classes 'eval', 'test'": (["eval/0", "test/1"], {"train": 2}, ["eval", "test"], None),
    "a file 'train'": (["0", "1", "train"], {"train": 3}, None, None),
    "files of splits": (["train_0", "train_1", "test_0"], {"train": 2, "test": 1}, None, None),
    "splits and more": (["train/cat/0", "train/dog/1", "masks/2"], {"train": 2}, CAT_AND_DOG, "left out.*'masks/2.png'"),
    "splits in classes": (["cat/train/0", "dog/train/1", "cat/test/2"], {"train": 2, "test": 1}, None, "No classes.*turn them"),
    "depths": (["cat/0", "cat/young/1", "dog/2"], {"train": 3}, None, "No classes.*different depths"),
    "brackets": (["[a-b]/0", "c*?/1"], {"train": 2}, ["[a-b]", "c*?"], None),
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("tree", TREES)
def test_every_picture_of_a_folder_is_read_or_said_to_be_left_out(tree, streaming, tmp_path, messages):
    names, sizes, classes, said = TREES[tree]
    for name in names:
        put(tmp_path / "a[1]" / f"{name}.png")
    for split, size in sizes.items():
        data = load_split(str(tmp_path / "a[1]"), split, streaming=streaming)
        assert sum(1 for _ in data) == size
        assert (data.features["label"].names if "label" in data.features else None) == classes
    assert re.search(said, messages.text) if said else not messages.text
    with pytest.raises(DataError, match="has no readable split 'dev': found "):
        load_split(str(tmp_path / "a[1]"), "dev", streaming=streaming)


def test_links_are_followed_and_other_files_are_named(tmp_path, messages):
    for name in ("elsewhere/0.png", "elsewhere/1.png", "photos/dog/2.png", "photos/dog/2.txt", "photos/.hidden/3.png"):
        put(tmp_path / name)
    (tmp_path / "photos/cat").symlink_to("../elsewhere")
    (tmp_path / "photos/dog/again").symlink_to("..")  # leads back to where it lies
    data = load_split(str(tmp_path / "photos"))
    assert len(data) == 3 and data.features["label"].names == ["cat", "dog"]
    assert "1 '.txt'" in messages.text


def test_pictures_that_the_metadata_do_not_list_are_counted(tmp_path, messages):
    for name in ("0.png", "mask_0.png", "1.png"):
        put(tmp_path / name)
    put(tmp_path / "metadata.csv", b"file_name,mask_file_name,label\n0.png,mask_0.png,cat\n")
    data, column = image_rows(load_split(str(tmp_path)))
    assert len(data) == 1 and column == "image" and "1 of 3 images are not read" in messages.text
    put(tmp_path / "b/0.png")
    put(tmp_path / "b/metadata.csv", b"file_name,label\nmissing.png,cat\n")
    assert len(load_split(str(tmp_path / "b"))) == 1 and "1 of 1 images are not read" in messages.text


def test_files_of_every_kind_by_folder_and_by_name(tmp_path):
    for kind, content in {
        "a.csv": b"text,n\none,1\ntwo,2\n",
        "a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "a.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'),
        "a.txt.gz": gzip.compress(b"one\ntwo\n"),
    }.items():
        path = put(tmp_path / kind.replace(".", "_") / kind, content)
        for name in (path, path.parent):
            for streaming in (False, True):
                assert [row["text"] for row in load_split(str(name), sample="text", streaming=streaming)] == [
                    "one",
                    "two",
                ]
    for number in range(3):
        put(tmp_path / f"pictures/{number % 2}/{number}.jpg")
    assert len(load_split(str(tmp_path / "pictures/*/*.jpg"))) == 3
    saved = datasets.Dataset.from_dict({"text": ["one", "two"]})
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=saved, rest=saved.select([1])).save_to_disk(tmp_path / "saved_splits")
    assert load_split(str(tmp_path / "saved"))["text"][:] == ["one", "two"]
    assert [row["text"] for row in load_split(str(tmp_path / "saved_splits"), "rest", streaming=True)] == ["two"]
    put(tmp_path / "packed/a.zip")
    for name in ("packed", "packed/a.zip"):
        with pytest.raises(DataError, match=r"\.zip.* not read: unpack them"):
            load_split(str(tmp_path / name))


class Numbers:
    """The rows of a webdataset by the numbers that are their keys."""

    def decode(self, row):
        return int(row["__key__"])

    def collate(self, items, sample_seeds):
        return {"number": torch.tensor(items)}


def taken(loader, batches):
    iterator = iter(loader)
    numbers = [next(iterator)["number"].tolist() for _ in range(batches)]
    iterator.close()
    return numbers


def stream(folder, num_workers=0, buffer_size=3):
    return TrainLoader(load_split(str(folder), streaming=True), Numbers(), 2, 0, num_workers, buffer_size)


@pytest.mark.parametrize("place", [0, 1])
def test_a_stream_goes_on_without_a_broken_shard_and_counts_it_once(place, tmp_path, messages):
    page = put(tmp_path / f"{place}.tar", b"<html>404</html>" * 64)
    put_tar(tmp_path / f"{1 - place}.tar", pictures(0, 6))
    with pytest.raises(DataError, match=f"The file '{page}' cannot be read: it is a web page"):
        load_split(str(tmp_path))
    with pytest.raises(DataError, match=f"The file '{page}' cannot be read: it is a web page"):
        list(load_split(str(tmp_path), streaming=True))
    loader = stream(tmp_path, buffer_size=7)  # a block is an epoch, which the broken shard begins or ends
    whole = taken(loader, 15)  # five epochs
    assert sorted(sum(whole, [])) == sorted(5 * list(range(6))) and loader.broken in (4, 5)
    assert str(page) in messages.text and str(page) in loader.reasons["broken"]
    for stop in range(1, 14, 2):
        first, second = (stream(tmp_path, buffer_size=7) for _ in range(2))
        taken(first, stop)
        second.load_state_dict(first.state_dict())
        assert taken(second, 15 - stop) == whole[stop:] and second.broken == loader.broken


@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_shard_stops_no_stream(workers, tmp_path, messages):
    (tmp_path / "parquet").mkdir()
    for number, (first, last) in enumerate([(0, 0), (0, 6), (6, 12)]):
        put_tar(tmp_path / f"tar/{number}.tar", pictures(first, last))
        keys = datasets.Dataset.from_dict({"__key__": [str(key) for key in range(12)]}).select(range(first, last))
        keys.to_parquet(tmp_path / f"parquet/{number}.parquet")
    for folder in ("parquet", "tar"):
        loader = stream(tmp_path / folder, num_workers=workers)
        assert set(sum(taken(loader, 24), [])) == set(range(12)) and not loader.broken
    assert "1 of 3 files are empty: '0.tar'" in messages.text
    assert len(load_split(str(tmp_path / "tar"))) == 12


def test_a_stream_without_any_row_says_so(tmp_path):
    datasets.Dataset.from_dict({"__key__": ["0"]}).select([]).to_parquet(tmp_path / "0.parquet")
    with pytest.raises(DataError, match="no rows for one of its readers"):
        taken(stream(tmp_path), 1)
    put_tar(tmp_path / "tar/0.tar", [])
    for streaming in (False, True):
        with pytest.raises(DataError, match="0.tar' cannot be read: it is empty"):
            load_split(str(tmp_path / "tar"), streaming=streaming)


@pytest.mark.parametrize("size", [4 * 1024, 4 * 1024 + 300])
def test_a_shard_that_was_cut_off_is_named(size, tmp_path, messages):
    path = put_tar(tmp_path / "a.tar", pictures(0, 6))
    path.write_bytes(path.read_bytes()[:size])
    assert len(load_split(str(tmp_path))) == 4 and "1 of 1 .tar files are cut off" in messages.text


def test_a_broken_sidecar_that_nobody_reads_harms_no_row(tmp_path, messages):
    members = [(f"{i}.{kind}", PNG if kind == "png" else b'{"a": 1}') for i in range(4) for kind in ("png", "json")]
    put_tar(tmp_path / "a.tar", [*members[:5], ("2.json", b"{"), *members[6:]])
    loader = stream(tmp_path)
    assert sorted(sum(taken(loader, 2), [])) == [0, 1, 2, 3] and not loader.broken
    assert "A .json in a .tar is broken" in messages.text


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "JSON parse error"),
        ("a.txt", "déjà vu".encode("latin1"), "'utf-8' codec"),
        ("a.parquet", b"PAR1 and no more", "Parquet magic bytes"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.parquet", b"", "it is empty"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_broken_file_is_named_with_the_reason(name, content, why, streaming, tmp_path):
    path = put(tmp_path / name, content)
    with pytest.raises(DataError, match=f"The file '{path}' cannot be read: .*{why}"):
        list(load_split(str(tmp_path), sample="text", streaming=streaming))


SENTENCE = {"text": "Hello, there", "label": 1}
TABLES = {  # files -> (rows, what is said)
    "tabs": ({"a.tsv": b"text\tlabel\nHello, there\t1\n"}, [SENTENCE], None),
    "tabs and commas": (
        {"a.tsv": b"text\tlabel\nno\t1\n", "b.csv": b'text,label\n"Hello, there",1\n'}, [SENTENCE],
        "1 .tsv files are not read.*'a.tsv'",
    ),
    "words for nothing": (
        {"a.csv": b"text,label\nNA,None\nnull,US\n,NA\n"},
        [{"text": "NA", "label": "None"}, {"text": "null", "label": "US"}, {"text": None, "label": "NA"}], None,
    ),
    "missing numbers": ({"a.csv": b"n,b\n1.5,NA\nNA,True\n"}, [{"n": 1.5, "b": None}, {"n": None, "b": True}], None),
    "a mark of the order of bytes": ({"a.txt": b"\xef\xbb\xbfone\ntwo\n"}, [{"text": "one"}, {"text": "two"}], None),
    "such marks in documents": (
        {"a.txt": b"\xef\xbb\xbfone", "b.txt": b"\xef\xbb\xbftwo"}, [{"text": "one"}, {"text": "two"}], None
    ),
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("table", TABLES)
def test_texts_and_tables_are_read_as_they_are_written(table, streaming, tmp_path, messages):
    files, rows, said = TABLES[table]
    for name, content in files.items():
        put(tmp_path / name, content)
    assert list(load_split(str(tmp_path), sample="text", streaming=streaming)) == rows
    assert said is None or re.search(said, messages.text)


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", b"text,label\none, two,x\nthree, four,y\n", "a.csv' cannot be read: its rows have more fields than its header"),
        ("a.csv", b"text,label\none,x\nthree, four,y\n", "a.csv' cannot be read: .*line 3.*texts with commas in quotes"),
        ("a.txt", b"", "is empty: found 0 rows"),
    ],
    ids=["shifted", "surplus", "empty"],
)  # fmt: skip
def test_tables_without_quotes_and_empty_texts_are_refused_in_one_sentence(
    name, content, said, streaming, tmp_path, messages
):
    put(tmp_path / name, content)
    with pytest.raises(DataError, match=said):
        load_split(str(tmp_path), sample="text", streaming=streaming)
    assert "Failed to read file" not in messages.text


def test_a_column_of_which_the_files_differ_in_type_is_named(tmp_path):
    put(tmp_path / "train.csv", b"text,label\none,a\ntwo,b\n")
    put(tmp_path / "test.csv", b"text,label\none,0\n")
    with pytest.raises(DataError, match="column 'label' holds numbers in '.*test.csv' and text in '.*train.csv'"):
        load_split(str(tmp_path), sample="text")


def test_names_of_home_folders_empty_names_and_parts_of_streams(tmp_path, monkeypatch):
    put(tmp_path / "texts/a.txt", b"one\ntwo\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/texts", "~/texts/a.txt", "~/texts/*.txt"):
        assert len(load_split(name, sample="text")) == 2
    for name in ("~/elsewhere", "~nobody/texts"):
        with pytest.raises(DataError, match=f"'{name}' was not found"):
            load_split(name, sample="text")
    for name in ("", " "):
        with pytest.raises(DataError, match="dataset_name is empty"):
            load_split(name, sample="text")
    for split in ("train[:1]", "train+train"):
        with pytest.raises(DataError, match="is a slice or a sum, which streams do not have"):
            load_split("~/texts", split, sample="text", streaming=True)


def test_usual_names_come_before_types(messages):
    picture, classes = datasets.Image(), datasets.ClassLabel(names=["a", "b"])

    def data(**features):
        return datasets.Dataset.from_dict({name: [] for name in features}, features=datasets.Features(features))

    photos = data(annotation=picture, difficulty=classes, image=picture, label=datasets.Value("int64"))
    assert image_rows(photos)[1] == "image" and "'image', not ['annotation']" in messages.text
    assert find_column(photos, None, "label", ("label",), datasets.ClassLabel) == "label"
    assert find_column(photos.remove_columns("label"), None, "label", ("label",), datasets.ClassLabel) == "difficulty"
    assert (
        image_rows(data(annotation=picture, image=datasets.Value("string")))[1] == "annotation"
    )  # a text is no image
    assert image_rows(data(features=datasets.Array2D((2, 2), "float32"), image=datasets.Value("binary")))[1] == "image"


def test_globs_reach_into_folders_and_dead_links_are_counted(tmp_path, messages):
    for name in ("1.png", "b/2.png", "b/c/3.png"):
        path = tmp_path / "deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    assert len(load_split(str(tmp_path / "deep/**/*.png"))) == 3
    (tmp_path / "deep/b/gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(load_split(str(tmp_path / "deep"))) == 3
    assert re.search("1 links point to files that are not there: .*gone.png", messages.text)


def test_numbers_behind_a_dot_make_no_samples_of_a_tar(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"photo.{number:04d}.png")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    with pytest.raises(DataError, match=r"images such as 'photo.0000.png', which all count as one sample"):
        image_rows(load_split(str(tmp_path)))
