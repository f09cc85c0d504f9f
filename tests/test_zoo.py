"""Every method is whole: its four files, its registration, and imports that let it be uploaded."""

import ast
import runpy
from pathlib import Path

import pytest
from transformers import AutoConfig

from hf_ssl.methods import METHODS
from hf_ssl.methods._base import SSLConfig, SSLModel

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "hf_ssl" / "methods"
ALLOWED = {"torch", "transformers", "huggingface_hub"}


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
    assert isinstance(model.input_modalities, tuple), "what it reads first decides how a run is evaluated"
    assert type(AutoConfig.for_model(f"ssl_{name}")) is model.config_class
    assert "arxiv.org" in (FOLDER / f"{name}.py").read_text().split('"""')[1], "the docstring names the paper"
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


def test_the_readme_tells_the_recorded_results():
    """The table of the zoo is what `python scripts/update_readme.py` writes."""
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    readme = (ROOT / "README.md").read_text()
    assert script["updated"](readme) == readme, "stale: run python scripts/update_readme.py"
