"""Images as a run's data, their views, and the small encoders of the default recipes."""

import logging
from dataclasses import replace

from datasets import Dataset
from transformers import AutoImageProcessor
from transformers.utils import cached_file

from ..data import VIEWS, ImageDecoder, RandomResizedCropAndFlip, Views, decode_image, image_processor, image_rows
from ..data.loading import is_embedded
from ..errors import InputError
from ..evaluation.encoders.images import processor_view, spread_images
from .rows import log_rows, training_rows

logger = logging.getLogger(__name__)
COLOURS_SAMPLE = 64  # images looked at to see whether all are grey


def image_data(args, channels, view):
    """(rows, their decoder) of the images that `--dataset_name` names."""
    rows, column = image_rows(training_rows(args), args.image_column)
    log_rows(args, rows, "images", in_pixels(first_size(rows, column)))
    return rows.select_columns([column]), ImageDecoder(column, channels, view)


def first_size(rows, column):
    """(width, height) of the first image; None of a stream, or where it cannot be read."""
    if not isinstance(rows, Dataset):
        return None
    try:
        _, height, width = decode_image(rows[0][column], 3).shape
    except Exception:  # broken rows are counted when they are read
        return None
    return width, height


def check_colours(rows, decoder):
    """Raises InputError if the images have no colours."""
    images = spread_images(rows, decoder.column, 3, COLOURS_SAMPLE).values()
    if all((image == image[:1]).all() for image in images):
        raise InputError(
            f"image_column '{decoder.column}' holds grey images, all {len(images)} that were looked at: expected colours, which "
            "the method learns to tell."
        )


def in_pixels(first):
    """A size as `log_rows` tells it."""
    return first and "the first {} x {} px".format(*first)


def choose_processor(config, args, normalize=True, of_colours=False):
    """The image processor of a run: of the size and normalisation of the one that `--backbone` brings, unless --image_size asks
    for another size; else as the method has it. normalize: else pixels stay in [0, 1]. of_colours: they do in any case, for
    methods that compute colours."""
    encoder = config.backbone_config
    if not hasattr(encoder, "num_channels"):
        raise InputError(
            f"backbone '{args.backbone}' is of model_type '{encoder.model_type}': expected an image encoder."
        )
    channels, begun_from = encoder.num_channels, config.name_or_path or encoder.name_or_path
    if channels < 1:
        raise InputError(f"backbone_config.num_channels must be at least 1, found {channels}.")
    given = _given_view(begun_from) if begun_from else None
    if given is None:
        return image_processor(view_size(config, args), channels, normalize)
    if not getattr(encoder, "image_size", None):
        args.image_size = args.image_size or given["size"]  # for run.json, and whoever goes on from there
    size, mean, std = view_size(config, args), given["mean"], given["std"]
    if (mean, std) == ([0.0], [1.0]) or of_colours:
        return image_processor(size, channels, normalize=False)
    if channels == 1 and len(set(mean)) == len(set(std)) == 1:  # a release of one channel, see `released_encoder`
        mean, std = mean[:1], std[:1]
    if len(mean) != channels:
        raise InputError(
            f"backbone_config.num_channels={channels} does not fit backbone '{begun_from}', whose image processor has "
            f"{len(mean)} channels: leave it out of --config_overrides."
        )
    return image_processor(size, channels, True, mean, std)


def _given_view(name):
    """What the image processor of a folder or Hub id does, as `processor_view` has it; None if it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        if cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False):
            raise InputError(
                f"backbone '{name}' has a preprocessor_config.json that cannot be read: {error}."
            ) from error
        logger.warning(
            "backbone '%s' has no image processor: size and normalisation are those of a new network.", name
        )
        return None
    return processor_view(processor, len(processor.image_mean) if processor.do_normalize else 3)


def log_network(model, args, size, presets, first):
    """One line about what is trained, beside the one about the data, and another if images, the first of which has the size
    `first`, are shrunk by half or more for a small preset: which ones see more of them."""
    encoder, millions = model.config.backbone_config.model_type, model.base_model.num_parameters() / 1e6
    logger.info("network: %s (%s), %.2f M parameters, images of %d px", args.backbone, encoder, millions, size)
    larger = [f"{name} ({preset.purpose})" for name, preset in presets.items() if preset.image_size > size]
    is_users = args.dataset_name and not is_embedded(args.dataset_name)
    if is_users and args.backbone in presets and larger and first and min(first) >= 2 * size:
        logger.warning(
            "Images of %d x %d px are shrunk to %d px for backbone '%s': --backbone %s would see more of them.",
            *first, size, args.backbone, ", ".join(larger[:-1]) + " or " * (len(larger) > 1) + larger[-1],
        )  # fmt: skip


def view_size(config, args):
    """The side of a view in pixels."""
    name, encoder = "backbone_config", config.backbone_config
    if hasattr(encoder, "vision_config"):
        name, encoder = "backbone_config.vision_config", encoder.vision_config
    fixed = getattr(encoder, "image_size", None)
    fixed = fixed[0] if isinstance(fixed, list | tuple) else fixed
    if fixed and args.image_size and args.image_size != fixed:
        raise InputError(
            f"image_size {args.image_size} does not fit the backbone, which has {fixed}: set "
            f"--config_overrides {name}.image_size={args.image_size}."
        )
    return args.image_size or fixed or 224


def one_view(args, size, processor):
    """Of the augmentation that `--views` names the first view; where none is named, a random crop and a flip."""
    if getattr(args, "views", None):
        views = two_views(args, size, processor)
        return replace(views, recipes=views.recipes[:1])
    scale = (args.min_crop_scale or 0.2, 1.0)
    return RandomResizedCropAndFlip(size, processor.image_mean, processor.image_std, scale)


def last_view(args, size, processor):
    """Of the augmentation that `--views` names the last view: of weak and strong ones the strong one."""
    views = two_views(args, size, processor)
    return replace(views, recipes=views.recipes[-1:])


def two_views(args, size, processor):
    """The augmentation that `--views` names, with the changes that other arguments make."""
    given = {name: getattr(args, name) for name in ("jitter_strength", "blur_probability", "solarize_probability")}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.min_crop_scale is not None:
        changes["scale"] = (args.min_crop_scale, 1.0)
    recipes = [replace(recipe, **changes) for recipe in VIEWS[args.views]]
    return Views(size, processor.image_mean, processor.image_std, recipes)


def resnet8(width):
    """Three stages of one block, for images of about 32 pixels: the `backbone_config` of the default recipes."""
    sizes = dict(embedding_size=width // 2, hidden_sizes=[width, 2 * width, 4 * width], depths=[1, 1, 1])
    return dict(model_type="ssl_resnet", **sizes, layer_type="basic", downsample_in_first_stage=True)


# for photos between the two sizes of the papers and the laptop, 64 to 128 px: transformers' own ResNet
RESNET18 = dict(
    model_type="resnet", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
)

RESNET50 = dict(model_type="resnet")  # transformers' default


def vit(width, layers, heads, image_size=224, patch_size=16):
    """A ViT's `backbone_config`."""
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    return dict(model_type="vit", image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6, **sizes)
