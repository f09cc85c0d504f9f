"""Self-supervised learning, native to the Hugging Face ecosystem. Importing it registers every method with Auto classes."""

from importlib import import_module

from .methods import *  # noqa: F403

_LATER = {"push_release": "transfer", "save_release": "hub", "verify": "transfer"}


def __getattr__(
    name,
):  # training and evaluation are imported when they are asked for: readers of a release do not wait
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module 'hf_ssl' has no attribute '{name}'")
