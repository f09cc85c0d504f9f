"""Rows in, batches out: where they come from, in which order, and what is made of them."""

import io
import json
import math
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_views import VIEW, two_views

from hf_ssl.data import DataError, ImageDecoder, TrainLoader, decode_image, image_processor, image_rows, load_split
from hf_ssl.data.loader import Unfit
from hf_ssl.methods._random import fold_in, normal, seed_from, uniform


class WithIds(ImageDecoder):
    """Batches that also tell which rows they hold."""

    def decode(self, row):
        return super().decode(row), row["id"]

    def collate(self, items, sample_seeds):
        return super().collate([image for image, _ in items], sample_seeds) | {
            "id": torch.tensor([i for _, i in items])
        }


def loader(folder, streaming=False, batch_size=8, process=0, processes=1, **options):
    rows, column = image_rows(load_split(str(folder), streaming=streaming))
    decoder = WithIds(column, 3, VIEW)
    return TrainLoader(rows, decoder, batch_size, 3, buffer_size=16, process=process, processes=processes, **options)


def take(batches, count):
    iterator = iter(batches)
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_loader_goes_on_where_its_state_says(shards, streaming, workers, processes):
    for process in range(processes):
        options = dict(streaming=streaming, num_workers=workers, process=process, processes=processes)
        whole = take(loader(shards, **options), 30)
        for stop in (1, 11, 22):
            first = loader(shards, **options)
            take(first, stop)
            second = loader(shards, **options)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            for batch, expected in zip(take(second, 4), whole[stop:], strict=False):
                assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_each_row_once_an_epoch_and_another_order_in_the_next(shards):
    ids = torch.cat([batch["id"] for batch in take(loader(shards), 30)]).tolist()  # two epochs of 120
    assert sorted(ids[:120]) == sorted(ids[120:]) == list(range(120)) and ids[:120] != ids[120:]


