"""What a picture's pixels mean: one rule for each kind of file in training, in evaluation and in a release's processor."""

import io
import logging
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from hf_ssl.scripts import pretrain_rotation
from PIL import Image
from test_views import multi_crop, two_views
from transformers import AutoImageProcessor, AutoModel, BertConfig, ResNetConfig, ResNetModel, pipeline

import hf_ssl
from hf_ssl import RotationConfig, RotationForPreTraining
from hf_ssl.cli.images import choose_processor, log_network
from hf_ssl.cli.parse import parse_arguments
from hf_ssl.cli.pretrain import Preset, set_image_size
from hf_ssl.data import (
    DataError,
    ImageDecoder,
    RandomResizedCropAndFlip,
    decode_image,
    image_processor,
    image_rows,
    load_split,
)
from hf_ssl.data.images import PHOTOGRAPH
from hf_ssl.data.pairs import check_texts
from hf_ssl.errors import InputError
from hf_ssl.evaluation.encoders.images import ImageEncoder, first_images, load_encoder, spread_images
from hf_ssl.evaluation.encoders.loading import random_encoder, released_encoder
from hf_ssl.hub.release import released_processor
from hf_ssl.training.arguments import TwoViewArguments

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
TIFFS = (
    "CMYK",
    "I;16",
    "I",
    "F",
    *(["YCbCr"] if int(PIL.__version__.split(".")[0]) >= 13 else []),
)  # 12 cannot read its own
FILES |= {mode: saved(Image.fromarray(COLOUR).convert(mode), "TIFF") for mode in TIFFS}
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


def test_pictures_show_rows_spread_over_the_data_without_broken_ones():
    images = [Image.fromarray(np.full((4, 4), row, dtype=np.uint8)) for row in range(80)]
    rows = [{"image": {"bytes": saved(image), "path": None}} for image in images]
    for row in (10, 11, *range(30, 40)):  # the beginning of one part, and the whole of another
        rows[row]["image"]["bytes"] = b"broken"
    data = datasets.Dataset.from_list(rows)
    shown = {row: int(image[0, 0, 0]) for row, image in spread_images(data, "image", 1, 8).items()}
    assert shown == {row: row for row in (0, 12, 20, 40, 50, 60, 70)}
    first = spread_images(data.to_iterable_dataset(), "image", 1, 8)  # of a stream
    assert {row: int(image[0, 0, 0]) for row, image in first.items()} == {row: row for row in range(8)}
    with pytest.raises(InputError, match="holds no image that can be decoded"):
        spread_images(data.select(range(30, 40)), "image", 1, 2)


