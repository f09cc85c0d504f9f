"""The rival's step and ours compute the same thing, so that timing them is fair, and we agree with another's code."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


def needs(rival):
    missing = importlib.util.find_spec(rival) is None
    return pytest.mark.skipif(missing, reason=f"{rival} comes with the extra [benchmark]")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision than other tests'


@needs("lightly")
@pytest.mark.parametrize("part", ["step", "loss"])
def test_moco_equals_lightlys(part, scripts, capsys):
    from hf_ssl.scripts.benchmarks import moco

    moco.PARTS[part](moco.Size("tiny", 18, 32, 8, 64, {"bf16": 0.0}, ()), Namespace(rounds=1))  # raises if they differ
    assert "hf_ssl bf16" in capsys.readouterr().out


@needs("lightly")
def test_simclr_equals_lightlys(scripts, capsys):
    from hf_ssl.scripts.benchmarks import simclr

    simclr.step(simclr.Size("tiny", 18, 32, 8), Namespace(rounds=1))
    assert "hf_ssl bf16" in capsys.readouterr().out


@needs("open_clip")
def test_clip_equals_open_clips(scripts, capsys):
    from hf_ssl.scripts.benchmarks import clip

    clip.step(clip.Size("tiny", 32, 2, 2, 16, 8, 8), Namespace(rounds=1))  # raises if they differ
    assert "hf_ssl bf16" in capsys.readouterr().out


@needs("lightly")
def test_the_table_of_steps_names_device_speed_and_rival(scripts, tmp_path, monkeypatch):
    from hf_ssl.scripts.benchmarks import clip, mae, moco, steps

    monkeypatch.setitem(mae.SIZES, "smallest", (2, (16, 8, 32, 2), (32, 1, 2), (0, 0)))
    sizes = moco.Size("tiny", 18, 16, 4, 64, {}, ()), "smallest", clip.Size("tiny", 32, 2, 2, 16, 8, 8)
    steps.write(tmp_path / "table.md", sizes, rounds=1)
    title, _, head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert title.startswith("CPU, 1 threads") and len(rows) == 2 * 3
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == head.count("|") - 1 and all(float(cell) > 0 for cell in cells[4:7]), row
    assert sum("MAE" in row and "bf16" in row for row in rows) == 1


def test_a_device_that_is_not_there_is_refused_in_one_sentence(scripts, monkeypatch):
    import benchmark

    from hf_ssl.errors import InputError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: torch sees no such device; expected cpu"):
        benchmark.choose_device("cuda")
