"""The command line of the pretraining scripts: a preset's recipe as defaults, flags on top."""

import difflib
import json
import logging
import sys
import warnings
from pathlib import Path

import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, HfArgumentParser, PreTrainedConfig
from transformers.utils import cached_file

from .checkpoints import RUN_FILE, kept_tokenizer
from .data import (
    TWO_VIEWS,
    ImageDecoder,
    TokenBatches,
    TwoViews,
    WaveformBatches,
    WindowBatches,
    audio_rows,
    audio_windows,
    image_rows,
    load_split,
    sentence_rows,
    speaker_column,
    text_rows,
    token_rows,
    train_wordpiece,
)
from .data.words import Corpus, word_tokenizer
from .errors import InputError
from .evaluation.processes import process_state
from .transfer import local_checkpoint


def parse_arguments(config_class, recipes, arguments_class, description=None):
    """(config, arguments of `arguments_class`) from the command line.

    recipes: preset name -> (config values, training values); the first is the default. `--backbone` chooses a preset, a
    release of the method to go on from (with its run's training values), or any encoder of transformers, by model_type to
    begin anew or by Hub id or folder to go on from (with the last preset's).
    """
    set_up_logging()
    parser = HfArgumentParser(arguments_class, description=description)
    options = parser._option_string_actions
    options["--backbone"].help = f"One of {list(recipes)}; a release, or any encoder's id or type."
    backbone = parser.parse_known_args()[0].backbone or next(iter(recipes))
    training_values = list(recipes.values())[-1][1]
    if backbone in recipes:
        values, training_values = recipes[backbone]
        config = _checked(lambda: config_class(**values))
    elif (config := _release_config(config_class, backbone)) is not None:
        training_values = training_values | _release_values(backbone, recipes)
    else:
        encoder = _encoder_config(backbone, recipes)
        config = _checked(lambda: config_class(backbone_config=encoder))
    parser.set_defaults(**{"backbone": backbone} | training_values)
    given, unknown = parser.parse_known_args()
    if unknown:
        close = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise InputError(
            f"The argument {unknown[0]} is unknown: " + (f"did you mean {close[0]}?" if close else "see --help.")
        )
    args = arguments_class(**vars(given))
    return override_config(config, args.config_overrides), args


