"""Image columns: finding them, and decoding one row's value to a uint8 tensor."""

import io

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from datasets.utils.file_utils import xopen
from PIL import Image
from transformers import ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .loading import DataError, find_column, raw_column
from .views import CenterCrop

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values")
PIL_MODES = {1: "L", 3: "RGB"}
LARGE_VIEW = 96  # pixels a side from which views are cropped when the images are decoded


def image_rows(data, image_column=None):
    """(data with the image column undecoded, that column's name)."""
    column = find_column(
        data, image_column, "image", IMAGE_COLUMNS, (datasets.Image, datasets.Array3D, datasets.Array2D)
    )
    kind = (data.features or {}).get(column)
    if isinstance(kind, datasets.Value | datasets.ClassLabel) and kind.dtype not in ("binary", "large_binary"):
        raise DataError(f"image_column '{column}' holds {kind.dtype} values: expected images or arrays.")
    return raw_column(data, column, datasets.Image), column


def decode_image(value, channels):
    """One image as uint8 (channels, H, W).

    value: {"bytes", "path"}, bytes, a PIL image, or an array (H, W), (H, W, channels) or (channels, H, W). Grey and
    colour pictures are converted to 1 or 3 channels; other counts need arrays. Raises ValueError or OSError if broken.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None:
            with xopen(value["path"], "rb") as file:  # also inside archives and on the Hub
                value = file.read()
        else:
            value = value["bytes"]
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    if isinstance(value, Image.Image):
        if value.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip at 255
            value = Image.fromarray((np.asarray(value).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if channels not in PIL_MODES:
            raise ValueError(f"a picture of mode {value.mode} cannot give num_channels={channels}")
        pixels = np.array(value.convert(PIL_MODES[channels]))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)
    return _array_to_tensor(np.asarray(value), channels)


def _array_to_tensor(array, channels):
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype == object:
        raise ValueError(f"an image array must have 2 or 3 dimensions, found shape {array.shape}")
    if array.shape[0] not in (1, channels) and array.shape[-1] in (1, channels):
        array = array.transpose(2, 0, 1)
    if array.shape[0] == 1:
        array = array.repeat(channels, axis=0)
    if array.shape[0] != channels:
        raise ValueError(f"an image array of shape {array.shape} does not have num_channels={channels}")
    if np.issubdtype(array.dtype, np.floating):
        if array.min() < 0 or array.max() > 1:
            raise ValueError(f"a float image must lie in [0, 1], found [{array.min():.3g}, {array.max():.3g}]")
        array = (array * 255).round()
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.uint8)))


def image_processor(size, channels=3, normalize=True):
    """The evaluation transform as a native image processor that takes grey or colour images of any size.

    From 128 pixels on: shorter side to size x 256 / 224, then the centre, as the papers do on ImageNet; below, images
    are resized to size x size. Three channels are normalised by ImageNet's statistics, others to [-1, 1]; with
    normalize=False pixels stay in [0, 1].
    """
    crop = size >= 128
    if normalize and channels == 3:
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    else:
        mean, std = ([0.5] * channels, [0.5] * channels) if normalize else ([0.0] * channels, [1.0] * channels)
    return ViTImageProcessor(
        size={"shortest_edge": round(size * 256 / 224)} if crop else {"height": size, "width": size},
        do_center_crop=crop,
        crop_size={"height": size, "width": size},
        resample=PILImageResampling.BICUBIC,
        do_normalize=normalize,
        image_mean=mean,
        image_std=std,
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
        return decode_image(row[self.column], self.channels)

    def collate(self, images, sample_seeds):
        """images: (N, 1, C, H, W), shared by all V crops of the view, or (N, V, C, H, W), padded to one size. boxes: (N, V, 4),
        left out if all images are crops of the view's size. Crops of another size have their own, under the view's prefix
        (`crops`), images only where they are not the shared ones."""
        heights = torch.tensor([image.shape[1] for image in images])
        widths = torch.tensor([image.shape[2] for image in images])
        size = self.view.size
        large = (heights * widths > 4 * size**2) | (torch.maximum(heights, widths) > 8 * size) | (size >= LARGE_VIEW)
        counts = [len(crops) for crops in self.view.crops.values()]
        boxes = self.view.boxes(sample_seeds, heights, widths).split(counts, dim=1)
        batch = {"sample_seeds": sample_seeds}
        for (prefix, crops), own in zip(self.view.crops.items(), boxes, strict=True):
            if not prefix or large.any():
                cut = [
                    _crops(image, image_boxes, crops) if is_large else image[None]
                    for image, image_boxes, is_large in zip(images, own.tolist(), large.tolist(), strict=True)
                ]
                batch[f"{prefix}images"] = _padded(cut)
            if not large.all():
                size = crops[0][0]
                whole = torch.tensor([0, 0, size, size])
                batch[f"{prefix}boxes"] = torch.where(large[:, None, None], whole, own)
        return batch


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
