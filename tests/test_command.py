"""The command `hf-ssl`: from the checkout, and from a wheel that is installed where no checkout is on the path."""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hf_ssl.scripts import pretrain_clip, pretrain_rotation
from hf_ssl.scripts.pretrain_mae import PRESETS
from hub_server import User
from processes import launch
from test_scripts import pictures  # noqa: F401, a fixture

from hf_ssl import CLIPForPreTraining, MAEForPreTraining, RotationForPreTraining
from hf_ssl.cli import parse
from hf_ssl.cli.main import _exit_as, launch_flags, main
from hf_ssl.errors import InputError
from hf_ssl.training.arguments import ImageArguments

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "w" * 34


def hf_ssl(*arguments):
    """(exit code, stdout, stderr) of the command in a process that has the imports done."""
    return launch(_command, [str(argument) for argument in arguments])[0]


def _command(arguments):
    sys.argv = ["hf-ssl", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def test_flags_of_the_launcher_are_told_from_the_scripts():
    """Flags that both have, such as gradient_accumulation_steps, are the script's."""
    given = "--num_processes 8 --seed 3 --mixed_precision=bf16 --multi_gpu --gradient_accumulation_steps 2 --streaming"
    launch, rest = launch_flags(given.split())
    assert launch == {"num_processes": ["8"], "mixed_precision": ["bf16"], "multi_gpu": []}
    assert rest == ["--seed", "3", "--gradient_accumulation_steps", "2", "--streaming"]
    assert launch_flags(["--num-processes=2"]) == ({"num_processes": ["2"]}, [])
    with pytest.raises(InputError, match="--config_file of accelerate lacks its value"):
        launch_flags(["--config_file"])


def test_overrides_given_several_times_all_count(monkeypatch):
    monkeypatch.setattr(parse, "set_up_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", ["hf-ssl", *"--config_overrides mask_ratio=0.5,norm_pix_loss=false".split()])
    sys.argv += ["--config_overrides", "mask_ratio=0.25", "--config-overrides=decoder_hidden_size=16"]
    config, args = parse.parse_arguments(MAEForPreTraining, PRESETS, ImageArguments)
    assert (config.mask_ratio, config.norm_pix_loss, config.decoder_hidden_size) == (0.25, False, 16)
    assert args.config_overrides == "mask_ratio=0.5,norm_pix_loss=false,mask_ratio=0.25,decoder_hidden_size=16"
    with pytest.raises(InputError, match="config_overrides: mask_ratio must be a finite number, found nan"):
        parse.override_config(config, "mask_ratio=nan")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("backbone_config.num_hidden_layers=-1", "num_hidden_layers must be at least 1, found -1"),
        ("backbone_config.patch_size=0", "patch_size must be at least 1, found 0"),
        ("backbone_config.num_attention_heads=7", "hidden_size=128 is no multiple of num_attention_heads=7"),
        ("backbone_config.model_type=resnet", "model_type cannot be changed: name another encoder by --backbone"),
    ],
)
def test_sizes_that_make_no_network_are_refused(overrides, message):
    config = MAEForPreTraining.config_class(**copy.deepcopy(PRESETS["vit-tiny-28"].config))
    with pytest.raises(InputError, match=message):
        parse.override_config(config, overrides)


def test_lists_are_overridden():
    config = override_rotation("backbone_config.depths=[2,1,1],rotations=2,backbone_config.hidden_sizes=[8, 8, 16]")
    backbone = config.backbone_config
    assert (backbone.depths, backbone.hidden_sizes, config.rotations) == ([2, 1, 1], [8, 8, 16], 2)
    for wrong in ("[2,1]", "2", "[2,1,0.5]", "[2,1", "[2,true,1]"):
        with pytest.raises(InputError, match=r"backbone_config.depths must be 3 whole numbers such as \[1, 1, 1\]"):
            override_rotation(f"backbone_config.depths={wrong}")


def override_rotation(overrides):
    preset = pretrain_rotation.PRESETS["resnet8x2"]
    return parse.override_config(RotationForPreTraining.config_class(**copy.deepcopy(preset.config)), overrides)


