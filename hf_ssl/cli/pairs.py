"""Images with captions as a run's data, their tokenizer, and the towers that read them."""

import logging

import torch
from accelerate.utils import gather_object
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTextConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderProcessor,
)

from ..data import PairDecoder, RandomSquareCrop, pair_rows, train_bpe
from ..data.pairs import captions, tags
from ..errors import InputError
from ..evaluation.encoders.images import processor_view
from ..evaluation.encoders.loading import load_config, load_weights, one_line
from ..evaluation.processes import process_state
from ..methods._backbone import check_backbone
from ..training.checkpoints import from_main
from .images import first_size, in_pixels, view_size
from .parse import checked, override_config
from .rows import log_rows, training_rows
from .text import named_tokenizer, take_vocabulary

logger = logging.getLogger(__name__)


def choose_towers(config, args):
    """Put the encoders that `--vision_tower` and `--text_tower` name in the place of the preset's; `load_towers` then finds
    their weights by the name_or_path of their configs."""
    native, parts = config.backbone_config, ("vision", "text")
    named = {part: name for part in parts if (name := getattr(args, f"{part}_tower"))}
    if not named:
        return
    if config.name_or_path or native.name_or_path:
        raise InputError(f"{next(iter(named))}_tower does not go with backbone '{args.backbone}', which has its own.")
    towers = {part: getattr(native, f"{part}_config") for part in parts}
    for part, name in named.items():
        try:
            found = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(f"{part}_tower '{name}' is not a folder or Hub id of a model of transformers.") from error
        towers[part] = getattr(found, f"{part}_config", found)
        towers[part].name_or_path = name
        _check_tower(part, name, towers[part])
    alike = [config.model_type for config in towers.values()] == ["clip_vision_model", "clip_text_model"]
    kind = type(native) if alike else VisionTextDualEncoderConfig
    config.backbone_config = kind(
        vision_config=towers["vision"], text_config=towers["text"], projection_dim=native.projection_dim,
        logit_scale_init_value=native.logit_scale_init_value,
    )  # fmt: skip
    override_config(config, args.config_overrides)  # once more: those of the towers were lost with the preset's


def _check_tower(part, name, config):
    """Refuse what has no pooled features of a width that its config tells."""
    try:
        if not hasattr(config, "hidden_size"):
            raise ValueError("its config has no hidden_size")
        if part == "vision":
            check_backbone(config)
        else:
            with torch.device("meta"):  # shapes only
                output = AutoModel.from_config(config).eval()(torch.zeros(1, 4, dtype=torch.long))
            if getattr(output, "pooler_output", None) is None:
                raise ValueError(f"model_type '{config.model_type}' has none")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{part}_tower '{name}' gives no pooler_output of a width hidden_size: {one_line(error)}."
        ) from error


def load_towers(model):
    """Read the weights of the towers that `choose_towers` put in."""
    for part in ("vision", "text"):
        tower, config = getattr(model.clip, f"{part}_model"), getattr(model.config.backbone_config, f"{part}_config")
        if name := config.name_or_path:
            weights = _tower_weights(part, name, type(tower))
            checked(lambda tower=tower, weights=weights: tower.load_state_dict(weights))
            config.name_or_path = ""  # as in `build_model`


def _tower_weights(part, name, tower_class):
    """All weights of the tower, as the checkpoint has them: one that it lacks would be random."""
    what = f"{part}_tower '{name}'"
    if load_config(name, what).model_type == "vision-text-dual-encoder":
        tower, missing = load_weights(AutoModel, name, what, dtype=torch.float32)
        tower = getattr(tower, f"{part}_model")
        missing = {key for key in missing if key.startswith(f"{part}_model.")}
    else:
        tower, missing = load_weights(tower_class, name, what, dtype=torch.float32)
    if missing := sorted(missing):
        raise InputError(f"{part}_tower '{name}' lacks {len(missing)} of its weights, for example '{missing[0]}'.")
    return tower.state_dict()


