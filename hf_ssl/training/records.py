"""What a run writes down about itself in run.json, and how much of it is told to others.

`run.json` holds the config, the arguments and the facts: command, versions, hardware, data, time, samples. The card is written
from them. Names of local folders stay out of what is published, and tokens out of everything.
"""

import html
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, ModelCard, get_token

from ..data.loading import SAMPLES, is_embedded

# arguments that may name local files
PLACES = ("output_dir", "dataset_name", "backbone", "vision_tower", "text_tower", "tokenizer_name")
WEIGHTS = ("backbone", "vision_tower", "text_tower")  # those among them that may name weights of others
NOT_TRAINING = (  # arguments that have no part in what is learnt
    "output_dir", "resume_from_checkpoint", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy",
    "license",
)  # fmt: skip
LIBRARIES = ("hf_ssl", "torch", "transformers", "datasets", "accelerate")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
SECRETS = {  # what looks like a token or a password: what is left of it
    r"\bhf_[A-Za-z0-9]{16,}": "hf_***",
    r"\b(api_org_|gh[pousr]_|github_pat_|glpat-|xox[abpr]-)[\w-]{16,}": r"\1***",
    r"\bsk-[\w-]{32,}": "sk-***",
    r"\bAKIA[A-Z0-9]{16}\b": "AKIA***",
    r"(://)[^/\s:@]+:[^/\s@]+@": r"\1***@",
    r"(?i)([?&](?:[\w-]*token|api_?key|key|sig|[\w-]*signature|password)=)[^&\s]+": r"\1***",
}


def describe_run(accelerator, dataset_name, data, parameters, unit="samples", begun_from=()):
    """The facts that are known before the first step. parameters: how many the model has. unit: what the run counts.
    begun_from: presets, or weights of others, of which the licences are told."""
    return {
        "command": [Path(sys.argv[0]).name, *(redact(argument) for argument in sys.argv[1:])],
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": _hardware(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "parameters": parameters,
        "unit": unit,
        "data": _describe_data(dataset_name, data),
        "weights_license": sorted({licence for name in begun_from if name for licence in _weights_license(name)}),
    }


def command_line(facts):
    """The command as it can be typed again, without the places of local files; None if no script was run. facts: those of
    a `public_run`."""
    script, *arguments = facts["command"]
    if not script.startswith("pretrain_"):
        return None
    launched = [] if facts["processes"] == 1 else ["--num_processes", str(facts["processes"])]
    if facts["precision"] != "fp32":
        launched += ["--mixed_precision", facts["precision"]]
    method = script.removeprefix("pretrain_").removesuffix(".py")
    return shlex.join(["hf-ssl", "pretrain", method, *launched, *arguments])


def places(arguments):
    """{argument: what it names} of those of a run that may name local files, to be asked where the run starts: seen from
    another folder, a local one may look like an id of the Hub."""
    return {name: public_place(arguments[name]) for name in PLACES if arguments.get(name)}


def public_run(run):
    """`run`, the content of run.json, as it is published."""
    known = run.get("places") or places(run["arguments"])
    arguments = redacted(run["arguments"]) | {name: place["name"] for name, place in known.items()}
    published = run | {"arguments": arguments | {"resume_from_checkpoint": None}, "places": known}
    if facts := run.get("facts"):
        script, *rest = redacted(facts["command"])
        hidden = {run["arguments"][name]: place["name"] for name, place in known.items() if place["local"]}
        published["facts"] = facts | {"command": [script, *(_public_argument(each, hidden) for each in rest)]}
    return published


def public_place(name):
    """{"name", "local"}: a Hub id or preset as it is; of a local file or folder only the last part, since its place is
    nobody's business."""
    if not name or is_embedded(name):
        return {"name": name, "local": False}
    path = Path(name)
    if path.exists() or not HUB_ID.fullmatch(name):
        return {"name": redact(path.name or path.resolve().name), "local": True}
    return {"name": redact(name), "local": False}


def public_name(name):
    return public_place(name)["name"]


def redact(text):
    """`text` without the token of this machine and whatever else looks like one."""
    for token in filter(None, [get_token()]):
        text = text.replace(token, "hf_***")
    for secret, left in SECRETS.items():
        text = re.sub(secret, left, text)
    return text


def without_places(text):
    """`text` with the last part alone of each absolute path that stands in it."""
    return re.sub(r"(?<![\w.:/~-])~?/(?:[^\s/'\",:;]+/)+", "", text)


def redacted(content):
    """What JSON holds, `redact`ed at any depth."""
    if isinstance(content, dict):
        return {key: redacted(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted(value) for value in content]
    return redact(content) if isinstance(content, str) else content


def plain(value):
    """A name that others gave as a piece of Markdown text: in one line, with no HTML, link or border of a table in it."""
    text = str(value).encode(errors="backslashreplace").decode()  # names of files may be no text
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(text, quote=False))


def _public_argument(argument, hidden=()):
    """As it was typed, so that it can be typed again, but for places outside of the working folder. hidden: {place: name} of
    others that are not told."""
    name, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    if value in hidden:
        return name + equals + hidden[value]
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
        if name is None or is_embedded(name) or Path(name).exists():
            embedded = SAMPLES / (Path(name).name if name else data.info.dataset_name)
            card = (Path(name) if name and not is_embedded(name) else embedded) / "README.md"
        stated = DatasetCard.load(card).data.to_dict()
    except Exception:  # there is none, or no network: the model's card then says that nothing is known
        stated = {}
    title = stated.get("pretty_name")
    return {"title": title if isinstance(title, str) else None, "license": _licences(stated)}


def _licences(stated):
    """Those that the metadata of a card name; YAML reads much else, such as `yes`, as no text."""
    found = stated.get("license")
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str) and each.strip()]


def _weights_license(name):
    """Of a local folder or Hub id of weights; none of a preset."""
    try:
        card = Path(name) / "README.md" if Path(name).exists() else name
        return _licences(ModelCard.load(card).data.to_dict()) if "/" in str(card) else []
    except Exception:  # as for data
        return []


__all__ = [
    "NOT_TRAINING",
    "command_line",
    "describe_run",
    "places",
    "plain",
    "public_name",
    "public_place",
    "public_run",
    "redact",
    "redacted",
    "without_places",
]