def test_a_patch_fits_in_its_image():
    config = CLIPForPreTraining.config_class(**copy.deepcopy(pretrain_clip.PRESETS["emoji"].config))
    with pytest.raises(InputError, match="patch_size=100 exceeds image_size=64"):
        parse.override_config(config, "backbone_config.vision_config.patch_size=100")


def test_a_function_of_an_unknown_name_is_refused():
    config = MAEForPreTraining.config_class(**copy.deepcopy(PRESETS["vit-tiny-28"].config))
    config = parse.override_config(config, "backbone_config.hidden_act=foo")
    with pytest.raises(InputError, match="a setting has the unknown value 'foo'"):
        parse.build_model(MAEForPreTraining, config, ImageArguments())


@pytest.mark.parametrize(
    "method, overrides, message",
    [
        (
            "relative_position",
            "patch_size=20",
            "3 x 3 patches of 20 px .* need images of at least 64 px, found 28 x 28",
        ),
        ("jigsaw", "tile_size=20", "Tiles of 20 px .* need images of at least 60 px, found 28 x 28"),
        ("exemplar", "patch_size=30", "Patches of patch_size=30 px do not fit in images of 28 x 28 px"),
    ],
)
def test_a_task_that_does_not_fit_in_the_images_is_refused_before_anything_is_written(
    method, overrides, message, tmp_path
):
    code, _, err = hf_ssl("pretrain", method, "--config_overrides", overrides, "--output_dir", tmp_path / "run")
    assert code == 1 and re.search(f"^error: {message}.*\n\\Z", err, re.MULTILINE), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code, exit_code, text",
    [(1, 1, ""), (-9, 137, "error: Process 1 was ended by SIGKILL, as it is when memory runs out.\n")],
)
def test_a_launch_adds_nothing_to_what_its_processes_have_said(capsys, code, exit_code, text):
    with pytest.raises(SystemExit) as end:
        _exit_as(code, "Process 1")
    assert end.value.code == exit_code and capsys.readouterr().err == text


