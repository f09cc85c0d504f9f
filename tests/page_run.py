"""Runs what a page prints, checks what it leaves, and makes what it takes for granted."""

import ast
import glob
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import defaultdict
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import page_data
from hub_server import User
from packaging.requirements import Requirement
from page_process import OBJECTS, ROOT, enter, interpret
from pages import WRITTEN, Command, cut, output_dir, program, value
from processes import Failed, launch, run_plain

from hf_ssl.methods import METHODS

TOKEN = "hf_" + "p" * 34
RELEASE = {"config.json", "model.safetensors", "README.md"}
REPOSITORY = re.compile(r"(?<![\w./-])([A-Za-z0-9][\w.-]*/[\w.-]*\w)(?![\w./*-])")
OURS = {
    "path",
    "outputs",
    "runs",
    "org",
    *(path.name for path in ROOT.iterdir()),
}  # what stands before a slash otherwise
TIMEOUT = 1200  # seconds of one command, of a benchmark of several runs too
MISSING = re.compile(r"pip install [^\n]*\[(\w+)\]|torch sees no such device")
DONE = {}  # what has been run: (words, environment) -> the folder


class Wrong(Exception):
    """What is wrong with a command, in one sentence."""


# -- one page ---------------------------------------------------------------------------------------------------------


class Run:
    """Runs a page in a folder; `outcomes`: {what became of them: commands}, `failures`: texts."""

    def __init__(self, page, pages, folder, hub, repositories):
        self.page, self.pages, self.folder, self.hub, self.repositories = page, pages, Path(folder), hub, repositories
        self.outcomes, self.failures, self.seconds = defaultdict(list), [], {}
        hub.tokens[TOKEN] = User("org")
        for name, text in page.files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def all(self):
        for command in self.page.commands:
            self._try(str(command), lambda command=command: self.command(command))
        if self.page.python:
            self._try(f"{self.page.name}: its Python", self.python)
        return self

    def _try(self, what, act):
        started = time.monotonic()
        try:
            self.outcomes[act()].append(what)
        except (
            Failed,
            Wrong,
            SystemExit,
            ValueError,
            LookupError,
            ImportError,
            OSError,
            subprocess.SubprocessError,
        ) as error:
            self.failures.append(f"{what}\n    {type(error).__name__}: {str(error)[-1500:]}")
        self.seconds[what] = time.monotonic() - started
        if os.environ.get("PAGES_LOG"):
            print(f"{self.seconds[what]:.1f}", what[:150], file=open(os.environ["PAGES_LOG"], "a"))

    def command(self, command):
        """Run it, or check it; what became of it."""
        if command.key in DONE:
            return "run on an earlier page"
        if reason := checked_only(command.words):
            return f"checked: {reason}"
        try:
            self.execute(command)
        except Failed as error:
            if (reason := not_here(str(error))) is None:
                raise
            return f"skipped: {reason}"
        DONE[command.key] = self.folder
        return "run"

    def execute(self, command):
        words = [word for each in command.words for word in self._expanded(each, command)]
        found = program(words)
        if found is None:
            raise Wrong("no rule runs or checks such a command")
        self._provide(" ".join(words), found)
        if found.script == "compare":
            self._make_comparable(found)
        found.arguments = cut(found, flags_of(found.method) if found.method else ())
        environment = (
            dict(each.split("=", 1) for each in command.environment) | found.environment | {"HF_TOKEN": TOKEN}
        )
        before = self._written(found)
        if (folder := output_dir(found)) and value(found.arguments, "--resume_from_checkpoint") is None:
            shutil.rmtree(
                self.folder / folder, ignore_errors=True
            )  # pages show alternatives, each of which begins anew
        if found.script == "demo":
            serve(found.words, str(self.folder), environment)
        else:
            launch(enter, found.words, str(self.folder), environment, processes=found.processes, timeout=TIMEOUT)
        for path in self._results(found):
            if not path.is_file():
                raise Wrong(f"it ended well, but has not left {path.relative_to(self.folder)}")
            if before.get(path) == path.stat().st_mtime_ns:
                raise Wrong(f"it ended well, but {path.relative_to(self.folder)} is that of an earlier command")
        for repo in pushed_to(found):
            if lacking := RELEASE - self.hub.files(repo).keys():
                raise Wrong(f"it ended well, but {repo} lacks {', '.join(sorted(lacking))}")

    def _make_comparable(self, found):
        """What is compared has been evaluated."""
        for name in found.arguments:
            if (self.folder / name / "run.json").is_file() and not (
                self.folder / name / "eval_results.json"
            ).is_file():
                self.execute(Command("", 0, ("hf-ssl", "evaluate", name)))

    def _expanded(self, word, command):
        """As a shell does; a name that nothing fits stays, and is refused by what reads it."""
        if word not in command.globs:
            return [word]
        if word.startswith("runs/") and not glob.glob(word, root_dir=self.folder):
            self._make(word.replace("*", "mae"))
        return sorted(glob.glob(word, root_dir=self.folder)) or [word]

    def _results(self, found):
        if "--help" in found.arguments:
            return []
        if found.script == "evaluate":
            folder = value(found.arguments, "--output_dir") or found.arguments[0]
            local = (self.folder / folder).is_dir()
            return [self.folder / (folder if local else f"eval_{Path(folder).name}") / "eval_results.json"]
        folder = output_dir(found)
        return [self.folder / folder / name for name in sorted(RELEASE)] if folder else []

    def _written(self, found):
        return {path: path.stat().st_mtime_ns for path in self._results(found) if path.is_file()}

    def _provide(self, text, found=None):
        """Make what `text` reads and no command before has written: releases, files of authors, repositories."""
        written = (output_dir(found), value(found.arguments, "--output_dir")) if found else ()
        for name in WRITTEN.findall(text):
            if name not in written and not (self.folder / name).exists():
                self._make(name)
        if found and found.script == "convert_checkpoint":
            kind, file = found.arguments[0], self.folder / found.arguments[1]
            if kind in page_data.AUTHORS and not file.exists():
                page_data.AUTHORS[kind](file)
        for repo in REPOSITORY.findall(text):
            owner = repo.split("/")[0]
            if owner == "org" and ("models", repo) not in self.hub.repositories and not pushed_to(found):
                method = found.method if found and found.method else "mae"
                self._provide(release := f"outputs/{method}")
                self.execute(Command("", 0, ("hf-ssl", "push", release, repo, "--training_state")))
            elif owner not in OURS and (content := self.repositories(repo)) is not None:
                kind, files = content
                self.hub.add(repo, files, kind=kind)

    def _make(self, name):
        """The release `name` by the command that the pages give for it, or by that of the method it is named after."""
        here = [command for command in self.page.commands if writes(command) == name]
        others = [command for page in self.pages for command in page.commands if writes(command) == name]
        method = name.split("/")[1] if name.split("/")[1] in METHODS else "mae"
        default = Command("", 0, ("hf-ssl", "pretrain", method, "--output_dir", name))
        command = next(iter([*here, *others]), default) if name.split("/")[1] not in METHODS else default
        if (folder := DONE.get(command.key)) and (folder / name).exists():
            shutil.copytree(folder / name, self.folder / name)
        else:
            self.execute(command)
            DONE.setdefault(command.key, self.folder)

    def python(self):
        """The blocks of the page in one namespace; those that do without hf_ssl also where it is not installed."""
        plain, whole, ours = [], [], set()
        for line, code in self.page.python:
            tree = ast.parse(code, f"{self.page.name}:{line}")
            used, defined = set(), set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
                elif isinstance(node, ast.alias):
                    defined.add(node.asname or node.name)
            whole.append("\n" * (line - 1 - sum(map(lines, whole))) + code)  # so that errors name the page's lines
            if re.search(r"\b(import|from) hf_ssl\b", code) or ours & used:
                ours |= defined
            else:
                plain.append(code)
                ours -= defined
        self._provide(re.sub(r'output_dir="[^"]*"', "", "\n".join(whole)))  # which Python makes itself
        if plain:
            start = f"import os\nos.chdir({str(self.folder)!r})\n{OBJECTS}\n"
            run_plain(start + "\n".join(plain), HF_TOKEN=TOKEN)
        if ours:
            launch(interpret, "".join(whole), self.page.name, str(self.folder), {"HF_TOKEN": TOKEN}, timeout=TIMEOUT)
        return "run"


