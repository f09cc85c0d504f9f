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


def test_pretext_tasks_beside_pil_have_as_many_pictures_and_labels(scripts, capsys, monkeypatch):
    from hf_ssl.scripts.benchmarks import pretext
    from PIL import Image

    from hf_ssl.cli import resnet8

    size = pretext.Size("tiny", 28, 4, resnet8(4), 8, 1, 20)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pretext.images(size)[:, 0]]
    for method in pretext.METHODS_COMPARED:
        model, batch = pretext.our_model(method, size), pretext.our_batch(method, size)
        seen, labels = pretext.naive_task(method, model, size, pictures)
        logits = pretext.naive_logits(method, model, seen)
        assert logits.shape == model(**batch()).logits.shape and len(labels) == len(logits)
    monkeypatch.setitem(pretext.SIZES, "tiny", size)
    pretext.compare("tiny", 1, "jigsaw")
    out = capsys.readouterr().out
    assert "jigsaw, task: CPU" in out and "jigsaw, step: CPU" in out


def test_the_lens_shrinks_green_alone(scripts):
    import torch
    from hf_ssl.scripts.benchmarks import shortcut

    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    image[:, 12:16, 20:24] = 200  # centred at 21.5, 8 pixels to the right of the middle
    found = shortcut.aberrated(image)
    assert torch.equal(found[0], image[0]) and torch.equal(found[2], image[2])
    columns = (found[1].float() * torch.arange(28)).sum() / found[1].sum()
    rows = (found[1].float() * torch.arange(28)[:, None]).sum() / found[1].sum()
    assert columns - 13.5 == pytest.approx(8 * shortcut.SHRUNK, abs=0.1) and rows == pytest.approx(13.5, abs=0.1)


@pytest.mark.parametrize("part", ["labels", "noise", "mixmatch", "fixmatch", "epsilon"])
def test_tables_of_few_labels_are_of_runs_that_can_be_made(scripts, part):
    """Each row has settings and flags of its own, which the method and its arguments take."""
    from hf_ssl.scripts.benchmarks import few_labels
    from transformers import HfArgumentParser

    from hf_ssl import METHODS
    from hf_ssl.training.arguments import LabelArguments

    rows = few_labels.PARTS[part](few_labels.METHODS.get(part, part))
    made = []
    for method, settings, flags in rows.values():
        config = METHODS[method].config_class(backbone_config={"model_type": "resnet"}, **settings)
        args = HfArgumentParser(LabelArguments).parse_args_into_dataclasses(flags)[0]
        made.append((config.to_json_string(), args))
    assert len(rows) >= 4 and all(one != other for i, one in enumerate(made) for other in made[:i])
