"""The command line of the pretraining scripts: a preset's recipe as defaults, flags on top."""

import argparse
import dataclasses
import difflib
import json
import logging
import math
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, HfArgumentParser, PreTrainedConfig
from transformers.utils import cached_file

from ..errors import InputError
from ..evaluation import PROTOCOLS, modality_of
from ..evaluation.encoders.loading import load_config, load_weights, one_line
from ..evaluation.processes import process_state
from ..hub import check_arguments
from ..hub.transfer import local_checkpoint
from ..training.checkpoints import RUN_FILE
from ..training.run_folder import read_run

logger = logging.getLogger(__name__)


COUNTS = ("_size", "_layers", "_heads", "_dim", "_channels")  # ends of the names of what there is at least one of


def parse_arguments(model_class, recipes, arguments_class, description=None):
    """(config, arguments of `arguments_class`) from the command line.

    recipes: preset name -> Preset; the first is the default. `--backbone` chooses a preset, a
    release of the method to go on from (with its run's training values), or any encoder of transformers, by model_type to
    begin anew or by Hub id or folder to go on from (with the last preset's).
    """
    set_up_logging()
    config_class = model_class.config_class
    # --help shows the defaults of the preset, so that comes first
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--backbone")
    backbone = first_look.parse_known_args()[0].backbone or next(iter(recipes))
    training_values = list(recipes.values())[-1].training
    if backbone in recipes:
        preset = recipes[backbone]
        config, training_values = checked(lambda: config_class(**preset.config)), preset.training
    elif (config := _release_config(config_class, backbone)) is not None:
        training_values = training_values | _release_values(backbone, recipes)
    else:
        encoder = _encoder_config(backbone, recipes)
        config = checked(lambda: config_class(backbone_config=encoder))
    parser = HfArgumentParser(
        arguments_class, usage=f"hf-ssl pretrain {_stem(model_class)} [flags]", description=description,
        formatter_class=HelpFormatter, epilog=_more_help(model_class, recipes, backbone, config), allow_abbrev=False,
    )  # fmt: skip
    backbone_flag = parser._option_string_actions["--backbone"]
    backbone_flag.help = f"One of {list(recipes)}; a release, or any encoder's id or type."
    # given several times, all count
    parser._option_string_actions["--config_overrides"].type = partial(_joined, [])
    parser.set_defaults(**{"backbone": backbone} | training_values)
    given, unknown = parser.parse_known_args()
    if unknown:
        close = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise InputError(
            f"The argument {unknown[0]} is unknown: " + (f"did you mean {close[0]}?" if close else "see --help.")
        )
    args = arguments_class(**vars(given))
    check_arguments(model_class, args)
    args.resume_from_checkpoint = local_checkpoint(process_state(), args.resume_from_checkpoint)
    return override_config(config, args.config_overrides), args


def _joined(earlier, text):
    earlier.append(text)
    return ",".join(earlier)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Text as it stands, and the defaults; of the two spellings of a flag the one with underscores."""

    def _format_action_invocation(self, action):
        kept = [option for option in action.option_strings if "-" not in option[2:]]
        if action.nargs == 0:
            return ", ".join(kept)
        return f"{', '.join(kept)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


def _stem(model_class):
    return model_class.config_class.model_type.removeprefix("ssl_")


def _more_help(model_class, recipes, backbone, config):
    """Behind the flags: the presets, the settings of --config_overrides, the protocols."""
    presets = [f"  {name}: {preset.purpose}" for name, preset in recipes.items()]
    own = [each.name for each in dataclasses.fields(config) if each.name in type(config).__annotations__]
    given = recipes[backbone].config if backbone in recipes else {}
    settings = [f"  {name} = {getattr(config, name)}" for name in own if not name.endswith("_config")]
    nested = [(name, key) for name in own if name.endswith("_config") for key in given.get(name) or {}]
    settings += [f"  {name}.{key} = {given[name][key]}" for name, key in nested if key != "model_type"]
    protocols = PROTOCOLS.get(modality_of(model_class), ())
    text = "\n".join(
        ["presets of --backbone:", *presets, "", f"settings of --config_overrides ({backbone}):", *settings, ""]
        + [f"protocols of --eval_protocols: {', '.join(protocols)}"]
    )
    return text.replace("%", "%%")


def _release_values(name, recipes):
    """How a release was trained, as far as presets say it; nothing where the release does not tell."""
    try:
        file = cached_file(name, RUN_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError:
        file = None
    arguments = read_run(Path(file))["arguments"] if file else {}
    named = {key for preset in recipes.values() for key in preset.training} - {"output_dir", "dataset_name"}
    return {key: value for key, value in arguments.items() if key in named}


def _release_config(config_class, name):
    """The config of a release of this method; None for anything else, another method's release too: it has an encoder."""
    quiet = {"_raise_exceptions_for_missing_entries": False}
    try:
        if cached_file(name, "config.json", subfolder="pretraining", **quiet) is None:
            return None
    except (OSError, ValueError):
        return None
    config = load_config(name, f"backbone '{name}'", subfolder="pretraining")
    config.name_or_path = name  # where `build_model` finds the weights
    return config if isinstance(config, config_class) else None


