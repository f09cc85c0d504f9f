"""Views of images: each operation against torchvision's, each draw against its distribution and the recorded ones."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hf_ssl.data import VIEWS, ImageDecoder, RandomResizedCropAndFlip, ViewRecipe, Views, image_processor
from hf_ssl.data.crops import random_crop_boxes, resized_crop
from hf_ssl.data.pixels import color_jitter, gaussian_blur
from hf_ssl.data.views import CenterCrop
from hf_ssl.methods._random import fold_in

VIEW = RandomResizedCropAndFlip(16, [0.5], [0.5])
CROPPED = [name for name in VIEWS if not name.startswith("weak")]  # of those that are not: test_labels.py


def two_views(recipe, size=16, mean=(0.5,), std=(0.25,), **changes):
    return Views(size, mean, std, [replace(one, **changes) for one in VIEWS[recipe]])


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
@pytest.mark.parametrize("recipe", CROPPED)
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
            mode = InterpolationMode("bilinear" if recipe.startswith("moco") else "bicubic")
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


@pytest.mark.parametrize("recipe", [*CROPPED, "weak"])
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
    for recipe in CROPPED:
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


# seeds fold_in(0 .. 999, 7), views of 40 pixels of images of 48 x 56: the sums of the boxes of both views; flips, greys and
# blurs; the sums of the factors. Recorded runs rest on these draws
DRAWS = {
    "moco_v1": (
        [[5754, 8950, 36681, 37975], [5491, 9233, 36544, 37923]],
        [(541, 190, 0), (493, 206, 0)],
        [(1000.1776098, 1002.1723940, 997.9958375, 4.9278517), (1009.8942284, 990.2865287, 991.8393084, -6.8837521)],
    ),
    "moco_v2": (
        [[5754, 8950, 36681, 37975], [5491, 9233, 36544, 37923]],
        [(541, 190, 505), (493, 206, 514)],
        [(999.6326463, 1005.9726245, 996.6051391, 1.2960725), (1010.9727222, 990.1331205, 991.9132058, -2.1505861)],
    ),
    "simclr": (
        [[7161, 10416, 33942, 35074], [6842, 10714, 33751, 35015]],
        [(541, 190, 505), (493, 206, 514)],
        [(999.2652734, 1011.9452275, 993.2102603, 2.5921450), (1021.9454258, 980.2662185, 983.8263877, -4.3011723)],
    ),
}


@pytest.mark.parametrize("recipe", DRAWS)
def test_draws_are_those_of_the_recorded_runs(recipe):
    boxes, counts, factors = DRAWS[recipe]
    view, seeds = two_views(recipe, 40), fold_in(torch.arange(1000), 7)
    assert view.boxes(seeds, *torch.tensor([[48], [56]]).expand(2, 1000)).sum(0).tolist() == boxes
    for number in range(2):
        draws = view.draw(seeds, number)
        assert tuple(int(draws[name].sum()) for name in ("flip", "grey", "blurred")) == counts[number]
        assert draws["factors"].double().sum(0).tolist() == pytest.approx(factors[number], abs=1e-6)


MULTI_CROP = dict(local_size=12, local_recipes=[replace(VIEWS["simclr"][0], scale=(0.05, 0.14))] * 3)


def multi_crop(size=24, **changes):
    return Views(size, [0.5], [0.25], VIEWS["byol"], **MULTI_CROP | changes)


def test_views_of_one_image_have_recipes_and_sizes_of_their_own():
    """Two of BYOL's and three smaller ones; each is the view that a class of it alone would make of the same seeds."""
    view, seeds = multi_crop(), torch.arange(400)
    images = (rough_images(400, 3, 32) * 255).byte()[:, None]
    boxes = view.boxes(seeds, *torch.full((2, 400), 32))
    batch = view(images, seeds, boxes[:, :2], local_boxes=boxes[:, 2:])
    assert list(batch) == ["sample_seeds", "pixel_values", "pixel_values_2", "local_pixel_values"]
    assert batch["pixel_values_2"].shape == (400, 3, 24, 24) and batch["local_pixel_values"].shape == (
        400,
        3,
        3,
        12,
        12,
    )
    shares = [[view.draw(seeds, n)[name].float().mean() for name in ("blurred", "solarized")] for n in (0, 1, 2)]
    assert torch.tensor(shares).sub(torch.tensor([[1.0, 0.0], [0.1, 0.2], [0.5, 0.0]])).abs().max() < 0.06
    areas = (boxes[:, :, 2] * boxes[:, :, 3]).float().mean(0) / 32**2
    assert areas[:2].sub(0.5).abs().max() < 0.08 and areas[2:].sub(0.095).abs().max() < 0.01
    pair = two_views("byol", 24)(images, seeds, boxes[:, :2])
    assert all(torch.equal(batch[name], pair[name]) for name in pair)
    local = batch["local_pixel_values"]
    assert (local[:, 0] - local[:, 1]).abs().mean() > 0.1  # each local view has its own draws


@pytest.mark.parametrize("sides", [[(20, 24), (30, 30)], [(60, 70), (200, 90)], [(20, 24), (200, 90), (22, 22)]])
def test_crops_of_several_sizes_are_the_same_in_any_batch(sides):
    """Small images travel once for all crops, large ones as crops of two sizes, and both may be in a batch."""
    view, decoder = multi_crop(), ImageDecoder("image", 3, multi_crop())
    images = [(rough_images(1, 3, 200, seed)[0, :, :h, :w] * 255).byte() for seed, (h, w) in enumerate(sides)]
    large = [h * w > 4 * 24**2 for h, w in sides]
    seeds = torch.arange(len(images))
    batch = decoder.collate(images, seeds)
    assert ("local_images" in batch) == any(large) and ("boxes" in batch) == ("local_boxes" in batch) == (
        not all(large)
    )
    together = view(**batch)
    for i, image in enumerate(images):
        for name, alone in view(**decoder.collate([image], seeds[i : i + 1])).items():
            torch.testing.assert_close(together[name][i : i + 1], alone, rtol=0, atol=1e-5)
        box = view.boxes(seeds[i : i + 1], *torch.tensor(image.shape[1:])[:, None])
        whole = view(image[None, None], seeds[i : i + 1], box[:, :2], local_boxes=box[:, 2:])
        difference = (together["local_pixel_values"][i] - whole["local_pixel_values"][0]).abs().mean()
        assert difference < 0.05  # the decoder's crops have 8 bits, and are clipped between the two directions


def test_views_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="^recipes is empty"):
        Views(16, [0.5], [0.5], [])
    with pytest.raises(ValueError, match="^local_size and local_recipes belong together: found None and 3 recipes"):
        multi_crop(local_size=None)


def test_a_view_without_probabilities_is_a_crop_and_a_flip():
    view, seeds = Views(16, [0.0], [1.0], [ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0))]), torch.arange(20)
    images = (rough_images(20, 3, 16) * 255).byte()
    batch = view(images[:, None], seeds, view.boxes(seeds, *torch.full((2, 20), 16)))
    flips = view.draw(seeds, 0)["flip"]
    expected = torch.where(flips[:, None, None, None], images.flip(-1), images) / 255
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-6)
    assert list(batch) == ["sample_seeds", "pixel_values"] and 0 < flips.sum() < 20
