"""Image columns: finding them, and decoding one row's value to a uint8 tensor."""

import io
import re

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from transformers import ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .loading import DataError, find_column, raw_column
from .views import CenterCrop

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values")
NUMBERED_FILE = re.compile(r".*[0-9].*[.](png|jpe?g|webp|bmp|gif|tiff?)", re.IGNORECASE)  # as a column of a .tar file
PIL_MODES = {1: "L", 3: "RGB"}
LARGE_VIEW = 96  # pixels a side from which views are cropped when the images are decoded
PHOTOGRAPH = 2**20  # pixels of an image that is never held whole beside others
FEWEST = 2  # pixels of a reduced photograph, along a side, for each of a view


def image_rows(data, image_column=None):
    """(data with the image column undecoded, that column's name)."""
    column = find_column(
        data, image_column, "image", IMAGE_COLUMNS, (datasets.Image, datasets.Array3D, datasets.Array2D), values=False
    )
    if image_column is None and NUMBERED_FILE.fullmatch(column):
        raise DataError(
            f"The .tar files have images such as 'photo.{column}', which all count as one sample, 'photo': rename them without "
            "dots but the last, photo_0001.png for instance."
        )
    kind = (data.features or {}).get(column)
    if isinstance(kind, datasets.List) and isinstance(kind.feature, datasets.Image):
        raise DataError(f"image_column '{column}' holds lists of images: expected one in a row.")
    if isinstance(kind, datasets.Value | datasets.ClassLabel) and kind.dtype not in ("binary", "large_binary"):
        raise DataError(f"image_column '{column}' holds {kind.dtype} values: expected images or arrays.")
    return raw_column(data, column, datasets.Image), column


def decode_image(value, channels):
    """One image as uint8 (channels, H, W).

    value: {"bytes", "path"}, bytes, a PIL image, or an array (H, W), (H, W, channels) or (channels, H, W). Raises ValueError
    or OSError if it is broken, or if what its values mean cannot be known.

    Pictures are seen as `datasets` and transformers' image processors show them: upright, as their EXIF data says; the first of
    several frames or pages; on white, where they are transparent; grey and colour made of each other, for 1 or 3 channels.
    Other counts need arrays. These are uint8, bool (black and white) or floats in [0, 1]; of other integers and of pictures of
    more than 8 bits only values from 0 to 255 are read.
    """
    value = _opened(value)
    return _picture_to_tensor(value, channels) if isinstance(value, Image.Image) else _array_to_tensor(value, channels)


def _opened(value):
    """A PIL image, of which nothing but the header has been read, or an array."""
    if value is None:
        raise ValueError(
            "the row has no image; in .tar shards, where some are called .jpg and others .png, only those of one kind are found"
        )
    path = None
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None:
            if path is None:
                raise ValueError("the row has neither the bytes of an image nor its path")
            with xopen(value["path"], "rb") as file:  # also inside archives and on the Hub
                value = file.read()
        else:
            value = value["bytes"]
    if isinstance(value, bytes):
        try:
            value = Image.open(io.BytesIO(value))
        except UnidentifiedImageError as error:  # which names the bytes, not their file
            raise ValueError(
                f"cannot identify image file {path!r}" if path else "cannot identify image file"
            ) from error
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
    return value if isinstance(value, Image.Image) else np.asarray(value)