def test_each_row_once_an_epoch_from_a_stream(shards):
    """By the seeds, which belong to (epoch, row): the first 240 of a stream hold the first epoch whole."""
    for workers, processes in ((0, 1), (2, 1), (0, 2), (2, 3)):
        found = Counter()
        for process in range(processes):
            options = dict(streaming=True, num_workers=workers, process=process, processes=processes)
            for batch in take(loader(shards, **options), 60 // processes):
                found.update(zip(batch["sample_seeds"].tolist(), batch["id"].tolist(), strict=True))
        assert set(found.values()) == {1} and {row for _, row in found} == set(range(120))


def test_the_rows_of_all_processes_are_those_of_one_also_after_a_change(shards):
    """1 x 8 for three batches, then 2 x 12: together the same rows in the same order as 1 x 24 would take."""
    one = loader(shards)
    ids = [batch["id"] for batch in take(one, 3)]
    parts = []
    for process in range(2):
        part = loader(shards, batch_size=12, process=process, processes=2)
        part.load_state_dict(one.state_dict())
        parts.append([batch["id"] for batch in take(part, 4)])
    ids += [torch.cat(pair) for pair in zip(*parts, strict=True)]
    assert torch.cat(ids).tolist() == torch.cat([batch["id"] for batch in take(loader(shards), 15)]).tolist()


def test_resuming_a_stream_does_not_read_it_again(shards, monkeypatch):
    """After 25 batches, taking the stream up reads about two buffers of rows, not the 200 before."""
    first = loader(shards, streaming=True)
    take(first, 25)
    second = loader(shards, streaming=True)
    second.load_state_dict(first.state_dict())
    reads = []
    count = datasets.IterableDataset.iter

    def counting(self, batch_size):
        for rows in count(self, batch_size):
            reads.append(1)
            yield rows

    monkeypatch.setattr(datasets.IterableDataset, "iter", counting)  # only counts
    take(second, 1)
    assert 8 <= len(reads) <= 3 * 16


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_indices_are_the_numbers_of_the_rows(shards, workers):
    """Of those that stand in for broken rows too, over the border of two epochs."""

    class EveryFifthIsBroken(WithIds):
        def decode(self, row):
            if row["id"] % 5 == 0:
                raise ValueError("broken on purpose")
            return super().decode(row)

    rows, column = image_rows(load_split(str(shards)))
    batches = TrainLoader(rows, EveryFifthIsBroken(column, 3, VIEW), 16, 3, workers, sample_indices=True)
    found = take(batches, 10)
    for batch in found:
        assert batch["sample_indices"].dtype == torch.int64 and torch.equal(batch["sample_indices"], batch["id"])
    assert batches.broken > 10 and "sample_indices" not in take(loader(shards), 1)[0]


@pytest.mark.parametrize("error", [ValueError, Unfit])
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_nine_rows_of_ten_may_be_of_no_use(shards, streaming, error):
    class FewAreGood(WithIds):
        def decode(self, row):
            if row["id"] % 10:
                raise error("no use")
            return super().decode(row)

    rows, column = image_rows(load_split(str(shards), streaming=streaming))
    batches = TrainLoader(rows, FewAreGood(column, 3, VIEW), 16, 3, buffer_size=16)
    assert {i for batch in take(batches, 6) for i in batch["id"].tolist()} == set(range(0, 120, 10))
    skipped = batches.unfit if error is Unfit else batches.broken
    assert skipped > 4 * batches.rows_seen and skipped == batches.unfit + batches.broken


def test_rows_in_order_are_shared_among_processes(shards):
    """120 rows in batches of 64: a process alone reads 2 batches, each of three 1, the last of which begins again."""
    rows, column = image_rows(load_split(str(shards)))
    decoder = WithIds(column, 3, VIEW)
    [whole, *parts] = [
        list(TrainLoader(rows, decoder, 8, 3, process=i, processes=n).in_row_order(decoder, epoch=2))
        for i, n in ((0, 1), (0, 3), (1, 3), (2, 3))
    ]
    ids = torch.cat([batch["id"] for batch in whole])
    assert ids.tolist() == [row % 120 for row in range(128)]
    assert whole[0]["sample_seeds"][7] == seed_from(3, 2, 7)
    assert [len(part) for part in parts] == [1, 1, 1] and parts[2][0]["id"].tolist() == [8 + i for i in range(64)]
    for batch, expected in zip(parts[0] + parts[1], whole, strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("view", [VIEW, two_views("moco_v2", solarize_probability=0.5)], ids=["one", "two"])
def test_a_view_does_not_depend_on_the_batch(shards, view, monkeypatch):
    batch = take(loader(shards), 1)[0]
    batch["boxes"] = view.boxes(batch["sample_seeds"], *torch.full((2, 8), min(batch["images"].shape[3:])))
    batch.pop("id")
    whole = view(**batch)
    monkeypatch.setattr("hf_ssl.data.views.CHUNK", 3 * 3 * 16**2)
    with torch.autocast("cpu", torch.bfloat16):  # nor on the precision that is trained in
        few = view(**{name: value[1:] for name, value in batch.items()})
    for name, alone in few.items():
        torch.testing.assert_close(whole[name][1:], alone, rtol=0, atol=2e-6)


def test_random_numbers_are_uniform_and_independent():
    draws = uniform(torch.arange(50_000), 3)
    assert (draws >= 0).all() and (draws < 1).all()
    assert (draws.mean(0) - 0.5).abs().max() < 0.01 and (draws.var(0) * 12 - 1).abs().max() < 0.02
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 0.02
    assert (torch.corrcoef(torch.stack([draws[1:, 0], draws[:-1, 0]])) - torch.eye(2)).abs().max() < 0.02
    assert torch.equal(uniform(torch.arange(8), 3)[2:5], uniform(torch.arange(2, 5), 3))
    assert seed_from(7, 2**40, 3) == int(fold_in(fold_in(fold_in(torch.tensor(0), 7), 2**40), 3))
    # SplitMix64's published first outputs for seed 1234567
    bits = [int(fold_in(torch.tensor(1234567), i)) % 2**64 for i in range(3)]
    assert bits == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_normal_numbers_belong_to_their_seed(monkeypatch):
    draws = normal(torch.arange(50_000), 3)
    assert draws.dtype == torch.float32
    for limit in (-2.0, -0.5, 0.0, 1.0):
        expected = 0.5 * (1 + math.erf(limit / math.sqrt(2)))
        assert ((draws < limit).float().mean(0) - expected).abs().max() < 0.01
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 0.02
    assert torch.equal(normal(torch.arange(8), 3)[2:5], normal(torch.arange(2, 5), 3))
    # of the least and the largest number that `uniform` can give
    monkeypatch.setattr("hf_ssl.methods._random.uniform", lambda *_: torch.tensor([[0.0, 1 - 2.0**-24]]))
    ends = normal(torch.zeros(1, dtype=torch.long), 2)[0]
    assert ends.isfinite().all() and ends[0] == -ends[1] and ends[1] > 5


def picture(mode, size=(20, 12)):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8), "RGBA"
    ).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_all_modes_decode(mode, channels):
    image = decode_image(picture(mode), channels)
    assert image.shape == (channels, 12, 20) and image.dtype == torch.uint8


