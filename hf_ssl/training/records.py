"""What a run writes down about itself in run.json, and how much of it is told to others.

`run.json` holds the config, the arguments and the facts: command, versions, hardware, data, time, samples. The card is written
from them. Names of local folders stay out of what is published, and tokens out of everything.
"""

import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, get_token

from ..data.loading import SAMPLES

# arguments that may name local files
PLACES = ("output_dir", "dataset_name", "backbone", "vision_tower", "text_tower", "tokenizer_name")
LIBRARIES = ("hf_ssl", "torch", "transformers", "datasets", "accelerate")


def describe_run(accelerator, dataset_name, data, parameters, unit="samples"):
    """The facts that are known before the first step. parameters: how many the model has. unit: what the run counts."""
    return {
        "command": [Path(sys.argv[0]).name, *(redact(argument) for argument in sys.argv[1:])],
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": _hardware(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "parameters": parameters,
        "unit": unit,
        "data": _describe_data(dataset_name, data),
    }


def command_line(facts):
    """The command as it can be typed again, without the places of local files; None if no script was run."""
    script, *arguments = facts["command"]
    if not script.startswith("pretrain_"):
        return None
    launched = [] if facts["processes"] == 1 else ["--num_processes", str(facts["processes"])]
    if facts["precision"] != "fp32":
        launched += ["--mixed_precision", facts["precision"]]
    method = script.removeprefix("pretrain_").removesuffix(".py")
    return shlex.join(["hf-ssl", "pretrain", method, *launched, *map(_public_argument, arguments)])


def public_run(run):
    """`run`, the content of run.json, as it is published."""
    arguments = run["arguments"]
    local = {name: public_name(arguments[name]) for name in PLACES if name in arguments}
    local["resume_from_checkpoint"] = None
    published = run | {"arguments": arguments | local}
    if facts := run.get("facts"):
        script, *rest = facts["command"]
        published["facts"] = facts | {"command": [script, *map(_public_argument, rest)]}
    return published


def public_name(name):
    """A Hub id or preset as it is; of a local file or folder only the last part, since its place is nobody's business."""
    if not name:
        return name
    path = Path(name)
    # a Hub id has one slash and no first or last one
    local = path.is_absolute() or name.startswith((".", "~")) or "*" in name or name.count("/") > 1
    return (path.name or path.resolve().name) if local or path.exists() else name


def redact(text):
    """`text` without the token of this machine and whatever else looks like one."""
    for token in filter(None, [get_token()]):
        text = text.replace(token, "hf_***")
    return re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", text)


def _public_argument(argument):
    """As it was typed, so that it can be typed again, but for places outside of the working folder."""
    name, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    outside = value.startswith(("/", "~", "..")) and Path(value).name
    return name + equals + (Path(value).name if outside else value)


def _versions():
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # hf_ssl run from its sources
            pass
    return found


def _hardware(device):
    if device.type != "cpu":
        name_of = getattr(torch.get_device_module(device), "get_device_name", lambda _: device.type)  # MPS has none
        return {"device": device.type, "name": name_of(device)}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return {"device": "cpu", "name": name, "threads": torch.get_num_threads()}


def _describe_data(name, data):
    """Name and licence of a data set as its own card states them."""
    try:
        card = name
        if name is None or Path(name).exists():
            card = (Path(name) if name else SAMPLES / data.info.dataset_name) / "README.md"
        stated = DatasetCard.load(card).data.to_dict()
    except Exception:  # there is none, or no network: the model's card then says that nothing is known
        stated = {}
    licences = stated.get("license") or []
    return {"title": stated.get("pretty_name"), "license": [licences] if isinstance(licences, str) else licences}


__all__ = ["command_line", "describe_run", "public_name", "public_run", "redact"]
