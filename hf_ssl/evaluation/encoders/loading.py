"""Encoders to evaluate: a release of ours, anybody's checkpoint, and the same architecture at random initialisation.

What `features.extract` asks of an encoder, whatever it reads:

    kind, unit, batch_size          "image", "img" in progress bars, rows encoded at a time
    find_columns(data, ...)         (data with only these columns, names of the input columns, name of the label column)
    read(*values)                   one row's values as an item, None if it is broken
    preprocess(items, device)       a list of items as the model's input
    encoder(inputs)                 (N, D) float32
    too_long(items)                 how many of the items are cut to fit the model
"""

import copy
import re
from dataclasses import replace
from json import JSONDecodeError
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel, VisionTextDualEncoderConfig, ViTModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING
from transformers.utils import cached_file

from ...errors import InputError
from ...methods import METHODS

SSL_METHODS = {method.config_class.model_type: method for method in METHODS.values()}
MODALITIES = {"pixel_values": "image", "input_ids": "text", "input_values": "audio"}
GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601-2), as PIL makes grey of colour
PAIRS = "image and text"  # what a dual encoder reads
DUAL_ENCODER_CONFIGS = {*MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING.keys(), VisionTextDualEncoderConfig}


def find_modality(name_or_path, revision=None):
    """What a checkpoint reads: image, text, audio, "image and text". Only its config is read. Raises InputError."""
    config = _load_config(name_or_path, revision)
    if type(config) in DUAL_ENCODER_CONFIGS:
        return PAIRS
    if config.model_type in SSL_METHODS:
        return modality_of(SSL_METHODS[config.model_type])
    model_class = MODEL_MAPPING.get(type(config), None)
    if model_class is None:
        raise InputError(f"'{name_or_path}' has the model_type '{config.model_type}', which AutoModel does not know.")
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    return MODALITIES.get(model_class.main_input_name, model_class.main_input_name)


def modality_of(model):
    """What a model or class of ours reads, as a key of EVALUATIONS."""
    return " and ".join(model.input_modalities)


def load_model(name_or_path, revision=None) -> tuple[PreTrainedModel, set]:
    """(the model without heads, float32 in eval mode; the names of its parameters that no file has) of a folder or Hub id.

    Norms start at one and zero, so a missing one is the same at each load; of poolers the caller must beware. Raises
    InputError if there is no such model, or if anything else of it would be random.
    """
    repo, subfolder = locate(name_or_path)
    config = _load_config(name_or_path, revision)
    source = {"what": f"'{name_or_path}'", "revision": revision, "subfolder": subfolder, "dtype": torch.float32}
    method = SSL_METHODS.get(config.model_type)
    if method:
        model, missing = load_weights(method, repo, **source)
        prefix = f"{method.base_model_prefix}."
        missing = {key.removeprefix(prefix) for key in missing if key.startswith(prefix)}
    elif config.model_type == "vit_mae":  # which hides a random 75% of each image
        model, missing = load_weights(ViTModel, repo, add_pooling_layer=False, **source)
    else:
        model, missing = load_weights(AutoModel, repo, **source)
    if random := sorted(key for key in missing if "pooler" not in key and "norm" not in key):
        raise InputError(f"'{name_or_path}' lacks {len(random)} weights of its encoder, for example '{random[0]}'.")
    model = released_encoder(model.export_encoder()).base_model if method else model
    return model.float().eval(), missing