def test_help_has_the_presets_defaults_the_settings_and_the_protocols():
    code, text, _ = hf_ssl("pretrain", "moco", "--help", "--backbone", "resnet8x3")
    assert code == 0
    # the script's own examples, as they stand
    assert "\nhf-ssl pretrain moco --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine\n" in text
    words = re.sub(r"\s+", " ", text)
    for default in ("outputs/moco", "resnet8x3", "0.06", "sgd", "moco_v2"):
        assert f"(default: {default})" in words, default
    for line in ("  queue_size = 1024", "  temperature = 0.2", "  backbone_config.embedding_size = 24"):
        assert line in text.splitlines(), line
    assert "protocols of --eval_protocols: knn, linear_probe, low_label" in text and "phones" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "The command 'train' is unknown: expected one of pretrain, evaluate"),
        (["pretrain"], "Name the method that is trained: hf-ssl pretrain METHOD, one of "),
        (["pretrain", "mocoo"], "The method 'mocoo' is unknown: expected one of "),
        (["pretrain", "mae.py"], "The method 'mae.py' is unknown: expected one of "),
        (["pretrain", "mae", "--mixed_precision", "fp16"], "mixed_precision 'fp16' cannot be had on a CPU"),
        (["list", "moko"], "method 'moko' is unknown: expected one of amdim"),
        (["pretrain", "mae", "--num_processes", "many"], "num_processes must be a number of at least 1, found 'many'"),
        (["pretrain", "mae", "--eval_protocols", "phones"], "eval_protocols 'phones' is unknown: expected one of none, knn"),
        (["verify", "nowhere"], "repo_id 'nowhere' is no repository of the Hub: expected org/name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = hf_ssl(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and not out and len(lines) == 1 and message in lines[0] and "Traceback" not in err, err
    assert not (tmp_path / "outputs").exists()


def test_two_processes_on_a_cpu(pictures, tmp_path):  # noqa: F811
    """In a process of its own, whose place the launcher takes."""
    arguments = [
        "--dataset_name",
        pictures,
        "--max_steps",
        "2",
        "--eval_protocols",
        "none",
        "--output_dir",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "hf_ssl", "pretrain", "mae", "--num_processes", "2", "--mixed_precision", "bf16"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "cpu x 2, bf16" in done.stderr and "128 x 2 processes" in done.stderr, done.stderr
    card = (tmp_path / "run/README.md").read_text()
    assert "hf-ssl pretrain mae --num_processes 2 --mixed_precision bf16 --dataset_name" in card


def test_the_wheel_has_every_package():
    """The list in pyproject.toml is written by hand, since two of the packages stand at the top of the checkout."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for top in ("hf_ssl", "scripts", "model_cards") for path in (ROOT / top).rglob("*.py")}
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert listed == {name if name.startswith("hf_ssl") else f"hf_ssl.{name}" for name in names}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `hf-ssl` of a wheel in an environment that has our dependencies, but not this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("hf_ssl", "scripts", "model_cards"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    build = [*pip, "wheel", folder / "source", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run(build, check=True, capture_output=True, env=os.environ | {"PIP_NO_INDEX": "1"})
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True)
    python = folder / "environment/bin/python"
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # the path alone: what lies in that folder as .pth files, such as the way to this checkout, is not followed
    [site] = (folder / "environment").glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return wheel, folder / "environment/bin/hf-ssl"


def test_a_wheel_is_whole(installed):
    with zipfile.ZipFile(installed[0]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    for name in (
        "hf_ssl/py.typed", "hf_ssl/scripts/pretrain_mae.py", "hf_ssl/scripts/benchmarks/timing.py", "hf_ssl/model_cards/mae.md",
        "hf_ssl/model_cards/results/mae.json", "hf_ssl/data/samples/images/test-00000-of-00001.parquet",
        "hf_ssl/demo/feature_map.js", "hf_ssl/demo/reconstruct.js",
    ):  # fmt: skip
        assert name in names, name
    assert not [name for name in names if "test" in name.split("/")[0] or name.endswith(".png")]
    assert "License-Expression: Apache-2.0" in metadata and "Author: The hf_ssl developers" in metadata
    links = re.findall(r"\]\(([^)#][^)]*)\)", metadata)  # a registry has no files beside the README
    assert links and all(link.startswith("https://") for link in links)
    shown = re.findall(r"!\[[^\]]*\]\((\S+)\)", metadata)
    assert shown and all((ROOT / picture.partition("/raw/main/")[2]).is_file() for picture in shown)


def test_an_installed_wheel_does_all_that_a_checkout_does(installed, pictures, hub, tmp_path):  # noqa: F811
    """List, env, a pretraining with its card and evaluation, evaluate, push, verify."""
    hub.tokens[TOKEN] = User("org")
    environment = os.environ | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}

    def run(*command):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    arguments = ["--dataset_name", pictures, "--max_steps", 3, "--eval_protocols", "knn", "--output_dir", "run"]
    assert "| Pretrained |" in run(installed[1], "pretrain", "mae", *arguments)
    assert "hf-ssl pretrain mae --dataset_name" in (tmp_path / "run/README.md").read_text()
    commands = [  # one after the other in one process: most of each is imports
        ["list", "mae"],
        ["env"],
        ["evaluate", "run", "--dataset_name", str(pictures), "--protocols", "linear_probe"],
        ["push", "run", "org/mae"],
        ["verify", "org/mae"],
    ]
    program = f"from hf_ssl.cli.main import run\nfor command in {commands}: run(command)\n"
    program += "import hf_ssl.scripts, hf_ssl.model_cards\nprint(hf_ssl.scripts.__file__, hf_ssl.model_cards.__file__)"
    text = run(installed[1].with_name("python"), "-c", program)
    assert "vit-base         111.7 M" in text and "unproven" in text
    assert re.search(r"^hf_ssl +\d", text, re.M) and re.search(r"^devices +cpu", text, re.M)
    found = json.loads((tmp_path / "run/eval_results.json").read_text())["results"]["pretrained"]
    assert found.keys() == {"knn", "linear_probe"}
    assert re.search(r"org/mae is whole: \d+ files", text)
    assert text.count(str(installed[1].parents[1])) == 2  # not the checkout's
