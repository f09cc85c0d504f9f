"""Run transformers' common tests against our classes, and write which fail and why: make conformance

python tests/conformance/run.py                       # all methods; the table goes to outputs/conformance.md too
python tests/conformance/run.py -k "moco or bert"     # arguments are pytest's

The tests come with the source archive of the installed transformers, from the package registry, and are unpacked into a
temporary folder. TRANSFORMERS_ARCHIVE names an archive that is at hand. Its three modules of mixins that the archive leaves out,
for generation, export and keyword arguments of configs, are empty here: our models neither generate nor are exported.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import transformers

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "outputs/conformance.md"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def archive(folder):
    """transformers' source archive of the installed version."""
    if given := os.environ.get("TRANSFORMERS_ARCHIVE"):
        return Path(given)
    wanted = f"transformers=={transformers.__version__}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-binary",
        ":all:",
        "--no-deps",
        "-d",
        folder,
        wanted,
    ]
    if subprocess.run(command).returncode:
        sys.exit(f"error: pip could not download the source archive of {wanted}: expected a package registry.")
    return next(Path(folder).glob("transformers-*.tar.gz"))


def unpack(folder):
    """The archive's tests as the package `transformers_tests`."""
    package = Path(folder) / "transformers_tests"
    package.mkdir()
    with tarfile.open(archive(folder)) as source:
        for member in source.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                (package / parts[2]).write_bytes(source.extractfile(member).read())
    (package / "__init__.py").touch()
    for name, text in STAND_INS.items():
        (package / name).parent.mkdir()
        (package / name).write_text(text)


def run(folder, arguments):
    """(pytest's exit code, its report as XML)."""
    report = Path(folder) / "report.xml"
    places = [folder, HERE.parent, HERE.parent / "methods", *sys.path[1:]]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-o",
        "addopts=",
        "--disable-warnings",
        f"--junitxml={report}",
    ]
    done = subprocess.run(
        [*command, str(HERE / "conformance.py"), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    return done.returncode, ElementTree.parse(report).getroot() if report.is_file() else None


def table(report):
    """Markdown: how many tests of each method pass, and of each failing test its methods and its reason."""
    counts, failures = defaultdict(lambda: defaultdict(int)), defaultdict(list)
    for case in report.iter("testcase"):
        method = case.get("classname").rsplit("Test_", 1)[-1]
        outcome = next((child.tag for child in case), "passed")
        counts[method]["failed" if outcome in ("failure", "error") else outcome] += 1
        for child in case:
            if child.tag in ("failure", "error"):
                failures[_general(case.get("name")), _general(child.get("message", ""))].append(method)
    lines = ["| method | passed | failed | skipped |", "|---|---|---|---|"]
    lines += [f"| {name} | {n['passed']} | {n['failed']} | {n['skipped']} |" for name, n in sorted(counts.items())]
    lines += ["", "| test | methods | reason |", "|---|---|---|"]
    for (test, reason), methods in sorted(failures.items()):
        lines.append(f"| {test} | {', '.join(dict.fromkeys(methods))} | {reason} |")
    return "\n".join(lines) + "\n"


def _general(text):
    """Without the numbers of a test's parameters, the names of our classes, and what would break the table."""
    text = re.sub(r"_\d+_(fp|bf)\d+\w*$", " (all parameters)", text)
    text = re.sub(r"\w+(ForPreTraining|Config|Model)\b", r"<\1>", text)
    return " ".join(text.replace("|", "/").split())[:160]


def main():
    if importlib.util.find_spec("parameterized") is None:
        sys.exit("error: transformers' tests need the package parameterized: pip install parameterized.")
    with tempfile.TemporaryDirectory() as folder:
        unpack(folder)
        code, report = run(folder, sys.argv[1:])
    if report is not None:
        text = f"transformers {transformers.__version__}\n\n" + table(report)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
        print(f"\n{text}")
    sys.exit(code)


if __name__ == "__main__":
    main()
