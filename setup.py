"""All but one thing stands in pyproject.toml: a registry has no files beside the README, so there its links are absolute."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
[REPOSITORY] = re.findall(
    r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
)


def absolute(readme):
    """The text with its relative links to files and pictures of the repository made absolute."""
    readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", readme)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", readme)


setup(
    long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