def load_weights(model_class, name, what=None, **arguments) -> tuple[PreTrainedModel, set]:
    """(a model with the weights of a folder or Hub id; names of those that its files lack). what: the name, in a sentence.
    Raises InputError if there are none, or files that are damaged, of other shapes, or hold more than tensors."""
    what = what or f"'{name}'"
    try:
        model, report = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    except Exception as error:  # for damaged files the readers raise whatever they run into, KeyError too
        raise InputError(
            f"{what} is not a folder or Hub id of a loadable model: {why_not_read(error, name, arguments.get('subfolder', ''))}."
        ) from error
    if mismatched := sorted(report["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise InputError(
            f"{what} has {len(mismatched)} weights of other shapes than the config asks for, such as '{key}': found "
            f"{tuple(found)}, expected {tuple(expected)}."
        )
    return model, set(report["missing_keys"])


def why_not_read(error, name, subfolder=""):
    """In words, what stands in the way of a model's files, without full stop."""
    folder = Path(name) / subfolder
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")] if folder.is_dir() else []
    for path in files:
        if fault := file_fault(path):
            return f"{path.name} {fault}"
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds more than tensors ({refused[1]}), and only tensors are unpickled: expected safetensors"
    if isinstance(error, OSError) and error.errno is None or isinstance(error, FileNotFoundError):
        return one_line(error)  # transformers' own: there is no such file, no such repository
    if isinstance(error, ValueError | KeyError | StrictDataclassError) and not isinstance(error, JSONDecodeError):
        return one_line(error)
    reason = one_line(error) if isinstance(error, SafetensorError) else type(error).__name__
    return f"its files are damaged or no checkpoint ({reason}): copy or download them again"


def file_fault(path):
    """In words, what is in a file instead of weights, None if nothing shows."""
    with open(path, "rb") as file:
        start = file.read(42)
    if not start:
        return "is empty: copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of Git LFS in the place of the weights: run git lfs pull where it came from, or download it"
        )
    return None


def random_encoder(encoder, seed):
    """The same architecture at random initialisation, drawn by the release's method, or by transformers."""
    repo, subfolder = locate(encoder.name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = pretraining_config(repo, subfolder, encoder.revision)
        if config is not None:
            model = released_encoder(SSL_METHODS[config.model_type](config).export_encoder()).base_model
        else:
            model = type(encoder.model)(encoder.model.config)
    return replace(encoder, model=model.float().eval())


def released_encoder(encoder):
    """What stands at the root of a release: the native encoder, which reads colour if `encoder` reads one grey channel.

    Image processors of transformers make three channels of grey pictures, but no grey of colour. So the first layer does, whose
    weights are multiplied by those by which PIL does; of three equal channels it gives what it gave of one.
    """
    if getattr(encoder.config, "num_channels", None) != 1:
        return encoder
    config = copy.deepcopy(encoder.config)
    config.num_channels = 3
    with torch.random.fork_rng():
        colour = type(encoder)(config)
    weights, expected = encoder.state_dict(), colour.state_dict()
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:  # (D, 1, ...), the only one that sees the channels
            weights[name] = weight * torch.tensor(GREY).reshape(1, 3, *[1] * (weight.ndim - 2))
    colour.load_state_dict(weights)
    return colour.to(encoder.dtype).eval()


def locate(name_or_path):
    """(folder or Hub id, subfolder): the `pretraining` part of a release shares the processor or tokenizer at its root."""
    path = str(name_or_path).rstrip("/")
    return (path.removesuffix("/pretraining"), "pretraining") if path.endswith("/pretraining") else (path, "")


def one_line(error):
    """The line of an error's text that says what is wrong, the last of a config's and else the first, without full stop."""
    lines = str(error).strip().split("\n")
    return lines[-1 if isinstance(error, StrictDataclassError) else 0].strip().rstrip(".")


def _load_config(name_or_path, revision):
    repo, subfolder = locate(name_or_path)
    if not Path(repo).is_dir() and (repo.startswith(("/", ".", "~")) or repo.count("/") > 1):
        raise InputError(f"'{name_or_path}' is not a folder that exists, and no Hub id: expected one of the two.")
    return load_config(repo, f"'{name_or_path}'", revision=revision, subfolder=subfolder)


def load_config(name, what, **arguments):
    """The config of a folder or Hub id. what: the name, in a sentence. Raises InputError."""
    try:
        return AutoConfig.from_pretrained(name, **arguments)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{what} is not a folder or Hub id of a loadable model: {one_line(error)}.") from error


def pretraining_config(repo, subfolder="", revision=None):
    """The config of the method that made the release, None if it is not one of ours."""
    folders = [subfolder] if subfolder else ["", "pretraining"]
    for folder in folders:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if cached_file(repo, "config.json", subfolder=folder, revision=revision, **quiet) is None:
            continue
        config = load_config(repo, f"'{repo}'", subfolder=folder, revision=revision)
        if config.model_type in SSL_METHODS:
            return config
    return None


__all__ = [
    "DUAL_ENCODER_CONFIGS",
    "MODALITIES",
    "PAIRS",
    "SSL_METHODS",
    "file_fault",
    "find_modality",
    "load_config",
    "load_model",
    "load_weights",
    "locate",
    "modality_of",
    "one_line",
    "pretraining_config",
    "random_encoder",
    "released_encoder",
]
