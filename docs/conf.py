"""Settings of Sphinx: `make docs`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the two extensions that stand here

project = "hf_ssl"
author = "The hf_ssl developers"
version = release = version_of("hf_ssl")
extensions = ["myst_parser", "sphinx_copybutton", "generated", "mathml"]
exclude_patterns = ["_build", "_fragments"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "hf_ssl"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_copyright = False
