"""A table of whole training steps at the papers' sizes: samples/s and peak memory beside lightly's and transformers'."""

import gc
import importlib.util
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import transformers
from tqdm.auto import tqdm

from . import clip, mae, moco, sides
from .timing import device, place, timed

PAPER = moco.SIZES["r50-224"], "base-128", clip.SIZES["paper-b-32"]
PRECISIONS = ("fp32", "bf16")
WARM_UP = 3
HEAD = "step | batch | precision | rival | its samples/s | hf_ssl's | times | its peak MiB | hf_ssl's | part"


class Measured(NamedTuple):
    samples_per_second: float
    mebibytes: float | None  # of a device: weights, optimizer and activations


def builders(sizes, precision):
    """(title, batch, rival, its step's builder, ours) of each method; a step is a function of nothing."""
    moco_size, mae_size, clip_size = sizes
    return (
        (
            f"MoCo, ResNet-{moco_size.depth}, {moco_size.pixels} px", moco_size.batch, "lightly",
            partial(sides.on_noise, moco.lightlys, moco_size, precision),
            partial(sides.on_noise, moco.ours, moco_size, precision, min(moco.GROUPED, moco_size.batch)),
        ),
        (
            f"MAE, {mae_size}", mae.SIZES[mae_size][0], "transformers",
            partial(mae.transformers_step, mae_size, precision, True), partial(mae.our_step, mae_size, precision),
        ),
        (
            f"CLIP, {clip_size.name}", clip_size.batch, "transformers",
            partial(clip.transformers_step, clip_size, precision, True), partial(clip.our_step, clip_size, precision),
        ),
    )  # fmt: skip


def measure(build, batch, rounds):
    on_device = None if device().type == "cpu" else torch.get_device_module(device())
    if on_device:
        on_device.empty_cache()
        on_device.reset_peak_memory_stats()
    run = build()
    for _ in range(WARM_UP):
        run()
    seconds = median(timed(run) for _ in range(rounds))
    peak = on_device.max_memory_allocated() / 2**20 if on_device else None
    del run
    gc.collect()  # a model and its optimizer refer to each other
    return Measured(batch / seconds, peak)


def table(sizes=PAPER, rounds=5):
    """Markdown. Each step is built, timed and thrown away before the next, with fused optimizers where the rival has one;
    fp32 is torch's default, which rounds a device's convolutions to TF32."""
    lines = [f"{place()}; torch {torch.__version__}, transformers {transformers.__version__}; {rounds} rounds.", ""]
    lines += [f"| {HEAD} |", f"|{'---|' * (HEAD.count('|') + 1)}"]
    steps = [(precision, *step) for precision in PRECISIONS for step in builders(sizes, precision)]
    for precision, title, batch, rival, theirs, ours in tqdm(steps, desc="steps"):
        own = measure(ours, batch, rounds)
        other = measure(theirs, batch, rounds) if importlib.util.find_spec(rival) else None
        cells = title, batch, precision, rival, *_compared(other, own)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _compared(other, own):
    speed = own.samples_per_second
    if other is None:
        return "not installed", f"{speed:.1f}", "", "", f"{own.mebibytes:.0f}" if own.mebibytes else "", ""
    speeds = f"{other.samples_per_second:.1f}", f"{speed:.1f}", f"{speed / other.samples_per_second:.2f}"
    if own.mebibytes is None:
        return *speeds, "", "", ""
    return *speeds, f"{other.mebibytes:.0f}", f"{own.mebibytes:.0f}", f"{own.mebibytes / other.mebibytes:.2f}"


def write(output, sizes=PAPER, rounds=5):
    """Print the table, and write it to a file if one is named."""
    text = table(sizes, rounds)
    print(text)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text)