def _release_values(name, recipes):
    """How a release was trained, as far as presets say it; nothing where the release does not tell."""
    try:
        file = cached_file(name, RUN_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError:
        file = None
    arguments = json.loads(Path(file).read_text())["arguments"] if file else {}
    named = {key for _, training_values in recipes.values() for key in training_values} - {"output_dir"}
    return {key: value for key, value in arguments.items() if key in named}


def _release_config(config_class, name):
    """The config of a release of this method; None for anything else, another method's release too: it has an encoder."""
    quiet = {"_raise_exceptions_for_missing_entries": False}
    try:
        if cached_file(name, "config.json", subfolder="pretraining", **quiet) is None:
            return None
        config = AutoConfig.from_pretrained(name, subfolder="pretraining")
    except (OSError, ValueError):
        return None
    config.name_or_path = name  # where `build_model` finds the weights
    return config if isinstance(config, config_class) else None


def _encoder_config(name, recipes):
    if name in CONFIG_MAPPING:
        return AutoConfig.for_model(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"backbone '{name}' is neither one of {list(recipes)}, nor a release with pretraining/config.json, nor an encoder "
            "that transformers knows by type, folder or Hub id."
        ) from error


def build_model(model_class, config, args):
    """The model to train: drawn from the seed, with the weights of the release or encoder that `--backbone` named."""
    if name := config.name_or_path:
        return _checked(lambda: model_class.from_pretrained(name, subfolder="pretraining", config=config))
    torch.manual_seed(args.seed)
    model = _checked(lambda: model_class(config))
    if encoder := config.backbone_config.name_or_path:
        weights = model_class.encoder_class.from_pretrained(encoder, dtype=torch.float32)
        _checked(lambda: model.load_encoder(weights), f"backbone '{encoder}' does not fit config_overrides: ")
        model.config.backbone_config.name_or_path = ""  # its place is no part of what the model is, and not published
    return model


def view_size(config, args):
    """The side of a view in pixels."""
    fixed = getattr(config.backbone_config, "image_size", None)
    fixed = fixed[0] if isinstance(fixed, list | tuple) else fixed
    if fixed and args.image_size and args.image_size != fixed:
        raise InputError(
            f"image_size {args.image_size} does not fit the backbone, which has {fixed}: set "
            f"--config_overrides backbone_config.image_size={args.image_size}."
        )
    return args.image_size or fixed or 224


def two_views(args, size, processor):
    """The augmentation that `--views` names, with the changes that other arguments make."""
    given = {name: getattr(args, name) for name in ("jitter_strength", "blur_probability", "solarize_probability")}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.min_crop_scale is not None:
        changes["scale"] = (args.min_crop_scale, 1.0)
    return TwoViews(size, processor.image_mean, processor.image_std, **TWO_VIEWS[args.views] | changes)


def image_data(args, channels, view):
    """(rows, their decoder) of the images that `--dataset_name` names."""
    rows = load_split(
        args.dataset_name, args.train_split, config_name=args.dataset_config_name, streaming=args.streaming
    )
    rows, column = image_rows(rows, args.image_column)
    return rows.select_columns([column]), ImageDecoder(column, channels, view)


def audio_data(config, args):
    """(windows, their decoder) of the audio that `--dataset_name` names."""
    name, config_name = args.dataset_name, args.dataset_config_name
    files = load_split(name, args.train_split, sample="speech", config_name=config_name, streaming=args.streaming)
    files, column = audio_rows(files, args.audio_column)
    needed_by = "windows_per_speaker" if args.windows_per_speaker else None
    if config.negative_policy.startswith("same_speaker"):
        needed_by = f"negative_policy '{config.negative_policy}'"
    speakers = speaker_column(files, args.speaker_column, needed_by)
    with process_state().main_process_first():  # which reads the headers for all
        windows = audio_windows(files, column, args.window_samples, speakers)
    return windows, WaveformBatches(args.window_samples, args.windows_per_speaker)


def text_documents(args):
    """(documents, their column) that `--dataset_name` names."""
    name, config_name = args.dataset_name, args.dataset_config_name
    documents = load_split(name, args.train_split, sample="text", config_name=config_name, streaming=args.streaming)
    return text_rows(documents, args.text_column)


def _given_tokenizer(config, args):
    """(the tokenizer that a resumed run began with, that `--tokenizer_name` names or the backbone brings, or None; its name).
    Called by every process."""
    kept = kept_tokenizer(args.output_dir, local_checkpoint(process_state(), args.resume_from_checkpoint))
    name = kept or args.tokenizer_name or _begun_from(config)
    if not name:
        return None, name
    try:
        return AutoTokenizer.from_pretrained(name), name
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer_name '{name}' is not a folder or Hub id with a tokenizer.") from error


def _begun_from(config):
    """The release or encoder that `--backbone` named, which has its vocabulary; empty for presets."""
    return config.name_or_path or config.backbone_config.name_or_path


def _take_vocabulary(config, tokenizer, name):
    """The model gets a row for each entry, unless it begins with rows of its own."""
    native = config.backbone_config
    if not _begun_from(config):
        native.vocab_size, native.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    elif len(tokenizer) > native.vocab_size:
        raise InputError(
            f"tokenizer_name '{name}' has {len(tokenizer)} entries, the backbone only {native.vocab_size}."
        )


def text_tokenizer(config, args, documents, column):
    """The tokenizer that a resumed run began with, that `--tokenizer_name` names or the backbone brings, or one learnt
    from the documents. `config` takes over its vocabulary. Called by every process."""
    native = config.backbone_config
    tokenizer, name = _given_tokenizer(config, args)
    if tokenizer is None and args.train_tokenizer:
        told = [None]
        if process_state().is_main_process:
            texts = lambda: (text or "" for block in documents.iter(1000) for text in block[column])  # noqa: E731
            told = [train_wordpiece(texts, args.vocab_size, args.max_seq_length)]
        [tokenizer] = broadcast_object_list(told)
    elif tokenizer is None:
        raise InputError("There is no vocabulary: name one by --tokenizer_name, or learn one by --train_tokenizer.")

    found = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("mask", "cls", "sep", "pad")}
    if None in found.values():
        raise InputError(f"tokenizer_name '{name}' is not of a masked language model: found {found}.")
    _take_vocabulary(config, tokenizer, name)
    if args.max_seq_length > native.max_position_embeddings:
        raise InputError(
            f"max_seq_length {args.max_seq_length} exceeds the backbone's {native.max_position_embeddings} positions: lower "
            "it, or set --config_overrides backbone_config.max_position_embeddings."
        )
    config.mask_token_id = found["mask_token_id"]
    config.special_token_ids = [found["cls_token_id"], found["sep_token_id"]]
    return tokenizer


