"""The command line of the pretraining scripts: a preset's recipe as defaults, flags on top."""

import difflib
import logging
import sys
import warnings

import datasets
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig

from .errors import InputError
from .evaluation.processes import process_state
from .training import TrainingArguments


def parse_arguments(config_class, recipes, description=None):
    """(config, TrainingArguments) from the command line.

    recipes: preset name -> (config values, training values); the first is the default. `--backbone` chooses one; any
    other value of it is taken as a Hub id or folder to go on from and leaves the first preset's training values.
    """
    set_up_logging()
    parser = HfArgumentParser(TrainingArguments, description=description)
    parser._option_string_actions["--backbone"].help = f"One of {list(recipes)}, or a release to go on from."
    backbone = parser.parse_known_args()[0].backbone or next(iter(recipes))
    config_values, training_values = recipes.get(backbone, next(iter(recipes.values())))
    parser.set_defaults(**{"backbone": backbone} | training_values)
    args, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        close = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise InputError(
            f"The argument {unknown[0]} is unknown: " + (f"did you mean {close[0]}?" if close else "see --help.")
        )
    if backbone in recipes:
        config = _checked(lambda: config_class(**config_values))
    else:
        try:
            config = config_class.from_pretrained(backbone, subfolder="pretraining")
            config.name_or_path = backbone  # where `build_model` finds the weights
        except OSError as error:
            message = (
                f"backbone '{backbone}' is neither one of {list(recipes)} nor a release with pretraining/config.json."
            )
            raise InputError(message) from error
    return override_config(config, args.config_overrides), args


def build_model(model_class, config, args):
    """The model to train: drawn from the seed, or, where `--backbone` named a release, with that release's weights."""
    if config.name_or_path:
        return model_class.from_pretrained(config.name_or_path, subfolder="pretraining", config=config)
    torch.manual_seed(args.seed)
    return model_class(config)


def override_config(config, overrides):
    """Apply a string of overrides, `a=1,backbone_config.b=2`; refuses unknown names and values that do not validate."""
    for item in filter(None, overrides.split(",")):
        name, equals, value = item.strip().partition("=")
        owner, key = config, name
        while "." in key and isinstance(getattr(owner, key.split(".")[0], None), PreTrainedConfig):
            first, key = key.split(".", 1)
            owner = getattr(owner, first)
        if not equals or not hasattr(owner, key):
            names = sorted(k for k in owner.to_dict() if k != "model_type")
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected name=value with one of {names}."
            raise InputError(f"config_overrides has no setting '{item.strip()}': {hint}")
        _checked(lambda owner=owner, key=key, value=value: owner.update_from_string(f"{key}={value}"), f"{name}: ")
    _checked(config.validate)  # assignment alone does not check
    return config


def _checked(build, prefix=""):
    try:
        return build()
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise InputError(prefix + str(error).strip().split("\n")[-1].strip().removeprefix("ValueError: ")) from error


def set_up_logging():
    """What a user reads: our own messages from the main process, and the libraries' warnings."""
    main = process_state().is_main_process
    level = logging.INFO if main else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("hf_ssl").setLevel(level)
    logging.captureWarnings(True)
    warnings.simplefilter("default" if main else "ignore")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
