"""Releases, and other encoders of transformers, as files for other runtimes: graph.py runs in onnxruntime or plain torch,
layouts.py loads into the networks of timm and torchvision. Every file is compared with the model before it is there."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoProcessor

from ...errors import InputError
from ...evaluation.encoders.loading import load_model, locate
from .graph import export_onnx, export_torch
from .layouts import export_timm, export_torchvision

FORMATS = {  # format -> function of (name, model, names of weights that no file has, folder), which gives code that loads it
    "onnx": export_onnx,
    "torch": export_torch,
    "timm": export_timm,
    "torchvision": export_torchvision,
}


def export_release(name: str, format: str, output_dir: str | Path) -> str:
    """Write the encoder of a folder or Hub id to `output_dir`, beside its processor or tokenizer; returns code that loads it.

    format: a key of FORMATS. Raises InputError, and leaves nothing, if the model has no such form, if a package is missing, or
    if the file's features differ from the model's by more than 1e-4.
    """
    if format not in FORMATS:
        raise InputError(f"format '{format}' is unknown: expected one of {', '.join(FORMATS)}.")
    folder = Path(output_dir)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"output_dir '{output_dir}' is not an empty folder: expected a new one.")
    model, missing = load_model(name)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        code = FORMATS[format](name, model, missing, partial)
        _save_processor(name, partial)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The export could not be written to {output_dir}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return code.replace("FOLDER", str(output_dir))


def _save_processor(name, folder):
    """The image processor, tokenizer or both of a model, where it has them."""
    try:
        processor = AutoProcessor.from_pretrained(locate(name)[0])
    except (OSError, ValueError, KeyError):
        return
    processor.save_pretrained(folder)


__all__ = ["FORMATS", "export_release"]
