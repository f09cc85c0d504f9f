"""A local page that shows a release: `hf-ssl demo`, and the app of a Space. A panel is a file, and appears where it fits.

`fits(release)` looks at what the release reads, or at what its method can do, never at its name: a model with `reconstruct`
and `grid` gets the panel that fills in patches. `build(release)` lays out its components.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

from .page import build_page, serve  # noqa: E402
from .release import load_release  # noqa: E402

__all__ = ["build_page", "load_release", "serve"]
