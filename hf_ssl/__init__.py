"""Self-supervised learning, native to the Hugging Face ecosystem. Importing it registers every method with Auto classes."""

from importlib import import_module
from typing import TYPE_CHECKING

from .methods import *  # noqa: F403

__version__ = "0.2.0"
_LATER = {  # imported when they are asked for: who reads a release does not wait for what trains one
    "TrainingArguments": "training",
    "TrainingRun": "training",
    "check_run": "hub",
    "finish_run": "hub",
    "push_release": "hub",
    "push_save": "hub",
    "save_release": "hub",
    "train": "training",
    "verify": "hub",
}

if TYPE_CHECKING:  # for those who check types, and complete names
    from .hub import check_run, finish_run, push_release, push_save, save_release, verify  # noqa: F401
    from .training import TrainingArguments, TrainingRun, train  # noqa: F401


def __getattr__(name):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module 'hf_ssl' has no attribute '{name}'")


def __dir__():
    return sorted([*globals(), *_LATER])
