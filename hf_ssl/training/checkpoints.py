"""The folder of a run, and its checkpoints, which are whole or not there: written to the side, hashed, then renamed.

A checkpoint is `checkpoints/step_<n>/`: weights and optimizer as safetensors (sharded runs: as Accelerate saves them),
`loader_<rank>.json` for each process, `state.json`, `tokenizer/` if the data is text, and last `manifest.json` with the size
and SHA-256 of every other file. Nothing of it is a pickle, so that a checkpoint may come from the Hub.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model

from ..errors import InputError

logger = logging.getLogger(__name__)
RUN_FILE, MANIFEST, TOKENIZER = "run.json", "manifest.json", "tokenizer"
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class CheckpointError(InputError):
    """A checkpoint that cannot be written or read."""


def full_config(config):
    """All values of a config as JSON has them, defaults too, but not the place that it was read from."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name != "_name_or_path"}


def differing(config, other):
    """The names of the values in which two configs, as dicts, differ."""
    names = sorted((config.keys() | other.keys()) - {"transformers_version", "_name_or_path"})
    return [name for name in names if config.get(name) != other.get(name)]


def from_main(accelerator, find):
    """What the main process finds, in all processes; its InputError too."""
    answer = [None, None]
    if accelerator.is_main_process:
        try:
            answer = [find(), None]
        except InputError as error:
            answer = [None, error]
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def save_checkpoint(accelerator, model, optimizer, output_dir, step, state, loader_state, keep=None, tokenizer=None):
    """Write `checkpoints/step_<step>` and remove all but the `keep` newest. Called by every process.

    model, optimizer: as `accelerator.prepare` gave them, or no optimizer. state: JSON-serialisable, the same for all processes;
    loader_state: this process's own.
    Raises CheckpointError, in every process, if one of them cannot write; the earlier checkpoints are then untouched.
    """
    folder = Path(output_dir) / "checkpoints"
    target, partial = folder / f"step_{step}", folder / f".step_{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)

    def write():
        partial.mkdir(parents=True, exist_ok=True)
        if is_sharded(accelerator):
            accelerator.save_state(str(partial))
        elif accelerator.is_main_process:
            save_model(accelerator.unwrap_model(model), str(partial / WEIGHTS))
            if optimizer is not None:
                save_optimizer(optimizer, partial / OPTIMIZER)
        write_json(partial / f"loader_{accelerator.process_index}.json", loader_state)
        if accelerator.is_main_process:
            if tokenizer is not None:
                tokenizer.save_pretrained(partial / TOKENIZER)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            whole = {"step": step, "processes": accelerator.num_processes, "scaler": scaler}
            write_json(partial / "state.json", state | whole)

    def finish():
        if accelerator.is_main_process:
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            listed = {path.relative_to(partial).as_posix(): _fingerprint(path, sync=True) for path in files}
            write_json(partial / MANIFEST, {"step": step, "files": listed})
            if target.exists():  # not of this run, which has not been here
                set_aside([target])
            os.replace(partial, target)
            _sync(folder)

    accelerator.wait_for_everyone()
    for part in (write, finish):
        if error := _first_error(accelerator, part):
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"The checkpoint of step {step} could not be written to {folder}: {error}.")
    if accelerator.is_main_process:
        for old in list_checkpoints(output_dir)[keep:] if keep else ():
            shutil.rmtree(old)
    return target


def _first_error(accelerator, action):
    """Run `action` in every process; the first process's complaint, in all of them, or None."""
    try:
        action()
        error = None
    except Exception as failure:  # torch, safetensors and the file system each have their own for a full disk
        error = str(failure).split("\n")[0].rstrip(".") or type(failure).__name__
    return next((error for error in gather_object([error]) if error), None)


def list_checkpoints(output_dir):
    """The checkpoint folders of a run, newest first, whole or not; not what else lies beside them, such as a copy of one."""
    folders = (path for path in (Path(output_dir) / "checkpoints").glob("step_*") if path.is_dir())
    return sorted((path for path in folders if re.fullmatch("step_[0-9]+", path.name)), key=step_number, reverse=True)


def step_number(folder):
    return int(folder.name.removeprefix("step_"))


def step_of(checkpoint):
    """Of a whole checkpoint, whatever it is called."""
    return json.loads((checkpoint / MANIFEST).read_text())["step"]


def set_aside(paths):
    """Move checkpoints to a new folder beside them, which is returned."""
    numbers = (number for number in itertools.count(1) if not (paths[0].parent / f"aside_{number}").exists())
    folder = paths[0].parent / f"aside_{next(numbers)}"
    folder.mkdir()
    for path in paths:
        os.replace(path, folder / path.name)
    return folder


