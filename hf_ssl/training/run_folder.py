"""Whose a run's folder is: new, or of the very run that is taken up, and of no other process. All is checked before anything
is written."""

import json
import logging
import os
import platform
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from .checkpoints import (
    RUN_FILE,
    differing,
    find_checkpoint,
    from_main,
    full_config,
    list_checkpoints,
    set_aside,
    step_number,
    step_of,
    write_json,
)
from .records import places, public_name, redacted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)
FIXED = ("seed", "dataset_name", "dataset_config_name", "train_split", "streaming", "optim")  # for the whole of a run
OF_THE_TOKENIZER = ("tokenizer_name", "train_tokenizer", "vocab_size")
LOCK = ".lock"
_LOCKS = {}  # the open files of this process, by (process, path)


def claim_output_dir(accelerator, output_dir, config, args, max_steps):
    """Check that the folder is new, or holds this very run, and that no other process trains in it; returns (the checkpoint to
    resume from or None, what `record_run` writes once all else has been checked). Raises InputError, in every process."""
    checkpoint, run = from_main(accelerator, lambda: _claim(output_dir, config, args, max_steps))
    if checkpoint is not None and not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint} is not seen by process {accelerator.process_index}: output_dir must be shared by all nodes."
        )
    return checkpoint, run


def _claim(output_dir, config, args, max_steps):
    resume_from = args.resume_from_checkpoint  # None, auto or a checkpoint folder, which may be another folder's
    home = output_dir if resume_from in (None, "auto") else Path(resume_from).resolve().parent.parent
    run = {"config": full_config(config), "arguments": redacted(asdict(args)), "places": places(asdict(args))}
    found = read_run(home / RUN_FILE)
    if resume_from is None:
        if found is not None:
            raise InputError(
                f"output_dir '{output_dir}' holds another run: go on with it by --resume_from_checkpoint auto, or choose "
                "another folder."
            )
        if output_dir.is_dir() and any(path.name != LOCK for path in output_dir.iterdir()):
            raise InputError(f"output_dir '{output_dir}' is not empty and holds no run: choose another folder.")
    elif found is not None:
        if changed := differing(run["config"], found["config"]):
            raise InputError(
                f"output_dir '{output_dir}' holds a run of another model: its config differs in {changed}."
            )
        old, new = found["arguments"], run["arguments"]
        for name in FIXED:
            same = (new[name], public_name(new[name])) if name == "dataset_name" else (new.get(name),)
            if name in new and old.get(name) not in same:
                raise InputError(
                    f"The run in output_dir '{output_dir}' has {name}={old.get(name)}, this command {new[name]}."
                )
        new |= {name: old[name] for name in OF_THE_TOKENIZER if name in new and name in old}  # it is the checkpoint's
        changed = sorted(k for k in new if old.get(k) != new[k] and k != "resume_from_checkpoint")
        if changed:
            logger.warning("Going on with other settings than the run began with: %s.", ", ".join(changed))
        if "facts" in found:  # of a run that has nothing left to do
            run["facts"] = found["facts"]
    if output_dir.is_dir():
        _lock(output_dir)
    checkpoint = find_checkpoint(output_dir, resume_from)
    if checkpoint is not None and (step := step_of(checkpoint)) > max_steps:
        raise InputError(
            f"The checkpoint {checkpoint} is of step {step}, and this run would end at step {max_steps}: raise --max_steps or "
            "--num_train_epochs, or name an older checkpoint."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir '{output_dir}' cannot be written: {error}.") from error
    _lock(output_dir)
    return checkpoint, run


def _lock(folder):
    """Refuse a folder that another living process trains in. The lock is this process's, not its children's, and ends with it
    at the latest."""
    path = folder.resolve() / LOCK
    if fcntl is None or (os.getpid(), path) in _LOCKS:
        return
    try:
        file = open(path, "a+")  # until `claimed` closes it, which ends the lock
    except OSError as error:
        raise InputError(f"output_dir '{folder}' cannot be written: {error}.") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise InputError(
            f"output_dir '{folder}' is in use by a run that has not ended ({file.read().strip()}): wait for it, or "
            "choose another folder."
        ) from error
    except OSError:  # a file system without locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    _LOCKS[os.getpid(), path] = file


@contextmanager
def claimed(output_dir):
    """While the run trains; others may go on with it afterwards."""
    try:
        yield
    finally:
        if file := _LOCKS.pop((os.getpid(), output_dir.resolve() / LOCK), None):
            file.close()


def record_run(output_dir, run, checkpoint=None):
    """Write run.json. What a run that is taken up would write over later is moved aside: checkpoints beyond `checkpoint`, and
    all of another run."""
    if checkpoint is not None:
        step, there = step_of(checkpoint), [path.resolve() for path in list_checkpoints(output_dir)]
        foreign = checkpoint.resolve().parent != (Path(output_dir) / "checkpoints").resolve()
        if aside := [path for path in there if foreign or step_number(path) > step and path != checkpoint.resolve()]:
            names = ", ".join(path.name for path in aside)
            logger.warning("Going on from step %d; what is beyond is kept in %s: %s.", step, set_aside(aside), names)
    try:
        write_json(Path(output_dir) / RUN_FILE, run)
    except OSError as error:
        raise InputError(f"output_dir '{output_dir}' cannot be written: {error}.") from error


def read_run(path):
    """The content of a run.json, or None if there is none. Raises InputError, in one sentence, for one that is broken."""
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_text())
        if isinstance(run, dict) and all(isinstance(run.get(part), dict) for part in ("config", "arguments")):
            return run
        reason = "it has no config and arguments"
    except (OSError, ValueError) as error:
        reason = error
    raise InputError(f"{path} is broken ({reason}): put back a copy, or remove it to go on by the checkpoints alone.")
