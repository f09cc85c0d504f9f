"""A WordPiece vocabulary learnt from a corpus, the same at every run."""

import logging

import regex
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from .loading import DataError

logger = logging.getLogger(__name__)
LONGEST_WORD = (
    100  # letters; a BertTokenizer takes longer ones for unknown, and learning from one takes their number squared
)
_LONG_WORD = regex.compile(  # of words as BertPreTokenizer cuts them
    rf"[^\s\p{{P}}$+<=>^`|~\p{{Ideographic}}]{{{LONGEST_WORD + 1},}}+"
)
LEFT_OUT = 0.1  # part of a text, without a warning
PIECE = 2**18  # characters that are normalised at a time, which takes many bytes for each
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(documents, vocab_size, max_seq_length=512):
    """An uncased BertTokenizer with at most `vocab_size` entries.

    documents: a function of nothing that returns an iterator of texts; it is called twice. A corpus with too few words
    for so many entries gives fewer, which the log says, as it does if many words have more than LONGEST_WORD letters, which are
    left out. Raises DataError if it has no words.
    """
    logger.info("Learning a vocabulary of %d entries from the documents", vocab_size)
    # The library numbers the letters inside words in the order of a hash table, which differs between runs, and breaks
    # ties between equally frequent pairs by these numbers. Told the letters beforehand, it has no choice left.
    size = {"read": 0, "left out": 0}
    letters = sorted(set(_learn(_pieces(documents(), size), 0, SPECIAL_TOKENS)) - set(SPECIAL_TOKENS))
    left_out = f"{size['left out']:,} of {size['read']:,} characters stand in words of more than {LONGEST_WORD}"
    if not letters:
        found = left_out if size["left out"] else "only empty documents"
        raise DataError(f"The corpus has no words to make a vocabulary of: found {found}.")
    if size["left out"] > LEFT_OUT * size["read"]:
        logger.warning("%s, which WordPiece does not know: it is for text with spaces between words.", left_out)
    vocabulary = _learn(_pieces(documents(), size), vocab_size, (*SPECIAL_TOKENS, *letters))
    if len(vocabulary) != vocab_size:
        logger.warning("The vocabulary has %d entries; vocab_size asks for %d.", len(vocabulary), vocab_size)
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=max_seq_length)


def _pieces(documents, size):
    """Texts without the words that are too long, in pieces of at most PIECE characters; `size` counts the characters."""
    for document in documents:
        long = any(len(word) > LONGEST_WORD for word in document.split())  # which is quick to tell
        text = _LONG_WORD.sub(" ", document) if long else document
        size["read"] += len(document)
        size["left out"] += len(document) - len(text)
        start = 0
        while start < len(text):
            end = start + PIECE
            if end < len(text):
                end = text.rfind(" ", start, end) + 1 or end
            yield text[start:end]
            start = end


def _learn(documents, vocab_size, given):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(given), show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


__all__ = ["train_wordpiece"]
