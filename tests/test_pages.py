"""Every command and every block of Python that the pages print does what it says, on small data and for two steps.

README.md and CONTRIBUTING.md belong to each run of the tests; docs/ and the docstrings of the scripts to `make pages`.
"""

import shutil
from functools import cache
from pathlib import Path

import page_data
import pytest
from page_run import Run
from pages import read_page

ROOT = Path(__file__).parents[1]
QUICK = ("README.md", "CONTRIBUTING.md")
SOURCES = (*QUICK, "docs/**/*.md", "scripts/*.py", "hf_ssl/cli/*.py")
FILES = [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
PAGES = [page for page in (read_page(path, ROOT) for path in FILES) if page.commands or page.python]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    page_data.make_world(folder)
    return folder


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    return cache(lambda repo: page_data.repository(folder / repo, repo))


@pytest.fixture
def run(world, repositories, hub, tmp_path):
    """Runs a page in a folder of its own, where all that pages take for granted is there."""

    def run_page(page):
        folder = tmp_path / "page"
        shutil.copytree(world, folder)
        return Run(page, PAGES, folder, hub, repositories).all()

    return run_page


def parameters():
    return [
        pytest.param(page, id=page.name, marks=[] if page.name in QUICK else [pytest.mark.pages]) for page in PAGES
    ]


@pytest.mark.parametrize("page", parameters())
def test_all_that_a_page_prints_is_run(page, run):
    done = run(page)
    for outcome, commands in sorted(done.outcomes.items()):
        print(f"{page.name}: {len(commands)} {outcome}")
    for what in sorted(done.seconds, key=done.seconds.get, reverse=True)[:5]:
        print(f"    {done.seconds[what]:.1f} s  {what}")
    assert not done.failures, "\n\n".join(["", *done.failures])
    counted = sum(map(len, done.outcomes.values()))
    assert counted == len(page.commands) + bool(page.python) > 0


PAGE = """
```bash
hf-ssl pretrain mae --backbone vit-small-96 --dataset_name path/to/images \\
    --output_dir runs/mine   # a comment
```
```python
from transformers import AutoModel
width = AutoModel.from_pretrained("runs/mine").config.hidden_size
```
"""
BROKEN = {  # what is changed -> what the test must say of it
    "a flag": ("--dataset_name", "--datset_name", "--datset_name is unknown"),
    "a placeholder": ("path/to/images", "path/to/imags", "dataset_name 'path/to/imags' was not found"),
    "a command": ("hf-ssl pretrain", "hf-ssl pretain", "The command 'pretain' is unknown"),
    "a method": ("pretrain mae", "pretrain mea", "The method 'mea' is unknown"),
    "a program": ("hf-ssl pretrain", "hfssl pretrain", "no rule runs or checks such a command"),
    "a preset": ("vit-small-96", "vit-smal-96", "backbone 'vit-smal-96' is neither one of"),
    "a name of Python": ("config.hidden_size", "config.hiden_size", "has no attribute 'hiden_size'"),
}


def read(text, folder):
    (folder / "page.md").write_text(text)
    return read_page(folder / "page.md", folder)


def test_a_page_that_is_right_passes(run, tmp_path):
    page = read(PAGE, tmp_path)
    assert [(command.line, command.words[-1]) for command in page.commands] == [(3, "runs/mine")]
    done = run(page)
    assert not done.failures and sum(map(len, done.outcomes.values())) == 2


@pytest.mark.parametrize("part", BROKEN)
def test_a_page_that_is_wrong_fails(run, tmp_path, part):
    right, wrong, message = BROKEN[part]
    assert right in PAGE
    done = run(read(PAGE.replace(right, wrong), tmp_path))
    assert any(message in failure for failure in done.failures), done.failures


@pytest.mark.parametrize(
    "line, message",
    [
        ("pip install -e '.[adio]'", "no extra adio"),
        ("pip install pilow", "no package pilow"),
        ("make tset", "make"),
        ("pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
    ],
)
def test_what_is_only_checked_is_checked(run, tmp_path, line, message):
    [failure] = run(read(f"```bash\n{line}\n```\n", tmp_path)).failures
    assert message in failure
