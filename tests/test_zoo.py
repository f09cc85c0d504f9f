"""Every method is whole: its four files, its registration, its presets, and imports that let it be uploaded; and the
rooms of the package import one way."""

import ast
import importlib
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from test_proofs import MARGINS
from transformers import AutoConfig

from hf_ssl.methods import METHODS
from hf_ssl.methods._base import SSLConfig, SSLModel
from hf_ssl.training import arguments

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_ssl"
FOLDER = PACKAGE / "methods"
ALLOWED = {"torch", "transformers", "huggingface_hub", "faiss", "scipy", "sklearn"}  # the last three within functions
PRESETS = {  # of the scripts that there are: `test_a_method_is_complete` names those that lack
    (name, preset): recipe
    for name in METHODS
    if (ROOT / f"scripts/pretrain_{name}.py").is_file()
    for preset, recipe in importlib.import_module(f"hf_ssl.scripts.pretrain_{name}").PRESETS.items()
}
ARGUMENTS = [
    kind
    for kind in vars(arguments).values()
    if isinstance(kind, type) and issubclass(kind, arguments.TrainingArguments)
]
PUBLISHED = {  # parameters of the whole model, as transformers, open_clip and the authors of MAE count them
    ("bert", "base"): 110_106_428,
    ("bert", "large"): 336_226_108,
    ("clip", "vit-b-16"): 149_620_737,
    ("clip", "vit-b-32"): 151_277_313,
    ("clip", "vit-l-14"): 427_616_513,
    ("mae", "vit-base"): 111_907_840,
    ("mae", "vit-huge"): 657_074_508,
    ("mae", "vit-large"): 329_541_888,
}
ROOMS = ("cli", "demo", "hub", "evaluation", "training", "data", "methods", "errors")  # each imports those after it


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_complete(name):
    for path in (
        f"hf_ssl/methods/{name}.py",
        f"scripts/pretrain_{name}.py",
        f"tests/methods/test_{name}.py",
        f"model_cards/{name}.md",
    ):
        assert (ROOT / path).is_file(), f"{name} lacks {path}"
    model = METHODS[name]
    assert model.config_class.model_type == f"ssl_{name}" and issubclass(model, SSLModel)
    assert model.__mro__[1] is SSLModel and model.config_class.__mro__[1] is SSLConfig, (
        "methods do not inherit from methods"
    )
    assert isinstance(model.input_modalities, tuple) and model.input_modalities, (
        "what it reads decides how it is evaluated"
    )
    assert name in MARGINS, f"{name} lacks its line in MARGINS of tests/test_proofs.py"
    assert type(AutoConfig.for_model(f"ssl_{name}")) is model.config_class
    assert "arxiv.org" in (FOLDER / f"{name}.py").read_text().split('"""')[1], "the docstring names the paper"
    card = (ROOT / f"model_cards/{name}.md").read_text()
    assert "{% block objective" in card and "$$" in card, (
        f"model_cards/{name}.md lacks its loss, in the block objective"
    )
    assert f"`{name}`" in (ROOT / "README.md").read_text(), f"the README's table lacks {name}"


def test_every_method_file_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("[a-z]*.py")} == set(METHODS)


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("[!_]*.py")) + sorted(FOLDER.glob("_[a-z]*.py")), ids=lambda path: path.name
)
def test_methods_stay_uploadable(path):
    """transformers copies `from .part import name` files of the same folder beside a checkpoint, and no others."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and node.module.startswith("_"), f"line {node.lineno}"
            assert (FOLDER / f"{node.module}.py").is_file()
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            for top in {name.split(".")[0] for name in names}:
                assert top in ALLOWED or top in __import__("sys").stdlib_module_names, f"{path.name} imports {top}"


@pytest.mark.parametrize("name, preset", PRESETS, ids=["-".join(key) for key in PRESETS])
def test_a_preset_is_a_model(name, preset):
    config, training = PRESETS[name, preset][:2]
    config = METHODS[name].config_class(**config)
    if "vocab_size" in training:  # of the tokenizer that is trained before the model is built
        getattr(config.backbone_config, "text_config", config.backbone_config).vocab_size = training["vocab_size"]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in METHODS[name](config).parameters())
    assert count == PUBLISHED.get((name, preset), count) and count > 0
    unknown = training.keys() - {field.name for kind in ARGUMENTS for field in fields(kind)}
    assert not unknown, f"no training argument is called {', '.join(unknown)}"


def test_the_readme_tells_the_recorded_results():
    """The table of the zoo is what `python scripts/update_readme.py` writes."""
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    readme = (ROOT / "README.md").read_text()
    assert script["updated"](readme) == readme, "stale: run python scripts/update_readme.py"


def imports(source, package):
    """(line, what of hf_ssl it names first, "" for hf_ssl itself) for every import, those within functions too."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "hf_ssl" else [module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "hf_ssl":
                yield node.lineno, rest.partition(".")[0]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def test_rooms_import_one_way():
    """The package's own `__init__` and `__main__` name all rooms; the command line starts the scripts, which import it."""
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} <= {*ROOMS}, "a room without a place in ROOMS"
    for path in FILES:
        room, *folders, name = path.relative_to(PACKAGE).parts
        allowed = {*ROOMS[ROOMS.index(room) :], *(["scripts"] if room == "cli" else [])}
        for line, other in imports(path.read_text(), ("hf_ssl", room, *folders)):
            place = "/".join((room, *folders, name))
            assert other in allowed, f"hf_ssl/{place}, line {line}: {room} must not import {other or 'all of hf_ssl'}"


def test_every_kind_of_import_is_read():
    source = """
import torch, hf_ssl.cli.parse
from hf_ssl import train
from hf_ssl.data import Views
from .. import losses
from ..hub.release import save
from ...evaluation import knn
def later():
    from . import clip
    importlib.import_module(f"hf_ssl.scripts.pretrain_{name}")
"""
    found = [name for _, name in sorted(imports(source, ("hf_ssl", "hub", "conversion")))]
    assert found == ["cli", "train", "data", "hub", "hub", "evaluation", "hub", "scripts"]


def test_no_file_is_long():
    for path in FILES:
        length = len(path.read_text().splitlines())
        assert length <= 400, f"{path.relative_to(ROOT)} has {length} lines: expected at most 400, one subject each"


def test_import_hf_ssl_is_no_slower_than_the_backbones():
    """What trains, evaluates and publishes is imported when it is asked for; its names are there all the same."""
    program = "import sys, hf_ssl; print(*sys.modules); hf_ssl.train, hf_ssl.verify, hf_ssl.TrainingArguments"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    late = {f"hf_ssl.{room}" for room in ROOMS[:-2]}  # what else is loaded, transformers asks for
    assert not late & set(done.stdout.split())