def _check_named(folder):
    if not (folder and Path(folder).is_dir()):
        raise CheckpointError(f"resume_from_checkpoint '{folder}' is not a folder: expected auto or a checkpoint.")
    if not (Path(folder) / MANIFEST).exists() and (
        found := list_checkpoints(folder) or list_checkpoints(Path(folder).parent)
    ):
        raise CheckpointError(f"resume_from_checkpoint '{folder}' is no checkpoint: expected one such as {found[0]}.")


def find_checkpoint(output_dir, resume_from):
    """The folder to resume from, or None: `resume_from` is None, "auto" (the newest whole one of the run) or a folder.

    A damaged one is named in the log and passed over by "auto"; asked for by name, it raises CheckpointError.
    """
    if resume_from is None:
        return None
    if resume_from != "auto":
        _check_named(resume_from)
        if damage := find_damage(resume_from):
            raise CheckpointError(f"The checkpoint {resume_from} is damaged: {damage}; choose another, or auto.")
        return Path(resume_from)
    found = list_checkpoints(output_dir)
    for folder in found:
        damage = find_damage(folder)
        if damage is None:
            return folder
        logger.warning("The checkpoint %s is damaged and passed over: %s.", folder, damage)
    if found:
        raise CheckpointError(
            f"None of the {len(found)} checkpoints in {found[0].parent} is whole: remove them to start again."
        )
    return None


def find_damage(folder, part=""):
    """What is wrong with a checkpoint, in words, or None if every listed file is there with the listed content. part: of its
    names only those that begin so."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        step, listed = manifest["step"], manifest["files"]
        if not isinstance(step, int) or not all({"size", "sha256"} <= set(each) for each in listed.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is missing or unreadable"
    for path in (folder / TOKENIZER).rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in listed:
            return f"{path.relative_to(folder).as_posix()} is no part of it"
    for name, fingerprint in listed.items():
        path = folder / name
        if not name.startswith(part):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != fingerprint["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {fingerprint['size']}"
        if _fingerprint(path) != fingerprint:
            return f"the content of {name} has changed"
    return None


def load_checkpoint(accelerator, model, optimizer, folder):
    """Restore the prepared model and optimizer, which keeps its own settings, such as the rate; returns (state, this process's
    loader state)."""
    groups = [] if optimizer is None else optimizer.param_groups
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    state = json.loads((Path(folder) / "state.json").read_text())
    if is_sharded(accelerator):
        accelerator.load_state(str(folder))
    else:
        load_model(accelerator.unwrap_model(model), str(Path(folder) / WEIGHTS))
        if optimizer is not None:
            load_optimizer(optimizer, Path(folder) / OPTIMIZER)
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    for group, values in zip([] if optimizer is None else optimizer.param_groups, settings, strict=True):
        group.update(values)
    own = Path(folder) / f"loader_{accelerator.process_index}.json"
    if own.is_file():
        return state, json.loads(own.read_text())
    # A process that is new takes the first one's position: for rows that can be indexed it is that of all, and a stream
    # says that it cannot go on. The broken rows stay with those who counted them.
    return state, (json.loads((Path(folder) / "loader_0.json").read_text()) or {}) | {"broken": 0}


def is_sharded(accelerator):
    """Whether each process holds a part of every weight."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def save_optimizer(optimizer, path):
    """The tensors as safetensors, all else as JSON in the file's metadata."""
    saved = optimizer.state_dict()
    tensors, others = {}, {}
    for number, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.contiguous()
            else:
                others[f"{number}.{name}"] = value
    others = json.dumps({"state": others, "param_groups": saved["param_groups"]})
    save_file(tensors, str(path), metadata={"optimizer": others})


def load_optimizer(optimizer, path):
    with safe_open(str(path), "pt") as file:
        others = json.loads(file.metadata()["optimizer"])
        values = {name: file.get_tensor(name) for name in file.keys()} | others["state"]
    state = defaultdict(dict)
    for key, value in values.items():
        number, name = key.split(".", 1)
        state[int(number)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": others["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape == parameter.shape:
                # in the parameter's memory order, which fused kernels rely on and files do not keep
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def kept_tokenizer(output_dir, resume_from):
    """The folder of the tokenizer of the run that is taken up, as its checkpoints have it, or None if there is none to take up.
    resume_from: as `find_checkpoint` takes it."""
    if resume_from not in (None, "auto"):
        _check_named(resume_from)
    folders = list_checkpoints(output_dir) if resume_from == "auto" else [Path(resume_from)] if resume_from else []
    for folder in folders:
        if (folder / TOKENIZER).is_dir() and find_damage(folder, f"{TOKENIZER}/") is None:
            return folder / TOKENIZER
    if folders:
        raise CheckpointError(
            f"The tokenizer in the checkpoint {folders[0]} is missing or damaged: choose another checkpoint."
        )
    return None


def write_json(path, content):
    """Write to the side and rename, so that a reader sees the old file or the new one, after a power cut too."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(content, indent=1))
    _sync(partial)
    os.replace(partial, path)
    _sync(partial.parent)


def _fingerprint(path, sync=False):
    if sync:
        _sync(path)
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
