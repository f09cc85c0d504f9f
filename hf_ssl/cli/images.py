"""Images as a run's data, their views, and the small encoders of the default recipes."""

from dataclasses import replace

from ..data import VIEWS, ImageDecoder, RandomResizedCropAndFlip, Views, image_rows, load_split
from ..errors import InputError


def image_data(args, channels, view):
    """(rows, their decoder) of the images that `--dataset_name` names."""
    rows = load_split(
        args.dataset_name, args.train_split, config_name=args.dataset_config_name, streaming=args.streaming
    )
    rows, column = image_rows(rows, args.image_column)
    return rows.select_columns([column]), ImageDecoder(column, channels, view)


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
    """A random crop and a flip."""
    scale = (args.min_crop_scale or 0.2, 1.0)
    return RandomResizedCropAndFlip(size, processor.image_mean, processor.image_std, scale)


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


def vit(width, layers, heads, image_size=224, patch_size=16):
    """A ViT's `backbone_config`."""
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    return dict(model_type="vit", image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6, **sizes)
