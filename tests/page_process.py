"""What runs in a process of its own: a command as a user's shell would start it, or the Python of a page."""

import importlib
import os
import pkgutil
import re
import runpy
import sys
import tempfile
from pathlib import Path

from hf_ssl.evaluation import protocols

ROOT = Path(__file__).parents[1]
OBJECTS = """
import soundfile
from pathlib import Path
from PIL import Image
image = Image.open("photo.jpg")
waveform, _ = soundfile.read(next(Path("path/to/audio").glob("*.wav")))
"""  # what the pages call yours


def enter(words, folder, environment):
    """What the words print. Raises RuntimeError with what stood in stderr."""
    os.chdir(folder)
    os.environ |= environment
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        code = 0
        try:
            start(words)
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), err.seek(0)
        if code != 0:
            raise RuntimeError(f"exit code {code}: {err.read().strip()}")
        return out.read()


def start(words):
    shorten_evaluations()
    if words[0] == "hf-ssl":
        from hf_ssl.cli.main import main

        sys.argv = list(words)
        main()
    elif words[1] == "-m":
        sys.argv = list(words[2:])
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def shorten_evaluations():
    """Protocols that train do so for MIN_STEPS at least, however few the rows; here two will do."""
    for module in pkgutil.iter_modules(protocols.__path__, f"{protocols.__name__}."):
        module = importlib.import_module(module.name)
        if hasattr(module, "MIN_STEPS"):
            module.MIN_STEPS = 2
        for function in vars(module).values():
            if "min_steps" in (getattr(function, "__kwdefaults__", None) or ()):
                function.__kwdefaults__["min_steps"] = 2


def interpret(code, name, folder, environment):
    """Run the Python of a page in one namespace, its trainings for two steps."""
    code = re.sub(r"\bmax_steps=\d+", "max_steps=2", code)
    os.chdir(folder)
    os.environ |= environment
    namespace = {"__name__": "__main__"}
    exec(OBJECTS, namespace)
    exec(compile(code, name, "exec"), namespace)
