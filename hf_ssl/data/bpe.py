"""CLIP's tokenizer learnt from captions: byte pairs inside lower-case words, the same at every run."""

import json
import logging

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .loading import DataError

logger = logging.getLogger(__name__)
BEGIN, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_bpe(captions, vocab_size, max_seq_length=77):
    """A CLIPTokenizer with at most `vocab_size` entries: the bytes, the bytes that end a word, merges, begin and end.

    captions: an iterator of texts. Too few words for so many entries give fewer, which the log says. Raises DataError if
    there are no words.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [letter + LAST for letter in letters]
    learnt = Tokenizer(models.BPE(end_of_word_suffix=LAST))
    pipeline = CLIPTokenizer().backend_tokenizer
    learnt.normalizer, learnt.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    # told as special tokens, letters have the same numbers at every run, and the library breaks ties by these numbers
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size - 2, len(letters)), special_tokens=letters, end_of_word_suffix=LAST, show_progress=False
    )  # fmt: skip
    learnt.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learnt.to_str())["model"]["merges"]]
    if not merges:
        raise DataError("The captions have no words to make a vocabulary of: found only empty ones.")
    entries = [*letters, *dict.fromkeys("".join(merge) for merge in merges), BEGIN, END]
    if len(entries) != vocab_size:
        logger.warning("The vocabulary has %d entries; vocab_size asks for %d.", len(entries), vocab_size)
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_seq_length)
