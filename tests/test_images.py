"""What a picture's pixels mean: one rule for each kind of file in training, in evaluation and in a release's processor."""

import io

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_views import multi_crop, two_views

from hf_ssl.data import ImageDecoder, RandomResizedCropAndFlip, decode_image, image_processor
from hf_ssl.data.images import PHOTOGRAPH
from hf_ssl.evaluation.encoders.images import ImageEncoder, first_images

RAMP = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (12, 1))
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.roll(RAMP, 7, axis=1)], axis=-1)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def clear(mode):
    """A picture that is transparent on its left, black there if alpha were dropped."""
    alpha = np.where(np.arange(20) < 8, 0, 200).astype(np.uint8)
    pixels = np.where(alpha[:, None] > 0, COLOUR, 0).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, np.tile(alpha, (12, 1))]), "RGBA").convert(mode)


def oriented(number):
    exif = Image.Exif()
    exif[274] = number
    return saved(COLOUR, "JPEG", exif=exif, quality=95)


def frames(kind):
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    return saved(first, kind, save_all=True, append_images=[second])


def palette(**options):
    return saved(Image.fromarray(COLOUR).quantize(8), **options)


FILES = {mode: saved(Image.fromarray(COLOUR).convert(mode)) for mode in ("1", "L", "RGB")}
FILES |= {mode: saved(clear(mode)) for mode in ("LA", "RGBA")}
FILES |= {mode: saved(Image.fromarray(COLOUR).convert(mode), "TIFF") for mode in ("CMYK", "YCbCr", "I;16", "I", "F")}
FILES |= {
    "P": palette(),
    "P, one clear": palette(transparency=2),
    "P, all half clear": palette(transparency=bytes([90] * 8)),
}
FILES |= {
    "L, one clear": saved(RAMP, transparency=0),
    "grey JPEG": saved(RAMP, "JPEG"),
    "WebP": saved(clear("RGBA"), "WEBP"),
}
FILES |= {
    "CMYK JPEG": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "16-bit, 8 used": saved(RAMP.astype(np.uint16)),
}
FILES |= {f"{kind} of two": frames(kind) for kind in ("GIF", "TIFF", "WEBP", "PNG")}
FILES |= {f"orientation {number}": oriented(number) for number in range(1, 9)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_same_in_training_in_evaluation_and_in_the_released_processor(name, channels):
    value = {"bytes": FILES[name], "path": None}
    processor = image_processor(16, channels)
    opened = datasets.Image().decode_example(value)  # upright, as transformers' `load_image` makes it
    released = image_processor(16)(opened, return_tensors="pt").pixel_values
    encoder = ImageEncoder(None, processor, "", channels, "")
    evaluated = encoder.preprocess([encoder.read(value)])
    trained = ImageDecoder("image", channels, None).decode({"image": value})
    assert trained.shape[1:] == opened.size[::-1] and trained.float().std() > 5
    assert torch.equal(evaluated, encoder.preprocess([trained]))
    if channels == 3:
        assert torch.equal(evaluated, released)
    else:  # what the first layer of a release of one channel sees is tested beside it
        colour = decode_image(value, 3).float()
        grey = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        assert (trained[0] - grey).abs().max() <= 0.51


def test_transparent_is_white_and_turned_is_upright():
    assert (decode_image(FILES["RGBA"], 3)[:, :, :8] == 255).all() and decode_image(FILES["RGBA"], 3).min() < 100
    assert (decode_image(FILES["LA"], 1)[:, :, :8] == 255).all()
    upright = decode_image(FILES["orientation 1"], 3).float()
    turned = decode_image(FILES["orientation 6"], 3).float()  # its right side up
    assert turned.shape == (3, 20, 12) and (turned - upright.rot90(-1, (1, 2))).abs().mean() < 3


@pytest.mark.parametrize(
    "picture, values",
    [
        (np.full((4, 4), 4080, np.uint16) * np.eye(4, dtype=np.uint16), "mode I;16 has values from 0 to 4080"),
        (RAMP.astype(np.uint16) * 257, "mode I;16 has values from 0 to 65535"),
        (RAMP.astype(np.int32) * 1000, "mode I has values from 0 to 255000"),
        (RAMP.astype(np.int32) - 9, "mode I has values from -9 to 246"),
        ((RAMP / 255).astype(np.float32), "mode F has values from 0 to 1,"),
        (np.full((4, 4), np.nan, np.float32), "mode F has values from nan to nan"),
    ],
)
def test_pictures_of_more_than_8_bits_that_a_release_would_clip_are_refused(picture, values):
    with pytest.raises(ValueError, match=f"^a picture of {values}.* keep 0 to 255: scale them to that, and save"):
        decode_image(saved(picture, "TIFF"), 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_scaled_by_their_range(channels):
    expected = torch.from_numpy(RAMP).expand(channels, 12, 20)
    for array in (RAMP, RAMP / 255, (RAMP / 255).astype(np.float32), RAMP.tolist(), RAMP.astype(np.int16)):
        assert torch.equal(decode_image(array, channels), expected)
    assert torch.equal(decode_image(RAMP > 99, channels), expected.gt(99) * torch.tensor(255, dtype=torch.uint8))
    assert decode_image(np.zeros((4, 4), np.int64), channels).eq(0).all()


@pytest.mark.parametrize(
    "array, sentence",
    [
        (
            np.array([[0, 65535]], np.uint16),
            "range of an image array of uint16 with values from 0 to 65535 cannot be known",
        ),
        (np.array([[-500, 500]], np.int16), "range of an image array of int16 with values from -500 to 500"),
        (np.array([[0, 1]]), "range of an image array of int64 with values from 0 to 1 cannot"),
        (np.array([[256]]), "range of an image array of int64 with values from 256 to 256"),
        (np.array([[0.0, np.nan]]), r"a float image must lie in \[0, 1\], found \[nan, nan\]"),
        (np.array([[0.0, 255.0]]), r"a float image must lie in \[0, 1\], found \[0, 255\]"),
        (np.array([[1j]]), "range of an image array of complex128"),
        (np.zeros((0, 4)), "must have 2 or 3 dimensions"),
    ],
)
def test_arrays_of_unknown_range_are_refused(array, sentence):
    with pytest.raises(ValueError, match=sentence):
        decode_image(array, 1)


def photograph(height, width, seed=0):
    """Waves of many lengths, as in nature: the shorter, the weaker."""
    generator = torch.Generator().manual_seed(seed)
    octaves = [3 * 2**i for i in range(8)]
    waves = [
        F.interpolate(torch.randn(1, 3, n, n, generator=generator), (height, width), mode="bicubic")[0]
        * (3 / n) ** 0.7
        for n in octaves
    ]
    pixels = torch.stack(waves).sum(0)
    pixels = (pixels - pixels.amin()) / (pixels.amax() - pixels.amin())
    return (255 * pixels).byte()


@pytest.mark.parametrize(
    "view, orientation",
    [(RandomResizedCropAndFlip(160, [0.5], [0.5]), 6), (two_views("simclr", 28), 1), (multi_crop(), 8)],
    ids=["one", "small", "of two sizes"],
)
def test_photographs_are_cropped_while_they_are_decoded(view, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    row = {"image": saved(photograph(1000, 1100).permute(1, 2, 0).numpy(), "JPEG", exif=exif, quality=92)}
    decoder, seeds = ImageDecoder("image", 3, view), torch.arange(3)
    whole = decoder.decode(row)
    assert whole.shape == ((3, 1000, 1100) if orientation == 1 else (3, 1100, 1000))
    expected = decoder.collate([whole] * 3, seeds)
    items = [decoder.decode(row | {"sample_seed": seed}) for seed in seeds.tolist()]
    assert all(sum(crops.numel() for crops in item.values()) < PHOTOGRAPH / 4 for item in items)
    batch = decoder.collate(items, seeds)
    assert batch.keys() == expected.keys() and "boxes" not in batch
    for name in ("images", "local_images") if "local_images" in batch else ("images",):
        assert batch[name].shape == expected[name].shape
        difference = (batch[name].float() - expected[name].float()).abs()
        assert 0 < difference.mean() < 1.5 and difference.max() <= 12, name  # of 255; the JPEG itself was reduced

    png = {"image": Image.fromarray(whole.permute(1, 2, 0).numpy())}  # what cannot be reduced is cropped all the same
    items = [decoder.decode(png | {"sample_seed": seed}) for seed in seeds.tolist()]
    assert torch.equal(decoder.collate(items, seeds)["images"], expected["images"])
    mixed = decoder.collate([whole[:, :20, :20], items[1]], seeds[:2])  # beside a small one
    for name, value in view(**mixed).items():
        torch.testing.assert_close(value[1], view(**expected)[name][1])


def test_evaluation_does_not_hold_photographs_whole():
    encoder = ImageEncoder(None, image_processor(16), "", 3, "")
    big, small = photograph(1100, 1000), photograph(50, 40)
    items = [encoder.read(image.numpy()) for image in (big, small, big)]
    assert [item.shape for item in items] == [(3, 16, 16), (3, 50, 40), (3, 16, 16)]
    expected = [encoder.preprocess([image])[0] for image in (big, small, big)]
    assert torch.equal(encoder.preprocess(items), torch.stack(expected))
    [shown] = first_images([{"image": big.numpy()}], "image", 3, 1)
    assert shown.shape == (3, 550, 500) and shown.dtype == torch.uint8
