"""The command `hf-ssl`, also `python -m hf_ssl`.

hf-ssl pretrain mae --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain mae --num_processes 8 --mixed_precision bf16 --backbone vit-base --dataset_name ILSVRC/imagenet-1k --streaming
hf-ssl pretrain mae --help      # a method's presets, flags with their defaults, settings and protocols
hf-ssl evaluate runs/mine --protocols knn,linear_probe
hf-ssl push runs/mine org/name

`pretrain` takes the flags of `accelerate launch` too; without one, on one device, there is no launcher.
"""

import importlib.util
import logging
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

from ..errors import InputError, run_script

SCRIPTS = {  # command -> (the script that it runs, what it does)
    "evaluate": ("evaluate", "measure a release, or any checkpoint, beside its baselines"),
    "compare": ("compare", "put runs, or methods, side by side: a table and a plot"),
    "push": ("push_to_hub", "publish a release on the Hub, in one commit"),
    "export": ("export", "write a release for onnxruntime, torch.export, timm or torchvision"),
    "convert": ("convert_checkpoint", "turn a checkpoint of a method's authors into a release"),
    "benchmark": ("benchmark", "time ours beside what users would run otherwise"),
}
BY_TORCHRUN = {"num_processes", "mixed_precision", "cpu"}  # what a launch of several processes on CPUs needs


def main():
    run_script(lambda: run(sys.argv[1:]))


def run(arguments):
    """Run one command; arguments: what follows `hf-ssl`."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(version("hf_ssl"))
    elif command == "pretrain":
        _pretrain(rest)
    elif command in SCRIPTS:
        _run_script(SCRIPTS[command][0], rest, prog=f"hf-ssl {command}")
    elif command == "env":
        from .environment import env_command

        env_command(rest)
    elif command == "demo":
        from .demo import demo_command

        demo_command(rest)
    elif command in ("verify", "list"):
        from . import information

        getattr(information, f"{command}_command")(rest)
    else:
        known = ", ".join(("pretrain", *SCRIPTS, "demo", "verify", "list", "env"))
        raise InputError(f"The command '{command}' is unknown: expected one of {known}.")


def _help():
    commands = [("pretrain METHOD", "train one of the methods, evaluate it, leave its release")]
    commands += [(name, text) for name, (_, text) in SCRIPTS.items()]
    commands += [
        ("demo", "show on a page in the browser what a release can do"),
        ("verify", "compare a downloaded repository with the Hub's record of its hashes"),
        ("list", "methods, their presets with sizes, papers and proofs"),
        ("env", "versions, devices, precision and threads: what a bug report needs"),
    ]
    lines = [f"  {name:16} {text}" for name, text in commands]
    return "\n".join(["usage: hf-ssl COMMAND ...", "", *lines, "", __doc__.split("\n", 2)[2].strip()])


def _pretrain(arguments):
    """Without flags of a launcher and on one device here, in this process; else by accelerate or torchrun in its place."""
    method, *rest = arguments or [""]
    if method.startswith("-") or not method:
        from ..methods import METHODS

        if method in ("-h", "--help"):
            print(f"usage: hf-ssl pretrain METHOD [flags]\n\nmethods: {', '.join(METHODS)}")
            return
        raise InputError(f"Name the method that is trained: hf-ssl pretrain METHOD, one of {', '.join(METHODS)}.")
    script = f"pretrain_{method}"
    if not method.isidentifier() or _find_script(script) is None:
        from ..methods import METHODS

        raise InputError(f"The method '{method}' is unknown: expected one of {', '.join(METHODS)}.")
    if {"-h", "--help"} & set(rest) or "WORLD_SIZE" in os.environ:  # the second: a launcher has started this
        _run_script(script, rest)
        return
    launch, rest = launch_flags(rest)
    if launch or not _is_one_device():
        _launch(launch, script, rest)
    else:
        _run_script(script, rest)


def launch_flags(arguments):
    """({name: values} of the flags that are accelerate's and not the script's, the other arguments)."""
    from accelerate.commands.launch import launch_command_parser

    from ..training import arguments as ours

    own = {field.name for name in ours.__all__ for field in fields(getattr(ours, name))}
    known = {option: action for action in launch_command_parser()._actions for option in action.option_strings}
    known = {option: action for option, action in known.items() if option.startswith("--") and action.dest not in own}
    launch, rest, left = {}, [], list(arguments)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        action = known.get(flag)
        if action is None:
            rest.append(flag + equals + value)
        elif action.nargs == 0:
            launch[flag[2:].replace("-", "_")] = []
        else:
            if not equals and not left:
                raise InputError(f"The argument {flag} of accelerate lacks its value.")
            launch[flag[2:].replace("-", "_")] = [value if equals else left.pop(0)]
    return launch, rest


def _is_one_device():
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return not os.path.isfile(default_config_file) and torch.accelerator.device_count() < 2


def _launch(launch, script, arguments):
    """Run the launcher in this process, so that signals and the exit code are its own; what its processes have said is enough."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    on_cpu = "cpu" in launch or not torch.accelerator.is_available()
    # `accelerate launch --cpu` would start one process, whatever is asked
    if on_cpu and launch and launch.keys() <= BY_TORCHRUN:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if "mixed_precision" in launch:
            [os.environ["ACCELERATE_MIXED_PRECISION"]] = launch["mixed_precision"]
        [count] = launch.get("num_processes", ["1"])
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"num_processes must be a number of at least 1, found '{count}'.")
        if int(count) == 1:
            _run_script(script, arguments)
            return
        flags = ["--standalone", "--nproc_per_node", count]
        parser, start = torchrun.get_args_parser(), torchrun.run
    else:
        flags = [part for name, values in launch.items() for part in (f"--{name}", *values)]
        parser, start = launch_command_parser(), launch_command
    logging.disable(logging.ERROR)  # of the launcher
    try:
        start(parser.parse_args([*flags, "-m", f"hf_ssl.scripts.{script}", *arguments]))
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _exit_as(failure.exitcode, f"Process {rank}")
    except subprocess.CalledProcessError as error:
        _exit_as(error.returncode, "The process")


def _exit_as(code, process):
    """With the exit code of a process, which has said why, unless a signal has ended it."""
    if code >= 0:
        sys.exit(code)
    why = ", as it is when memory runs out" if -code == signal.SIGKILL else ""
    print(f"error: {process} was ended by {signal.Signals(-code).name}{why}.", file=sys.stderr)
    sys.exit(128 - code)


def _run_script(name, arguments, prog=None):
    """As `python scripts/<name>.py` would. prog: what its help calls it."""
    sys.argv = [prog or _find_script(name).origin, *arguments]
    runpy.run_module(f"hf_ssl.scripts.{name}", run_name="__main__")


def _find_script(name):
    if importlib.util.find_spec("hf_ssl.scripts") is None:
        raise InputError("The scripts were not found: install hf_ssl, from a checkout by pip install -e .")
    return importlib.util.find_spec(f"hf_ssl.scripts.{name}")