def _picture_to_tensor(image, channels):
    if channels not in PIL_MODES:
        raise ValueError(f"a picture of mode {image.mode} cannot give num_channels={channels}")
    image.load()
    if image.getexif().get(Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        _check_depth(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # also before grey is made of it, as a release does
    pixels = np.array(image.convert(PIL_MODES[channels]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _check_depth(image):
    """Refuse pictures of 16 or 32 bits that PIL, and so each processor of transformers, would clip at 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (0 <= low and 1 < high <= 255 or low == high == 0):  # NaN neither
        raise ValueError(
            f"a picture of mode {image.mode} has values from {low:.7g} to {high:.7g}, of which the image processors of "
            "transformers keep 0 to 255: scale them to that, and save the pictures in 8 bits"
        )


def _array_to_tensor(array, channels):
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype == object or not array.size:
        raise ValueError(f"an image array must have 2 or 3 dimensions, found shape {array.shape}")
    if array.shape[0] not in (1, channels) and array.shape[-1] in (1, channels):
        array = array.transpose(2, 0, 1)
    if array.shape[0] == 1:
        array = array.repeat(channels, axis=0)
    if array.shape[0] != channels:
        raise ValueError(f"an image array of shape {array.shape} does not have num_channels={channels}")
    return torch.from_numpy(np.ascontiguousarray(_eight_bits(array)))


def _eight_bits(array):
    if array.dtype in (np.uint8, np.bool_):
        return array if array.dtype == np.uint8 else array * np.uint8(255)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # NaN neither
            raise ValueError(f"a float image must lie in [0, 1], found [{low:.3g}, {high:.3g}]")
        return (array * 255).round().astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer) or not (0 <= low and 1 < high <= 255 or low == high == 0):
        raise ValueError(
            f"the range of an image array of {array.dtype} with values from {low} to {high} cannot be known: expected uint8, "
            "bool, or floats in [0, 1]"
        )
    return array.astype(np.uint8)


def image_processor(size, channels=3, normalize=True, mean=None, std=None):
    """The evaluation transform as a native image processor that takes grey or colour images of any size.

    From 128 pixels on: shorter side to size x 256 / 224, then the centre, as the papers do on ImageNet; below, images
    are resized to size x size. Pixels are normalised by `mean` and `std`, one number a channel; where these are not given, three
    channels by ImageNet's statistics and others to [-1, 1]; with normalize=False they stay in [0, 1]. With other than three
    channels it takes images that have as many: grey is not made of colour, which a release leaves to its first layer.
    """
    crop = size >= 128
    if not normalize:
        mean, std = [0.0] * channels, [1.0] * channels
    elif mean is None:
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if channels == 3 else ([0.5] * channels,) * 2
    return ViTImageProcessor(
        size={"shortest_edge": round(size * 256 / 224)} if crop else {"height": size, "width": size},
        do_center_crop=crop,
        crop_size={"height": size, "width": size},
        resample=PILImageResampling.BICUBIC,
        do_normalize=normalize,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=channels == 3,
    )


class ImageDecoder:
    """Rows of an image column to the input of a view: uint8 images, crop boxes and seeds.

    Small crops are made later, on the device, by the view. For views of LARGE_VIEW pixels on, and from images of more
    than four times a view's area, or very long ones, they are made here, so that photographs do not travel in full. What
    is done with an image does not depend on the others in its batch.
    """

    def __init__(self, column, channels, view):
        self.column, self.channels, self.view = column, channels, view

    def without_augmentation(self):
        """The decoder of the same images as `image_processor` would show them."""
        return ImageDecoder(self.column, self.channels, CenterCrop(self.view.size, self.view.mean, self.view.std))

    def decode(self, row):
        """The image of a row, uint8 (C, H, W). Of a photograph in a row that has its `sample_seed` only the crops are kept,
        as {prefix: (V, C, h, w)}, and a JPEG is decoded no larger than they need."""
        image = _opened(row[self.column])
        is_picture = isinstance(image, Image.Image)
        area = image.width * image.height if is_picture else image.size // self.channels
        if area <= PHOTOGRAPH or "sample_seed" not in row:
            return decode_image(image, self.channels)
        boxes = None
        if is_picture:
            size = _upright_size(image)
            boxes = self._boxes([row["sample_seed"]], [size])[0]
            needed = FEWEST * torch.tensor([side for crops in self.view.crops.values() for side, _ in crops])
            reduction = int((boxes[:, 2:].amin(1) // needed).amin())  # Pillow takes 2, 4 or 8, or none of them
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
        image = decode_image(image, self.channels)
        if boxes is None:
            boxes = self._boxes([row["sample_seed"]], [image.shape[1:]])[0]
        elif tuple(image.shape[1:]) != size:
            boxes = _scaled(boxes, size, image.shape[1:])
        return self._cut(image, boxes)

    def _boxes(self, seeds, sizes):
        """(N, V, 4) for images of these (height, width)."""
        heights, widths = torch.tensor(sizes).T
        return self.view.boxes(torch.as_tensor(seeds), heights, widths)

    def _cut(self, image, boxes):
        """All crops of an image by their prefix. boxes: (V, 4)."""
        crops = self.view.crops
        parts = boxes.split([len(own) for own in crops.values()])
        return {prefix: _crops(image, own.tolist(), crops[prefix]) for prefix, own in zip(crops, parts, strict=True)}

    def collate(self, images, sample_seeds):
        """images: (N, 1, C, H, W), shared by all V crops of the view, or (N, V, C, H, W), padded to one size. boxes: (N, V, 4),
        left out if all images are crops of the view's size. Crops of another size have their own, under the view's prefix
        (`crops`), images only where they are not the shared ones."""
        size = self.view.size
        sizes = [(size, size) if isinstance(image, dict) else tuple(image.shape[1:]) for image in images]
        boxes = self._boxes(sample_seeds, sizes)
        heights, widths = torch.tensor(sizes).T
        large = (heights * widths > 4 * size**2) | (torch.maximum(heights, widths) > 8 * size) | (size >= LARGE_VIEW)
        large |= torch.tensor([isinstance(image, dict) for image in images])
        cut = [
            (image if isinstance(image, dict) else self._cut(image, own)) if is_large else None
            for image, own, is_large in zip(images, boxes, large.tolist(), strict=True)
        ]
        counts = [len(crops) for crops in self.view.crops.values()]
        batch = {"sample_seeds": sample_seeds}
        for (prefix, crops), own in zip(self.view.crops.items(), boxes.split(counts, dim=1), strict=True):
            if not prefix or large.any():
                batch[f"{prefix}images"] = _padded(
                    [image[None] if parts is None else parts[prefix] for image, parts in zip(images, cut, strict=True)]
                )
            if not large.all():
                side = crops[0][0]
                whole = torch.tensor([0, 0, side, side])
                batch[f"{prefix}boxes"] = torch.where(large[:, None, None], whole, own)
        return batch


def _upright_size(image):
    """(height, width) of a PIL image as its EXIF orientation shows it."""
    turned = image.getexif().get(Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _scaled(boxes, size, new_size):
    """Boxes (V, 4) in an image of `size` (height, width), where it has been reduced to `new_size`."""
    ratio = torch.tensor(new_size) / torch.tensor(size)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    start, end = (start * ratio).round().long(), (end * ratio).round().long()
    return torch.cat([start, end - start], dim=1)


def _crops(image, boxes, crops):
    """(V, C, size, size) of an image (C, H, W). crops: (size, interpolation) of each box."""
    made = []
    for (top, left, height, width), (size, interpolation) in zip(boxes, crops, strict=True):
        crop = image[None, :, top : top + height, left : left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)  # what `interpolate` has a fast path for
        made.append(F.interpolate(crop, size, mode=interpolation, antialias=True))
    return torch.cat(made)


def _padded(images):
    """(N, V, C, H, W) of images (1 or V, C, h, w), with nothing at the right and below."""
    count, height, width = (max(image.shape[axis] for image in images) for axis in (0, 2, 3))
    for i, image in enumerate(images):
        if image.shape[2:] != (height, width):
            image = F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))
        images[i] = image.expand(count, -1, -1, -1)
    return torch.stack(images)


__all__ = ["IMAGE_COLUMNS", "ImageDecoder", "decode_image", "image_processor", "image_rows"]
