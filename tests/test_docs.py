"""The documentation: every link resolves, generated pages hold what they should, and Sphinx builds it without a warning."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from inspect import getsource
from pathlib import Path
from textwrap import dedent
from urllib.parse import unquote, urlsplit

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hf_ssl.cli.information import preset_config, recorded
from hf_ssl.errors import InputError
from hf_ssl.evaluation import results_table
from hf_ssl.hub.card import card_blocks
from hf_ssl.methods import METHODS
from hf_ssl.training.checkpoints import full_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = re.compile(r"^( *)(`{3,})(.*?)\n.*?^\1\2`*\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?\)")
PICTURE = re.compile(r'<img [^>]*src="([^"]+)"')
INCLUDE = re.compile(r"```\{include\} (\S+)")
TOCTREE = re.compile(r"```\{toctree\}\n(?::.*\n)*\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def generated():
    specification = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generated):
    """{path: text} of all that is Markdown: README, CONTRIBUTING, and docs/ as it is built."""
    written = [path for path in DOCS.rglob("*.md") if not set(path.relative_to(DOCS).parts) & GENERATED]
    found = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *written)}
    return found | {DOCS / place: text for place, text in generated.pages().items() if place.split("/")[0] != "source"}


GENERATED = {"_build", "_fragments", "cards", "methods", "source", "papers.md"}


def anchors(text):
    """Of a page's headings, as GitHub and MyST make them."""
    lines = re.findall(r"^#{1,4} (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.strip().lower()).replace(" ", "-") for line in lines}


def broken_links(path, text, exists, text_of):
    """Links of a page to what is not there. exists: whether a path is. text_of: a page's Markdown."""
    folder = {"_fragments": DOCS / "guides" if path.name == "presets.md" else DOCS}.get(path.parent.name, path.parent)
    prose = CODE.sub("", text)
    targets = LINK.findall(prose) + PICTURE.findall(prose) + INCLUDE.findall(text)
    targets += [f"{line.strip()}.md" for block in TOCTREE.findall(text) for line in block.splitlines() if line.strip()]
    for target in targets:
        parts = urlsplit(target)
        if parts.scheme or target.startswith("mailto:"):
            continue
        place = (folder / unquote(parts.path)).resolve() if parts.path else path
        if not exists(place):
            yield f"{target}: no such file"
        elif parts.fragment and parts.fragment not in anchors(text_of(place)):
            yield f"{target}: no such heading"


def test_every_link_resolves(generated, pages):
    sources = {(DOCS / place): text for place, text in generated.pages().items()}
    every = pages | sources

    @cache
    def text_of(path):
        text = every.get(path) or path.read_text()
        return text + "".join(text_of((path.parent / included).resolve()) for included in INCLUDE.findall(text))

    checked = 0
    for path, text in pages.items():
        broken = list(broken_links(path, text, lambda place: place in every or place.exists(), text_of))
        assert not broken, f"{path.relative_to(ROOT)}: {broken}"
        checked += len(LINK.findall(text))
    assert checked > 200


def test_the_check_of_links_bites(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, with `code`\n```bash\n# no heading\n```\n")
    text = (
        "[a](there.md#a-heading-with-code) [b](gone.md) ![c](gone.png) [d](there.md#no-heading) [e](https://x.org/y)\n"
        '<img src="no.png" alt="no">\n'
    )
    text += "```python\nx[0](gone)\n```\n"
    broken = list(broken_links(tmp_path / "page.md", text, Path.exists, Path.read_text))
    assert [each.split(":")[0] for each in broken] == ["gone.md", "gone.png", "there.md#no-heading", "no.png"]


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_loss_code_results_and_tests(generated, name):
    page = generated.method_page(name)
    assert "## Objective\n\n$$" in page
    assert dedent(getsource(METHODS[name].forward)).strip() in page
    kept = recorded(name)
    assert results_table(*({"results": run["results"], "metrics": kept["metrics"]} for run in kept["runs"])) in page
    presets, own = generated.presets_of(name), METHODS[name].config_class.__annotations__
    for part in (
        *(f"| `{preset}` |" for preset in presets),
        *(f"| `{setting}` |" for setting in own if setting in page),
    ):
        assert part in page, part
    assert f"hf-ssl pretrain {name}" in page and "## Deviations from the paper" in page
    tests = [test for test, _ in generated.tests_in(ROOT / f"tests/methods/test_{name}.py")]
    assert any(re.search(generated.COMPARED, test) for test in tests), "no test compares it with another's numbers"
    assert "{{" not in page and "{%" not in page


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_has_a_loss(generated, name):
    for recipe in generated.presets_of(name).values():
        config = full_config(preset_config(METHODS[name], recipe))
        arguments = dict(config=config, arguments=recipe.training, facts={}, last={}, pictures=(), settings=())
        objective = card_blocks(name, **arguments)["objective"]
        assert objective.count("$$") == 2 and re.findall(r"^(\d)\. ", objective, re.MULTILINE)[:3] == ["1", "2", "3"]
        equation = objective.split("$$")[1]
        assert equation.count("{") == equation.count("}") and r"\mathcal{L} =" in equation


def test_settings_are_explained_where_the_docstring_does(generated):
    table = generated.setting_table(METHODS["moco"].config_class)
    assert "| `queue_size` | `65536` | K, the negatives. |" in table
    assert "| `projector_layers` | `2` | 1, linear, or 2, with `projector_hidden_size`" in table


def test_metrics_are_those_of_forward(generated):
    assert generated.metrics_of(METHODS["barlow_twins"]) == ["invariance", "redundancy"]
    assert generated.metrics_of(METHODS["cpc_audio"]) == ["nats", "most_nats", "hits"]
    assert generated.metrics_of(METHODS["moco"]) == ["nats", "most_nats"]
    of_banks = ["nats", "most_nats", "recognized", "chance"]
    assert generated.metrics_of(METHODS["pirl"]) == ["image_loss", "tiles_loss", *of_banks]
    assert set(of_banks) <= set(generated.metrics_of(METHODS["instance_discrimination"]))
    assert "also `temperature`, `nats`, `most_nats`" in generated.logged(METHODS["clip"])


@pytest.mark.parametrize("path", sorted((DOCS / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_accelerates(path):
    config = load_config_from_file(str(path))  # which refuses what it does not know
    assert config.num_processes % config.num_machines == 0
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known and (config.distributed_type == "FSDP") == bool(config.fsdp_config)


def test_a_block_is_filled_where_it_stands(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts/update_readme.py"))
    assert script["page_of"]("long-clip") == DOCS / "results.md"
    (tmp_path / "docs/guides").mkdir(parents=True)
    page = tmp_path / "docs/guides/page.md"
    page.write_text(
        "# P\n\n<!-- results:own -->\nWhat it is:\n\n| | old |\n|---|---:|\n\nAfter.\n<!-- /results:own -->\nEnd\n"
    )
    assert script["page_of"]("own", tmp_path) == page
    with pytest.raises(InputError, match="block 'other': expected one page with .* found none"):
        script["page_of"]("other", tmp_path)
    kept = recorded("mae")
    for run in kept["runs"]:
        folder = tmp_path / f"run_{run['seed']}"
        folder.mkdir()
        (folder / "eval_results.json").write_text(json.dumps({"results": run["results"], "metrics": kept["metrics"]}))
    text = script["filled"](page.read_text(), "own", sorted(tmp_path.glob("run_*")))
    table = results_table(*({"results": run["results"], "metrics": kept["metrics"]} for run in kept["runs"]))
    assert text == f"# P\n\n<!-- results:own -->\nWhat it is:\n\n{table}\n\nAfter.\n<!-- /results:own -->\nEnd\n"
    (tmp_path / "README.md").write_text(page.read_text())
    with pytest.raises(InputError, match="found README.md, docs/guides/page.md"):
        script["page_of"]("own", tmp_path)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.formulas = [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        self.formulas += tag == "math"
        self.links += [values[name] for name in ("href", "src") if values.get(name)]


@pytest.mark.pages  # a minute and more; the tests below look at what a page is made of
def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "latex2mathml"):
        pytest.importorskip(package, reason='the packages of pip install -e ".[docs]"')
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {path.resolve(): Page(path.read_text()) for path in (tmp_path / "html").rglob("*.html")}
    for name in METHODS:
        assert built[(tmp_path / f"html/methods/{name}.html").resolve()].formulas, f"{name}: no equation"
    for path, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("http", "https", "data"), f"{path.name}: {link}"
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert place.is_file(), f"{path.name}: {link}"
            if parts.fragment and place in built:
                assert unquote(parts.fragment) in built[place].anchors, f"{path.name}: {link}"