def _encoder_config(name, recipes):
    if name in CONFIG_MAPPING:
        return AutoConfig.for_model(name)
    try:
        return load_config(name, f"backbone '{name}'")
    except InputError as error:
        reason = one_line(error.__cause__)
        raise InputError(
            f"backbone '{name}' is neither one of {list(recipes)}, nor a release with pretraining/config.json, nor an encoder "
            f"that transformers knows by type, folder or Hub id: {reason}."
        ) from error


def build_model(model_class, config, args):
    """The model to train: drawn from the seed, with the weights of the release or encoder that `--backbone` named."""
    if name := config.name_or_path:
        where = {"subfolder": "pretraining", "config": config}
        model, missing = load_weights(model_class, name, f"backbone '{name}'", **where)
        _tell_missing(name, missing)
        return model
    torch.manual_seed(args.seed)
    model = checked(lambda: model_class(config))
    if encoder := config.backbone_config.name_or_path:
        arguments = (model_class.encoder_class, encoder, f"backbone '{encoder}'")
        network, missing = load_weights(*arguments, dtype=torch.float32)
        checked(lambda: model.load_encoder(network, missing), f"backbone '{encoder}' does not fit config_overrides: ")
        _tell_missing(encoder, missing)
        model.config.backbone_config.name_or_path = ""  # its place is no part of what the model is, and not published
    return model


def _tell_missing(name, missing):
    if missing:
        logger.warning(
            "backbone '%s' lacks %d weights, for example '%s': they begin anew.", name, len(missing), min(missing)
        )


def override_config(config, overrides):
    """Apply a string of overrides, `a=1,backbone_config.b=[2,3]`; refuses unknown names and values that do not validate."""
    owners = [config]
    for item in filter(None, re.split(r",(?![^\[]*\])", overrides)):  # not at the commas of a list
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
        if isinstance(getattr(owner, key), list | tuple):
            setattr(owner, key, _list_like(getattr(owner, key), name, value))
        else:
            checked(lambda owner=owner, key=key, value=value: owner.update_from_string(f"{key}={value}"), f"{name}: ")
        number = getattr(owner, key)
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"config_overrides: {name} must be a finite number, found {value}.")
        if type(number) is int and number < 1 and key.endswith(COUNTS):
            raise InputError(f"config_overrides: {name} must be at least 1, found {number}.")
        if key == "model_type":
            raise InputError(f"config_overrides: {name} cannot be changed: name another encoder by --backbone.")
    for owner in owners:
        checked(owner.validate)  # assignment alone does not check
        width, heads = (getattr(owner, name, None) for name in ("hidden_size", "num_attention_heads"))
        if heads and width % heads:
            raise InputError(f"config_overrides: hidden_size={width} is no multiple of num_attention_heads={heads}.")
        image, patch = (getattr(owner, name, None) for name in ("image_size", "patch_size"))
        if isinstance(image, int) and isinstance(patch, int) and patch > image:
            raise InputError(f"config_overrides: patch_size={patch} exceeds image_size={image}.")
    return config


def _list_like(present, name, value):
    """The list that `value` spells, as long as the present one and of numbers of its kind."""
    try:
        numbers = json.loads(value)
    except ValueError:
        numbers = None
    kinds = (int, float) if any(isinstance(each, float) for each in present) else (int,)
    if (
        not isinstance(numbers, list)
        or len(numbers) != len(present)
        or any(type(each) not in kinds for each in numbers)
    ):
        kind = "numbers" if float in kinds else "whole numbers"
        raise InputError(
            f"config_overrides: {name} must be {len(present)} {kind} such as {list(present)}, found {value}."
        )
    return numbers


def checked(build, prefix=""):
    try:
        return build()
    except KeyError as error:  # of a table of functions by name
        raise InputError(f"{prefix}a setting has the unknown value {error}.") from error
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, ArithmeticError, ImportError) as error:
        raise InputError(prefix + str(error).strip().split("\n")[-1].strip().removeprefix("ValueError: ")) from error


def set_up_logging():
    """What a user reads: our own messages from the main process, and the libraries' warnings."""
    main = process_state().is_main_process
    level = logging.INFO if main else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("hf_ssl").setLevel(level)
    # tells at each checkpoint of weights that are tied
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    # without the place in our code, and the line there
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}"
    warnings.simplefilter("default" if main else "ignore")
    for kind in (DeprecationWarning, FutureWarning, ResourceWarning):  # for those who write libraries
        warnings.filterwarnings("ignore", category=kind)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
