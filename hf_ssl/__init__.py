"""Self-supervised learning, native to the Hugging Face ecosystem. Importing it registers every method with Auto classes."""

from .methods import *  # noqa: F403
