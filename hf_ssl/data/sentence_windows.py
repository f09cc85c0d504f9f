"""From documents to windows of sentences that follow each other, as word numbers."""

import torch
from datasets import Dataset, Features, List, Value

from .loading import DataError
from .segments import check_share, document_groups, identity, map_blocks, peek, tokenize

LEAST_USED = 0.5  # part of the sentences, without a warning
FEATURES = Features({"input_ids": List(List(Value("int32")))})  # sentences of words


def sentence_rows(data, column, tokenizer, sentences, max_words):
    """A text data set or stream as rows of FEATURES: windows of at most `sentences` sentences, of at most `max_words` words.

    Read in blocks and cached as `segments.token_rows` does it. Raises DataError if nothing is left.
    """
    make = WindowMaker(tokenizer, sentences, max_words, column)
    rows = map_blocks(data, column, make, FEATURES, (identity(tokenizer), sentences, max_words))
    if isinstance(data, Dataset) and len(rows) == 0:
        raise DataError(
            f"Nothing is left of the {len(data)} documents in '{column}': none has two sentences with words of the vocabulary."
        )
    used, total = make.used(peek(data, column))
    check_share(
        used, total, LEAST_USED, f"sentences of some documents in '{column}' are used",
        "documents of two or more sentences with words of the vocabulary",
    )  # fmt: skip
    return rows


class WindowMaker:
    """What turns a block of documents to rows; `sentence_rows` says how. Sentences without a known word are left out, and
    then documents of one sentence, which nothing predicts."""

    def __init__(self, tokenizer, sentences, max_words, column="text"):
        self.tokenizer, self.sentences, self.max_words, self.column = tokenizer, sentences, max_words, column

    def __call__(self, block):
        windows = (window for group in document_groups(block[self.column]) for window in self.windows(group))
        return {"input_ids": list(windows)}

    def used(self, block):
        """(sentences of a block that stand in windows, all of its sentences)."""
        windows, total = self(block)["input_ids"], 0
        for group in document_groups(block[self.column]):
            total += sum(map(len, group))
        return sum(map(len, windows)), total

    def windows(self, documents):
        """Of documents as lists of sentences: each is cut to windows that are as long as each other, to one."""
        for document in tokenize(self.tokenizer, documents):
            cut = (sentence[: self.max_words] for sentence in document)
            known = [sentence for sentence in cut if any(sentence)]
            count = -(-len(known) // self.sentences)
            for i in range(count):
                window = known[len(known) * i // count : len(known) * (i + 1) // count]
                if len(window) > 1:
                    yield window


class WindowBatches:
    """Rows of `sentence_rows` to `forward`'s arguments."""

    def __init__(self, sentences):
        self.sentences = sentences

    def decode(self, row):
        return row["input_ids"]

    def collate(self, rows, sample_seeds):
        """input_ids: (N, S, L), 0 where a window has fewer sentences and a sentence fewer words than others."""
        length = max(len(sentence) for row in rows for sentence in row)
        input_ids = torch.zeros(len(rows), self.sentences, length, dtype=torch.int64)
        for number, row in enumerate(rows):
            for place, sentence in enumerate(row):
                input_ids[number, place, : len(sentence)] = torch.tensor(sentence)
        return {"input_ids": input_ids}

    def view(self, **tensors):
        return tensors


__all__ = ["FEATURES", "WindowBatches", "WindowMaker", "sentence_rows"]