STAGES = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
TINY_VIT = dict(
    model_type="vit", image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
)
GREY_METHODS = {
    "mae": lambda: hf_ssl.MAEForPreTraining(
        hf_ssl.MAEConfig(
            backbone_config=TINY_VIT | {"num_channels": 1, "intermediate_size": 32}, decoder_hidden_size=8,
            decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
        )
    ),
    "rotation": lambda: hf_ssl.RotationForPreTraining(
        hf_ssl.RotationConfig(backbone_config=dict(model_type="ssl_resnet", num_channels=1, **STAGES))
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", GREY_METHODS)
def test_a_release_of_one_channel_makes_grey_of_colour(tmp_path, method):
    """By its processor, by `pipeline` and in evaluation, at its root and in its pretraining part."""
    torch.manual_seed(0)
    model, processor = GREY_METHODS[method]().eval(), image_processor(16, 1)
    released_encoder(model.export_encoder()).save_pretrained(tmp_path)
    released_processor(processor).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "pretraining")
    native, read = AutoModel.from_pretrained(tmp_path).eval(), AutoImageProcessor.from_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    encoder, whole = load_encoder(tmp_path), load_encoder(tmp_path / "pretraining")
    assert encoder.channels == whole.channels == 3
    for name in ("L", "RGB", "P", "LA", "RGBA", "CMYK", "1", "orientation 6"):
        value = {"bytes": FILES[name], "path": None}
        trained = processor([decode_image(value, 1)], return_tensors="pt", input_data_format="channels_first")
        picture = datasets.Image().decode_example(value)
        pixels = read(picture, return_tensors="pt").pixel_values
        grey = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        levels = 0.001 if name in ("L", "1", "LA") else 1.1  # of 255: where training makes grey, it rounds
        torch.testing.assert_close(grey, trained.pixel_values, rtol=0, atol=levels / 127.5)
        with torch.no_grad():
            found = native(pixels).pooler_output.flatten(1)
            torch.testing.assert_close(found, model.embed(grey), rtol=0, atol=1e-5)
            for each in (encoder, whole):
                torch.testing.assert_close(each(each.preprocess([each.read(value)])), found, rtol=0, atol=1e-5)
            if name not in ("LA", "RGBA"):  # whose transparency `pipeline` drops
                torch.testing.assert_close(torch.tensor(extract(picture)).flatten(1), found, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert random_encoder(encoder, 0)(encoder.preprocess([encoder.read(value)])).shape == found.shape


def test_what_begins_from_a_release_sees_its_images(tmp_path, monkeypatch, caplog):
    """Another method's: its size and normalisation, unless another size is asked for; run.json has the size."""
    ResNetModel(ResNetConfig(**STAGES)).save_pretrained(tmp_path / "bare")
    ResNetModel(ResNetConfig(**STAGES)).save_pretrained(tmp_path / "release")
    image_processor(28, mean=[0.1, 0.2, 0.3], std=[0.4] * 3).save_pretrained(tmp_path / "release")
    ResNetModel(ResNetConfig(**STAGES)).save_pretrained(tmp_path / "plain")
    image_processor(40, normalize=False).save_pretrained(tmp_path / "plain")

    def chosen(folder, *arguments, **kwargs):
        flags = ["--backbone", str(tmp_path / folder), "--output_dir", str(tmp_path / "run"), *arguments]
        monkeypatch.setattr("sys.argv", ["pretrain", *flags])
        presets = {"paper": Preset({}, dict(views="simclr"), "224 px")}
        config, args = parse_arguments(hf_ssl.SimCLRForPreTraining, presets, TwoViewArguments)
        processor = choose_processor(config, args, **kwargs)
        return processor.crop_size["height"], args.image_size, list(processor.image_mean), list(processor.image_std)

    assert chosen("release", normalize=False) == (28, 28, [0.1, 0.2, 0.3], [0.4] * 3)
    assert chosen("release", normalize=False, of_colours=True) == (28, 28, [0.0] * 3, [1.0] * 3)
    assert chosen("release", "--image_size", "32")[:3] == (32, 32, [0.1, 0.2, 0.3])
    assert chosen("plain") == (40, 40, [0.0] * 3, [1.0] * 3)
    assert chosen("bare", normalize=False) == (224, None, [0.0] * 3, [1.0] * 3)
    assert "has no image processor: size and normalisation are those of a new network" in caplog.text
    with pytest.raises(
        InputError, match="num_channels=5 does not fit backbone '.*', whose image processor has 3 channels"
    ):
        chosen("release", "--config_overrides", "backbone_config.num_channels=5")
    with pytest.raises(InputError, match="num_channels must be at least 1, found 0"):
        chosen("bare", "--config_overrides", "backbone_config.num_channels=0")


def test_pictures_of_two_kinds_in_shards_are_named(tmp_path):
    for folder, names in (("mixed", ("0.jpg", "1.png")), ("late", [f"{i}.jpg" for i in range(6)] + ["6.png"])):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "0.tar", "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(FILES["RGB"])
                tar.addfile(info, io.BytesIO(FILES["RGB"]))
    for streaming in (False, True):
        with pytest.raises(DataError, match="have not all the same extensions, such as jpg in some and png in others"):
            load_split(str(tmp_path / "mixed"), streaming=streaming)
    rows = list(load_split(str(tmp_path / "late"), streaming=True).cast_column("jpg", datasets.Image(decode=False)))
    assert len(rows) == 7
    with pytest.raises(
        ValueError, match="the row has no image; in .tar shards, where some are called .jpg and others .png"
    ):
        decode_image(rows[6]["jpg"], 3)


def test_a_preset_that_shrinks_photos_names_the_larger_ones(caplog):
    presets = pretrain_rotation.PRESETS
    with torch.device("meta"):
        model = RotationForPreTraining(RotationConfig(**presets["resnet8x2"].config))
    args = SimpleNamespace(backbone="resnet8x2", dataset_name="photos")
    for first in (None, (28, 28), (400, 50)):
        log_network(model, args, 28, presets, first)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    log_network(model, args, 28, presets, (200, 150))
    assert "200 x 150 px are shrunk to 28 px" in caplog.text and "--backbone resnet18 (96 px" in caplog.text


@pytest.mark.parametrize(
    "value, message",
    [
        ({"bytes": b"<html>", "path": "cats/1.jpg"}, "cannot identify image file 'cats/1.jpg'"),
        ({"bytes": None, "path": None}, "neither the bytes of an image nor its path"),
    ],
)
def test_a_broken_image_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        decode_image(value, 3)


def test_what_is_no_image_encoder_and_a_damaged_processor_are_refused(tmp_path):
    with pytest.raises(InputError, match="backbone 'bert' is of model_type 'bert': expected an image encoder"):
        choose_processor(SimpleNamespace(backbone_config=BertConfig()), SimpleNamespace(backbone="bert"))
    encoder = ResNetConfig(num_channels=3, name_or_path=str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{")
    config = SimpleNamespace(backbone_config=encoder, name_or_path="")
    with pytest.raises(InputError, match="has a preprocessor_config.json that cannot be read"):
        choose_processor(config, SimpleNamespace(backbone=str(tmp_path), image_size=None))


def test_columns_of_several_images_or_of_no_texts_are_refused():
    several = datasets.Features({"image": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": [[]], "label": [1]}, features=several)
    with pytest.raises(DataError, match="image_column 'image' holds lists of images: expected one in a row"):
        image_rows(data)
    with pytest.raises(DataError, match="class_texts 'label' holds int64 values: expected texts"):
        check_texts(data, "label", "class_texts", "texts")


def test_a_model_that_makes_images_has_the_size_of_the_run():
    config = hf_ssl.ContextEncoderConfig(backbone_config=dict(model_type="resnet", **STAGES))
    set_image_size(config, 32)
    assert config.image_size == 32
    with pytest.raises(InputError, match="image_size 48 does not fit the model, which has 32: leave out --image_size"):
        set_image_size(config, 48)
    other = hf_ssl.SimCLRConfig(backbone_config=dict(model_type="resnet", **STAGES))
    set_image_size(other, 32)
    assert not hasattr(other, "image_size")
