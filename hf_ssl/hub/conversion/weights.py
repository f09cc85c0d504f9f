"""Reading the tensors of a file that is not trusted, and copying them into parameters: every value, or one sentence."""

import pickle
import re
import warnings

import safetensors.torch
import torch
from huggingface_hub.errors import StrictDataclassError

from ...errors import InputError
from ...evaluation.encoders.loading import file_fault
from .torchscript import is_torchscript, read_torchscript

COUNTERS = (  # integers that stand among the weights
    "num_batches_tracked",
    "queue_ptr",
    "input_resolution",
    "context_length",
    "vocab_size",
)


def read_content(path):
    """What a file holds; of a TorchScript archive the tensors of its modules. Nothing but tensors, numbers and text is
    unpickled."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"The checkpoint {path} could not be opened: {error.strerror or error}.") from error
    except Exception as error:  # for damaged files torch raises whatever its parser runs into, KeyError too
        if isinstance(error, pickle.UnpicklingError) and (refused := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise InputError(
                f"{path} holds more than tensors ({refused[1]}), as checkpoints of a training run do, and only tensors"
                " are unpickled: expected a file of the weights alone, as whoever trained them can write by"
                " torch.save(model.state_dict(), 'weights.pth')."
            ) from error
        if path.is_file() and (fault := file_fault(path)):
            raise InputError(f"{path} {fault}.") from error
        raise InputError(f"{path} is damaged or no checkpoint: expected a whole .pth or .safetensors file.") from error


def read_weights(path, under=("model", "state_dict")):
    """The tensors of a file by name, without the `module.` of distributed training: from the first key of `under` that it
    has, if any, and then what stands beside it is left out."""
    content = read_content(path)
    weights = content
    if isinstance(content, dict):
        weights = next((content[key] for key in under if key in content), content)
    if not isinstance(weights, dict) or not weights:
        raise InputError(
            f"{path} holds no weights: expected tensors by name, or such a dictionary under {' or '.join(map(repr, under))}."
        )
    for key, value in weights.items():
        if not (
            isinstance(key, str)
            and isinstance(value, torch.Tensor)
            and (value.is_floating_point() or key.endswith(COUNTERS))
        ):
            raise InputError(f"{path} holds something else than weights under '{key}': expected only tensors by name.")
    if all(key.startswith("module.") for key in weights):
        return {key.removeprefix("module."): value for key, value in weights.items()}
    return dict(weights)


def shape_of(weights, key, dimensions, path):
    if key not in weights:
        raise InputError(f"{path} lacks the key {key}.")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions:
        raise InputError(f"{path}: {key} has shape {shape}, expected {dimensions} dimensions.")
    return shape


def depth(weights, stack):
    return len({key.split(".")[1] for key in weights if key.startswith(f"{stack}.")})


def build_config(config_class, path, **settings):
    """A config of sizes that were read from the file."""
    try:
        return config_class(**settings)
    except StrictDataclassError as error:
        raise InputError(f"{path}: {str(error).strip().splitlines()[-1].strip()}") from error


@torch.no_grad()
def fill(parameters, weights, path):
    """Copy each tensor to its parameters: key -> those whose rows the tensor holds, one after the other."""
    missing, unexpected = parameters.keys() - weights.keys(), weights.keys() - parameters.keys()
    missing = {key for key in missing if not key.endswith("num_batches_tracked")}  # only counts, and old files lack it
    if missing or unexpected:
        lacks = f"lacks the keys {listed(missing)}" if missing else ""
        has = f"has the unexpected keys {listed(unexpected)}" if unexpected else ""
        raise InputError(
            f"{path} {' and '.join(filter(None, (lacks, has)))}: expected a checkpoint as it was published."
        )
    for key, value in weights.items():
        parts = parameters[key]
        expected = tuple(parts[0].shape)
        if len(parts) > 1:
            expected = (sum(len(part) for part in parts), *expected[1:])
        if value.shape != expected:
            raise InputError(f"{path}: {key} has shape {tuple(value.shape)}, expected {expected}.")
        values = value.split([len(part) for part in parts]) if len(parts) > 1 else [value]
        for part, rows in zip(parts, values, strict=True):
            part.copy_(rows)


def collect(parameters):
    """The other way round: key -> a tensor that holds the rows of its parameters, one after the other."""
    return {
        key: torch.cat(list(parts)).detach() if len(parts) > 1 else parts[0].detach()
        for key, parts in parameters.items()
    }


def listed(keys, most=6):
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
