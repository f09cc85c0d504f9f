"""How a model learns: loop.py is the one loop, word_loop.py that of word vectors; beside them what they are set by and leave."""

from .arguments import RunArguments, TrainingArguments
from .loop import TrainingRun, train

__all__ = ["RunArguments", "TrainingArguments", "TrainingRun", "train"]