def test_images_of_many_channels_and_of_many_sizes():
    assert decode_image(np.zeros((12, 20, 5), np.uint8), 5).shape == (5, 12, 20)
    assert decode_image(np.ones((5, 12, 20), np.float32), 5).eq(255).all()
    with pytest.raises(ValueError, match="num_channels=5"):
        decode_image(picture("RGB"), 5)


def test_every_layout_of_a_local_data_set(tmp_path):
    for name in ("folder/train/cat", "folder/train/dog", "shards"):
        (tmp_path / name).mkdir(parents=True)
    with tarfile.open(tmp_path / "shards/a.tar", "w") as tar:
        for i in range(4):
            buffer = io.BytesIO()
            picture("RGB").save(buffer, "PNG")
            picture("RGB").save(tmp_path / f"folder/train/{'cat' if i % 2 else 'dog'}/{i}.png")
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    for name in ("folder", "shards/*.tar"):
        for streaming in (False, True):
            rows, column = image_rows(load_split(str(tmp_path / name), streaming=streaming))
            batch = take(TrainLoader(rows, ImageDecoder(column, 3, VIEW), 4, 0), 1)[0]
            assert batch["images"].shape == (4, 1, 3, 12, 20), name


@pytest.mark.parametrize(
    "sample, column", [("images", "image"), ("emoji", "image"), ("text", "text"), ("speech", "audio")]
)
def test_samples_are_there(sample, column):
    rows = load_split(sample=sample)
    assert column in rows.column_names and len(rows) >= 50
    assert len(load_split(None, "validation" if sample == "text" else "test", sample=sample)) >= 20


def _glob(folder):
    (folder / "glob").mkdir()
    load_split(None, "train").select(range(4)).to_parquet(folder / "glob/a.parquet")
    assert len(load_split(str(folder / "glob/*.parquet"))) == 4
    return str(folder / "glob/*.parquet")


def test_bad_data_is_named(tmp_path):
    with pytest.raises(DataError, match="dataset_name '/no/such/folder' was not found"):
        load_split("/no/such/folder")
    with pytest.raises(DataError, match="dataset_name 'org/none' has no readable split 'train'"):
        load_split("org/none")
    with pytest.raises(DataError, match="no readable split 'dev'"):
        load_split(None, "dev")
    with pytest.raises(
        DataError, match=r"image_column 'photo' is not in the data set: found the columns \['image', 'label'\]"
    ):
        image_rows(load_split(), "photo")
    with pytest.raises(DataError, match="image_column 'label' holds int64 values"):
        image_rows(load_split(), "label")
    with pytest.raises(DataError, match=r"No image column was found: the data set has only 'text' \(string\)"):
        image_rows(load_split(sample="text"))
    with pytest.raises(
        DataError, match="no readable split 'test'"
    ):  # a glob is one split: nothing is tested on what was trained on
        load_split(_glob(tmp_path), "test")
    datasets.Dataset.from_dict({"image": []}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="is empty: found 0 rows"):
        load_split(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize("size", [28, 224])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_processor_takes_grey_and_colour_of_any_size(mode, size):
    for shape in ((20, 12), (300, 500)):
        assert image_processor(size)(picture(mode, shape), return_tensors="pt").pixel_values.shape == (
            1,
            3,
            size,
            size,
        )