def text_data(config, args, documents, column, tokenizer):
    """(rows of tokens, their decoder): pairs of segments, or packed text if the model predicts no next sentences."""
    pairs, state = config.next_sentence_prediction, process_state()
    with state.main_process_first():  # which prepares the rows for all
        rows = token_rows(documents, column, tokenizer, args.max_seq_length, pairs, args.dupe_factor, args.seed)
    return rows, TokenBatches(tokenizer.pad_token_id, pairs, args.static_masking)


def sentence_tokenizer(config, args):
    """The word tokenizer that is given, as in `text_tokenizer`, or the most frequent words of the documents. `config` takes
    over its vocabulary. Called by every process."""
    tokenizer, name = _given_tokenizer(config, args)
    if tokenizer is None:
        words = word_corpus(args, min_count=1).words[: args.vocab_size - 1]
        tokenizer = word_tokenizer(words, args.text_is_prepared)
    elif tokenizer.pad_token_id != 0 or tokenizer.unk_token_id != 0 or tokenizer.num_special_tokens_to_add():
        raise InputError(
            f"tokenizer_name '{name}' is not one of words: expected that of a cpc_text or word2vec release."
        )
    _take_vocabulary(config, tokenizer, name)
    return tokenizer


def sentence_data(config, args, documents, column, tokenizer):
    """(rows of windows of sentences, their decoder)."""
    if args.window_sentences <= config.prediction_steps:
        raise InputError(
            f"window_sentences must exceed prediction_steps={config.prediction_steps}, found {args.window_sentences}."
        )
    with process_state().main_process_first():  # which prepares the rows for all
        rows = sentence_rows(documents, column, tokenizer, args.window_sentences, args.max_sentence_words)
    return rows, WindowBatches(args.window_sentences)


def word_corpus(args, min_count):
    """The words of the text that `--dataset_name` names, counted by all processes together."""
    if args.num_train_epochs <= 0:
        raise InputError(f"There is nothing to train: num_train_epochs={args.num_train_epochs}.")
    documents, column = text_documents(args)
    state = process_state()
    gather = lambda part: gather_object([part])  # noqa: E731
    return Corpus(
        documents, column, min_count, args.text_is_prepared, state.process_index, state.num_processes, gather
    )


def override_config(config, overrides):
    """Apply a string of overrides, `a=1,backbone_config.b=2`; refuses unknown names and values that do not validate."""
    owners = [config]
    for item in filter(None, overrides.split(",")):
        name, equals, value = item.strip().partition("=")
        owner, key = config, name
        while "." in key and isinstance(getattr(owner, key.split(".")[0], None), PreTrainedConfig):
            first, key = key.split(".", 1)
            owner = getattr(owner, first)
        owners.append(owner)
        if not equals or not hasattr(owner, key):
            names = sorted(k for k in owner.to_dict() if k != "model_type")
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected name=value with one of {names}."
            raise InputError(f"config_overrides has no setting '{item.strip()}': {hint}")
        _checked(lambda owner=owner, key=key, value=value: owner.update_from_string(f"{key}={value}"), f"{name}: ")
    for owner in owners:
        _checked(owner.validate)  # assignment alone does not check
    return config


def _checked(build, prefix=""):
    try:
        return build()
    except (StrictDataclassError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(prefix + str(error).strip().split("\n")[-1].strip().removeprefix("ValueError: ")) from error


def set_up_logging():
    """What a user reads: our own messages from the main process, and the libraries' warnings."""
    main = process_state().is_main_process
    level = logging.INFO if main else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("hf_ssl").setLevel(level)
    logging.getLogger("accelerate.utils.other").setLevel(
        logging.ERROR
    )  # tells at each checkpoint of weights that are tied
    logging.captureWarnings(True)
    warnings.simplefilter("default" if main else "ignore")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