def pair_data(args):
    """(rows, image column, text column, tags column) of the pairs that `--dataset_name` names."""
    if args.dataset_name is None and args.text_column is None:
        args.text_column, args.tags_column = "name", args.tags_column or "keywords"
    rows = training_rows(args, "emoji")
    found = pair_rows(rows, args.image_column, args.text_column, args.tags_column)
    log_rows(args, rows, "images with texts", in_pixels(first_size(*found[:2])))
    return found


def pair_tokenizer(config, args, rows, columns):
    """The tokenizer that a resumed run began with, that `--tokenizer_name` names or the text tower brings, or one learnt
    from the captions and their tags. `config` takes over its vocabulary. Called by every process."""
    native = config.backbone_config.text_config
    begun_from = config.name_or_path or config.backbone_config.name_or_path or native.name_or_path
    tokenizer, name = named_tokenizer(args, begun_from)
    if tokenizer is None:
        readers = {column: read for column, read in zip(columns, (captions, tags), strict=True) if column}
        blocks = rows.select_columns(list(readers)).iter(1000)
        cells = ((read, cell) for block in blocks for column, read in readers.items() for cell in block[column])
        texts = (text for read, cell in cells for text in read(cell))
        tokenizer = from_main(process_state(), lambda: train_bpe(texts, args.vocab_size, args.max_seq_length))
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if None in (end, tokenizer.pad_token_id):
        raise InputError(f"tokenizer_name '{name}' has no token for the end of a text, or none for padding.")
    take_vocabulary(native, tokenizer, name, begun_from)
    if not begun_from:
        native.bos_token_id, native.eos_token_id = tokenizer.bos_token_id, end
        if end == 2 and isinstance(native, CLIPTextConfig):
            raise InputError(
                f"tokenizer_name '{name}' ends texts by token 2, by which transformers' CLIP means the highest token: choose "
                "another, or none to learn one."
            )
    if args.max_seq_length > native.max_position_embeddings:
        raise InputError(
            f"max_seq_length {args.max_seq_length} exceeds the text tower's {native.max_position_embeddings} positions: "
            "lower it, or set --config_overrides backbone_config.text_config.max_position_embeddings."
        )
    return tokenizer


def pair_processor(config, args, tokenizer):
    """The tokenizer with the image processor of the vision tower, or CLIP's for one that begins anew."""
    native = config.backbone_config
    size = view_size(config, args)
    if name := config.name_or_path or native.name_or_path or native.vision_config.name_or_path:
        try:
            images = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"vision_tower '{name}' has no image processor that can be read: {one_line(error)}."
            ) from error
    else:
        images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return (CLIPProcessor if native.model_type == "clip" else VisionTextDualEncoderProcessor)(images, tokenizer)


def pair_decoder(config, args, columns, processor):
    """What reads the rows of `pair_data` as `processor` does, but for CLIP's random squares."""
    images, channels = processor.image_processor, config.backbone_config.vision_config.num_channels
    if channels != len(images.image_mean):
        raise InputError(
            f"backbone_config.vision_config.num_channels={channels} does not fit the image processor, which makes pictures of "
            f"{len(images.image_mean)} channels: leave it out of --config_overrides."
        )
    view = RandomSquareCrop(**processor_view(images, channels), scale=(args.min_crop_scale or 1.0, 1.0))
    return PairDecoder(*columns, channels, view, processor.tokenizer, args.max_seq_length)


def report_cut(decoder):
    """Tell how many captions a run has cut since it was started, or taken up. Called by every process."""
    cut, seen = (sum(counts) for counts in zip(*gather_object([(int(decoder.cut), decoder.seen)]), strict=True))
    if cut:
        logger.warning(
            "%d of %d captions were longer than max_seq_length=%d and were cut.", cut, seen, decoder.max_seq_length
        )
