"""Rows in, batches out: where they come from, in which order, and what is made of them."""

import io
import itertools
import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hf_ssl.data import (
    TWO_VIEWS,
    DataError,
    ImageDecoder,
    RandomResizedCropAndFlip,
    TrainLoader,
    TwoViews,
    decode_image,
    image_processor,
    image_rows,
    load_split,
)
from hf_ssl.data.views import CenterCrop, color_jitter, gaussian_blur, random_crop_boxes, resized_crop
from hf_ssl.methods._random import fold_in, seed_from, uniform

VIEW = RandomResizedCropAndFlip(16, [0.5], [0.5])


def two_views(recipe, size=16, mean=(0.5,), std=(0.25,), **changes):
    return TwoViews(size, mean, std, **TWO_VIEWS[recipe] | changes)


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


@pytest.mark.parametrize("size", [28, 160])
def test_the_centre_crop_is_the_processors(size):
    """To what resizing first and cutting then, and rounding in between, do to the values."""
    waves = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = (255 * F.interpolate(waves, (200, 180), mode="bilinear")[0]).byte()
    decoder = ImageDecoder("image", 3, CenterCrop(size, [0.5] * 3, [0.5] * 3))
    ours = decoder.view(**decoder.collate([image], torch.arange(1)))["pixel_values"]
    processor = image_processor(size)
    processor.image_mean = processor.image_std = [0.5] * 3
    theirs = processor(image, return_tensors="pt", input_data_format="channels_first").pixel_values
    assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.06 * theirs.std()  # a third of a pixel


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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 28, 64])
def test_resized_crop_equals_torchvision(size, interpolation):
    images = torch.rand(16, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    boxes = random_crop_boxes(torch.arange(16), torch.full((16,), 40), torch.full((16,), 32))
    ours = resized_crop(images, boxes, size, torch.arange(16) % 2 == 0, interpolation)
    for i, (image, box) in enumerate(zip(images, boxes.tolist(), strict=True)):
        theirs = tv.resized_crop(image, *box, [size, size], InterpolationMode(interpolation), antialias=True)
        torch.testing.assert_close(ours[i], theirs.flip(-1) if i % 2 == 0 else theirs, rtol=0, atol=2e-6)


ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def torchvision_jitter(image, factors, turns):
    for operation in turns.argsort().tolist():
        image = ADJUST[operation](image, factors[operation].item())
    return image


def rough_images(n, channels, size, seed=0):
    """Noise with black, white and grey lines, and one of two equal channels: where a hue is not unique."""
    images = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))
    images[..., 0, :], images[..., 1, :], images[..., 2, :] = 0, 1, 0.5
    images[:, 1:, 3], images[:, :-1, 4] = 0.3, 0.7
    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision_in_all_orders(channels):
    images = rough_images(48, channels, 20)
    turns = torch.tensor([list(turns) for turns in itertools.permutations(range(4))]).repeat(2, 1)
    factors = 2 * torch.rand(48, 4, generator=torch.Generator().manual_seed(1))
    factors[:, 3] = (factors[:, 3] - 1) / 2
    factors[24:] = torch.where(
        torch.arange(4) == torch.arange(24)[:, None] % 4, factors[24:], torch.tensor([1, 1, 1, 0])
    )
    ours = color_jitter(images.clone(), factors, turns)
    theirs = torch.stack([torchvision_jitter(*each) for each in zip(images, factors, turns, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    alone = [i for i in range(24, 48) if i % 4 != 3]  # brightness, contrast or saturation, the others do nothing
    torch.testing.assert_close(ours[alone], theirs[alone], rtol=0, atol=2e-6)


@pytest.mark.parametrize("size, kernel_size", [(16, 3), (33, 3), (40, 9), (64, 23)])
def test_blur_equals_torchvision(size, kernel_size):
    images, sigma = rough_images(4, 3, size), torch.tensor([0.1, 0.5, 1.3, 2.0])
    ours = gaussian_blur(images, sigma, kernel_size)
    for image, blurred, one in zip(images, ours, sigma.tolist(), strict=True):
        theirs = tv.gaussian_blur(image, [kernel_size] * 2, [one] * 2)
        torch.testing.assert_close(blurred, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", TWO_VIEWS)
def test_two_views_are_what_torchvision_makes_of_the_draws(recipe, channels):
    """Operation after operation, each image by itself, in the order of the papers' code."""
    view = two_views(recipe, size=40, solarize_probability=0.3)
    images = (rough_images(32, channels, 48) * 255).byte()
    seeds = torch.arange(32)
    boxes = view.boxes(seeds, *torch.full((2, 32), 48))
    batch = view(images[:, None], seeds, boxes)
    for number, name in enumerate(("pixel_values", "pixel_values_2")):
        draws = view.draw(seeds, number)
        for i, image in enumerate(images.float() / 255):
            flip, factors, turns, grey, blurred, sigma, solarized = (value[i] for value in draws.values())
            mode = InterpolationMode("bicubic" if recipe == "simclr" else "bilinear")
            image = tv.resized_crop(image, *boxes[i, number].tolist(), [40, 40], mode, antialias=True).clamp(0, 1)
            if recipe == "moco_v1" and grey:
                image = tv.rgb_to_grayscale(image, channels)
            image = torchvision_jitter(image, factors, turns)
            if recipe != "moco_v1" and grey:
                image = tv.rgb_to_grayscale(image, channels)
            if blurred:
                image = tv.gaussian_blur(image, [5, 5], [sigma.item()] * 2)
            if solarized:
                image = tv.solarize(image, 0.5)
            image = image.flip(-1) if flip else image
            torch.testing.assert_close(batch[name][i], (image - 0.5) / 0.25, rtol=0, atol=1e-4)


def test_the_draws_of_two_views_have_the_papers_distributions():
    count = 40_000
    view = two_views("simclr", jitter_strength=0.5, solarize_probability=0.1)
    draws = [view.draw(torch.arange(count), number) for number in range(2)]
    for draw in draws:
        shares = {"flip": 0.5, "grey": 0.2, "blurred": 0.5, "solarized": 0.1}
        assert all((draw[name].float().mean() - share).abs() < 0.01 for name, share in shares.items())
        jittered = (draw["factors"] != torch.tensor([1, 1, 1, 0])).any(1)
        assert (jittered.float().mean() - 0.8).abs() < 0.01
        values = torch.cat([draw["factors"][jittered], draw["sigma"][jittered, None]], dim=1)
        low, high = torch.tensor([0.6, 0.6, 0.6, -0.1, 0.1]), torch.tensor([1.4, 1.4, 1.4, 0.1, 2.0])
        scaled = (values - low) / (high - low)
        assert scaled.min() > -1e-5 and scaled.max() < 1 + 1e-5
        assert (scaled.mean(0) - 0.5).abs().max() < 0.01 and (scaled.var(0) * 12 - 1).abs().max() < 0.03
        orders = draw["turns"].argsort(1) @ torch.tensor([64, 16, 4, 1])
        _, found = orders.unique(return_counts=True)
        assert len(found) == 24 and ((found - count / 24) ** 2 / (count / 24)).sum() < 55  # chi-squared, 23: p = 2e-4
    kinds = [torch.cat([value.float().reshape(count, -1) for value in draw.values()], dim=1) for draw in draws]
    assert (torch.corrcoef(torch.cat(kinds, dim=1).T)[:13, 13:]).abs().max() < 0.025  # 0.025 = 5 / sqrt(count)
    strong = two_views("simclr", jitter_strength=2.0).draw(torch.arange(1000), 0)["factors"]
    assert strong[:, :3].min() >= 0  # as torchvision: from max(0, 1 - 1.6)


@pytest.mark.parametrize("recipe", TWO_VIEWS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_two_views_of_many_channels_without_waiting_for_the_device(recipe, channels):
    view, seeds = two_views(recipe, solarize_probability=0.5), torch.arange(6)
    images = torch.randint(0, 256, (6, 1, channels, 20, 24), dtype=torch.uint8)
    images[:2] = torch.tensor([0, 255])[:, None, None, None, None]
    batch = {
        "images": images,
        "sample_seeds": seeds,
        "boxes": view.boxes(seeds, *torch.tensor([[20], [24]]).expand(2, 6)),
    }
    views = view(**batch)
    assert all(views[name].isfinite().all() for name in ("pixel_values", "pixel_values_2"))
    on_meta = view(**{name: value.to("meta") for name, value in batch.items()})  # no values there to wait for
    assert {name: value.shape for name, value in on_meta.items()} == {
        name: value.shape for name, value in views.items()
    }


def test_crops_of_the_workers_are_those_of_the_device():
    """Views of 96 pixels are cropped in the worker, by `interpolate` and to 8 bits. Without black and white: as PIL, it
    clips what bicubic interpolation overshoots by in one direction before it goes on in the other."""
    still = dict(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0, mean=[0.0], std=[1.0])
    for recipe in TWO_VIEWS:
        view = two_views(recipe, size=96, **still)
        images = [(64 + 128 * rough_images(1, 3, side, seed=side)[0]).byte() for side in (70, 128, 260)]
        batch = ImageDecoder("image", 3, view).collate(list(images), torch.arange(3))
        assert "boxes" not in batch and batch["images"].shape == (3, 2, 3, 96, 96)
        ours = view(**batch)
        for i, image in enumerate(images):
            seed = torch.tensor([i])
            theirs = view(image[None, None], seed, view.boxes(seed, *torch.full((2, 1), image.shape[1])))
            for name in ("pixel_values", "pixel_values_2"):
                torch.testing.assert_close(ours[name][i], theirs[name][0], rtol=0, atol=2 / 255)


@pytest.mark.parametrize("shape", [(28, 28), (40, 20), (10, 90)])
def test_crop_boxes_have_torchvisions_distribution(shape):
    torch.manual_seed(0)
    count = 4000
    crop = RandomResizedCrop(16, scale=(0.2, 1.0))
    theirs = [crop.make_params([torch.empty(3, *shape)]) for _ in range(count)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).double()
    ours = random_crop_boxes(torch.arange(count), *(torch.full((count,), side) for side in shape)).double()
    for one, other in zip(ours.T, theirs.T, strict=True):
        error = (one.var() / count + other.var() / count).sqrt()
        assert (one.mean() - other.mean()).abs() < 4 * error + 1e-9
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        assert (one.quantile(quantiles) - other.quantile(quantiles)).abs().max() <= 0.05 * max(shape)


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
    sixteen = Image.fromarray(np.full((4, 4), 2**15, np.uint16))
    assert decode_image(sixteen, 1).eq(128).all()


@pytest.mark.parametrize("view", [VIEW, two_views("moco_v2")], ids=["one", "two"])
def test_a_batch_of_images_of_many_sizes(view):
    images = [torch.randint(0, 255, (3, h, w), dtype=torch.uint8) for h, w in ((20, 30), (16, 16), (200, 100))]
    decoder, seeds = ImageDecoder("image", 3, view), torch.arange(3)
    batch = decoder.collate(list(images), seeds)
    views = view(**batch)
    assert batch["images"].shape[3:] == (20, 30)  # the large one was cropped before
    for i, image in enumerate(images):  # each as if it were alone
        for name, alone in view(**decoder.collate([image], seeds[i : i + 1])).items():
            torch.testing.assert_close(views[name][i : i + 1], alone, rtol=0, atol=1e-5)


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
    with pytest.raises(DataError, match="No image column was found"):
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