def serve(words, folder, environment):
    """Start what stays until Ctrl-C, and stop it when its page answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    pages = []

    def answers():
        try:
            with urllib.request.urlopen("http://{}:{}".format(*address), timeout=5) as page:
                pages.append(page.status)
        except OSError:
            return False
        return True

    words = [*words, "--port", str(address[1]), "--max_samples", "24"]
    launch(enter, words, folder, environment, kill_when=answers, signal="interrupt")
    if pages != [200]:  # it has ended: once more, for what it says
        launch(enter, words, folder, environment)
        raise Wrong("it ended without a page")


def lines(code):
    return code.count("\n")


def writes(command):
    try:
        found = program(list(command.words))
        return output_dir(found) if found else None
    except (SystemExit, ValueError, LookupError, ImportError):  # a command that is wrong fails where it is run
        return None


def pushed_to(found):
    if found is None:
        return []
    if found.script == "push_to_hub":
        return [found.arguments[1]]
    return [value(found.arguments, "--hub_model_id")] if "--push_to_hub" in found.arguments else []


@cache
def flags_of(method):
    """What `--help` of a script lists."""
    text = launch(enter, ["hf-ssl", "pretrain", method, "--help"], str(ROOT), {})[0]
    return frozenset(re.findall(r"^  (--\w+)", text, re.MULTILINE))


# -- what is not run --------------------------------------------------------------------------------------------------


def checked_only(words):
    """Why a command is not run here, and only looked at; None if it is run. Raises Wrong if it cannot be right."""
    if words[0] in ("pip", "uv") and "install" in words:
        for word in words[words.index("install") + 1 :]:
            check_requirement(word)
        return "installs packages: its extras are those of pyproject.toml"
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return "a target of the Makefile, dry"
    if words[0] == "pytest":
        for word in words[1:]:
            if "/" in word and not (ROOT / word.split("::")[0]).exists():
                raise Wrong(f"there is no {word}")
        return "runs the tests, as this does"
    if words[:2] == ("python", "scripts/update_readme.py"):
        return "writes to README.md and model_cards/ what default runs have measured"
    return None


def check_requirement(word):
    if word.startswith(("-", "http")):
        return
    name, _, extras = word.partition("[")
    ours = [Requirement(each) for each in requires("hf_ssl")]
    if name not in (".", "hf_ssl", "hf-ssl", *(each.name for each in ours)):
        raise Wrong(f"pyproject.toml names no package {name}")
    known = set(re.findall(r'extra == "(\w+)"', "\n".join(requires("hf_ssl"))))
    if unknown := set(filter(None, extras.rstrip("]").split(","))) - known:
        raise Wrong(f"pyproject.toml has no extra {', '.join(unknown)}: found {', '.join(sorted(known))}")


def not_here(error):
    """What a command wants that this machine lacks, if that is what it says; else None."""
    found = MISSING.search(error)
    if found is None:
        return None
    if not found[1]:
        return "wants an accelerator"
    missing = [name for name in packages_of(found[1]) if not is_installed(name)]
    return f"wants {', '.join(missing)} of the extra {found[1]}" if missing else None


def packages_of(extra):
    ours = [Requirement(each) for each in requires("hf_ssl")]
    return [each.name for each in ours if each.marker and f'extra == "{extra}"' in str(each.marker)]


def is_installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
