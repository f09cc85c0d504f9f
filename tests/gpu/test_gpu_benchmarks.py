"""Samples a second and peak memory of MoCo R50 at 224 pixels, MAE ViT-B and CLIP B/32 beside lightly's and transformers' steps.

The table is written to outputs/gpu_steps.md; GPU_TABLE names another file.
"""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    from hf_ssl.scripts.benchmarks import clip, mae, moco, steps

    monkeypatch.setitem(mae.SIZES, "smallest", (2, (16, 8, 32, 2), (32, 1, 2), (0, 0)))  # for a dry run on a CPU
    smallest = moco.Size("smallest", 18, 16, 4, 64, {}, ()), "smallest", clip.Size("smallest", 32, 2, 2, 16, 8, 8)
    return steps, smallest


def test_table_of_steps(benchmarks, device):
    steps, smallest = benchmarks
    file = Path(os.environ.get("GPU_TABLE", ROOT / "outputs/gpu_steps.md"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):  # torch's default, which is timed
        steps.write(file, sizes=smallest if device.type == "cpu" else steps.PAPER, rounds=3)
    rows = [row.strip("|").split("|") for row in file.read_text().splitlines()[4:]]
    assert len(rows) == 6 and all(float(row[5]) > 0 for row in rows)
    if device.type != "cpu":
        assert all(float(row[8]) > 0 for row in rows), "the peak memory of ours"
