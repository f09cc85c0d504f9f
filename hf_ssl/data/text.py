"""Text columns: finding them, and cutting documents into sentences."""

import re

from .loading import DataError, find_column

TEXT_COLUMNS = ("text", "document", "sentence", "content", "article")
_TEXT = ("string", "large_string")
PROSE = 500  # characters a line from which lines are taken for paragraphs: no corpus of sentences has such a mean
_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))\s+(?=["'(\[]?[A-Z0-9])""")


def text_rows(data, text_column=None):
    """(data with the text column alone, that column's name). Raises DataError if there is none or it holds no text."""
    column = find_column(data, text_column, "text", TEXT_COLUMNS)
    kind = (data.features or {}).get(column)
    if kind is not None and getattr(kind, "dtype", None) not in _TEXT:
        raise DataError(
            f"text_column '{column}' holds {getattr(kind, 'dtype', type(kind).__name__)} values: expected text."
        )
    return data.select_columns([column]), column


def sentences(document):
    """The sentences of a document, one a line; empty lines part paragraphs and are left out. Running prose is cut where
    a full stop, question or exclamation mark stands before a space and a capital or digit."""
    lines = [line for line in map(str.strip, document.splitlines()) if line]
    if sum(map(len, lines)) <= PROSE * len(lines):
        return lines
    return [sentence for line in lines for sentence in _SENTENCE_END.split(line)]


def passages(document, words):
    """A document as passages of consecutive sentences, at most `words` words each; a longer sentence is cut."""
    found, passage = [], []
    for sentence in sentences(document):
        sentence = sentence.split()
        for part in (sentence[i : i + words] for i in range(0, len(sentence), words)):
            if passage and len(passage) + len(part) > words:
                found.append(" ".join(passage))
                passage = []
            passage += part
    return found + [" ".join(passage)] * bool(passage)


__all__ = ["TEXT_COLUMNS", "passages", "sentences", "text_rows"]
