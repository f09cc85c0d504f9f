"""A WordPiece vocabulary learnt from a corpus, the same at every run."""

import logging

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from .loading import DataError

logger = logging.getLogger(__name__)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(documents, vocab_size, max_seq_length=512):
    """An uncased BertTokenizer with at most `vocab_size` entries.

    documents: a function of nothing that returns an iterator of texts; it is called twice. A corpus with too few words
    for so many entries gives fewer, which the log says. Raises DataError if it has no words.
    """
    # The library numbers the letters inside words in the order of a hash table, which differs between runs, and breaks
    # ties between equally frequent pairs by these numbers. Told the letters beforehand, it has no choice left.
    letters = sorted(set(_learn(documents(), 0, SPECIAL_TOKENS)) - set(SPECIAL_TOKENS))
    if not letters:
        raise DataError("The corpus has no words to make a vocabulary of: found only empty documents.")
    vocabulary = _learn(documents(), vocab_size, (*SPECIAL_TOKENS, *letters))
    if len(vocabulary) != vocab_size:
        logger.warning("The vocabulary has %d entries; vocab_size asks for %d.", len(vocabulary), vocab_size)
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=max_seq_length)


def _learn(documents, vocab_size, given):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(given), show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


__all__ = ["train_wordpiece"]
