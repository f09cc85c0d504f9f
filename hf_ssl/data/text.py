"""Text columns: finding them, and cutting documents into sentences."""

import regex

from .loading import DataError, find_column

TEXT_COLUMNS = ("text", "document", "sentence", "content", "article")
_TEXT = ("string", "large_string")
# Unicode's property Sentence_Break (UAX 29) says which marks end sentences and what may stand between them and the next
_MARKS = r"\p{SB=ATerm}\p{SB=STerm}"
_STOP = regex.compile(
    rf"(?:[{_MARKS}]++|(?<=\p{{Greek}})[;\u037e])"  # the Greek question mark
    r"(?:\p{SB=Close}*+\s++|[\p{SB=Close}--\p{Ps}--\p{Pi}]*+)",  # before no space an opening quote is the next sentence's
    regex.V1,
)
_GOES_ON = regex.compile(rf"\p{{SB=SContinue}}|[^\p{{L}}\p{{N}}{_MARKS}]*+(?:\p{{Lower}}|[{_MARKS}]|\Z)")
_UNCASED = regex.compile(r"[^\p{L}\p{N}]?\p{SB=OLetter}")
_NUMBER = regex.compile(r"[(\[]?\p{N}")
_NUMERAL = regex.compile(r"[^\p{L}\p{N}]*+(?:\p{N}+|[ivxlc]+|[IVXLC]+)\Z")
_LAST_WORD = regex.compile(r"[\p{L}\p{M}\p{N}.]*\Z")
_LONGEST_WORD = 20  # letters before a full stop that are looked at
_BEFORE_NAMES = frozenset(
    "mr mrs ms messrs dr drs prof st ste mt rev hon gen col capt lt sgt maj gov sen rep mme mlle sr sra srta dra dott sig viz vs "
    "cf ca approx им ул св акад проф тов см".split()
)
_BEFORE_NUMBERS = frozenset(
    "no nos nr fig figs p pp vol vols ch chap sec sect art vv ver ed al ps abb bd cap lib prop obs exper jan feb mar apr jun jul "
    "aug sep sept oct nov dec рис табл стр гл ср".split()
)


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
    """The sentences of a document: its lines, empty ones left out, cut where a sentence ends within them.

    As Unicode's rules for sentences have it (UAX 29), in any script, with or without spaces between sentences. Four things
    differ: a question or exclamation mark before a small letter ends nothing ("Stop!" she said), a number may begin a sentence,
    an opening quote belongs to the sentence that follows, and initials, numerals of lists and common abbreviations ("Mr.",
    "e.g.", "Fig. 5") are no ends.
    """
    return [sentence for line in map(str.strip, document.splitlines()) if line for sentence in _sentences(line)]


def _sentences(line):
    start = 0
    for stop in _STOP.finditer(line):
        if _is_end(line, start, stop):
            yield line[start : stop.end()].rstrip()
            start = stop.end()
    yield line[start:]


def _is_end(line, start, stop):
    """Does the sentence that begins at `start` end with `stop`, a match of _STOP?"""
    after, mark = stop.end(), stop[0].rstrip()
    if _GOES_ON.match(line, after):
        return False
    if mark == stop[0] and mark[0] in ".!?;\u037e\uff0e" and not _UNCASED.match(line, after):
        return False  # no space: 3.50, example.com
    if mark != ".":
        return True
    before = line[max(start, stop.start() - _LONGEST_WORD) : stop.start()]
    word = _LAST_WORD.search(before)[0]
    if "." in word and all(part.isalpha() and len(part) <= 2 for part in word.split(".")):
        return False
    if len(word) == 1 and word.lower() != word.upper() and word != "I":
        return False
    if word.lower() in _BEFORE_NAMES or word.lower() in _BEFORE_NUMBERS and _NUMBER.match(line, after):
        return False
    return not (_NUMERAL.match(before) and stop.start() - start <= _LONGEST_WORD)


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
