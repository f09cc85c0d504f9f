"""Text as word numbers: splitting by Arrow, one pass that counts, and a corpus that is read in blocks.

Words are runs of letters and digits, in lower case, unless the text is prepared already, as for word2vec.c: then they are
what stands between spaces. No window reaches beyond a line.
"""

import json
from hashlib import sha256

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.distributed import split_dataset_by_node
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from .loading import DataError

UNKNOWN = "[UNK]"  # id 0: padding and unknown words in the tokenizer, the end of a line in a corpus
NO_WORD = r"[^\pL\pM\pN]+"  # marks are parts of letters
SPACES = r"[\s\x1c-\x1f]+"  # as Arrow has them
ROWS = 1000  # of a stream, split at a time
LETTERS = 2**23  # of rows that are held, at least


def split_words(texts, prepared=False):
    """Lists of words, one for each line of `texts`, an Arrow array of strings; empty lines are left out."""
    texts = pc.drop_null(pc.cast(texts, pa.large_string()))  # rows may hold more than 2 GiB together
    lines = pc.list_flatten(pc.split_pattern(texts, "\n"))
    if not prepared:
        lines = pc.replace_substring_regex(pc.utf8_lower(lines), NO_WORD, " ")
    lines = pc.utf8_trim_whitespace(lines)
    return pc.utf8_split_whitespace(lines.filter(pc.not_equal(lines, "")))


def word_tokenizer(words, prepared=False):
    """A native tokenizer that splits as `split_words` does. words: V - 1 strings, ids from 1; 0 is what is unknown."""
    vocabulary = {word: number for number, word in enumerate(words, start=1)} | {UNKNOWN: 0}
    tokenizer = Tokenizer(WordLevel(vocabulary, UNKNOWN))
    if prepared:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPACES), "removed")
    else:
        # the one letter that Arrow makes smaller in another way
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("\u0130", "i"), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}]+"), "removed", invert=True)
    return _native(tokenizer)


def add_words(tokenizer, words):
    """A tokenizer as `word_tokenizer` makes it, with further words, which get the ids after those that there are.

    transformers' `add_tokens` would find them inside of other words too.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {word: number for number, word in enumerate(words, start=len(vocabulary))}
    return _native(Tokenizer.from_str(json.dumps(state)))


def read_as(tokenizer, word):
    """The one word that the tokenizer takes `word` for, in its own case; None if it takes it apart, or for nothing."""
    backend = tokenizer.backend_tokenizer
    word = backend.normalizer.normalize_str(word) if backend.normalizer else word
    parts = backend.pre_tokenizer.pre_tokenize_str(word)
    return parts[0][0] if len(parts) == 1 and len(parts[0][0]) == len(word) else None


def _native(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )


class Corpus:
    """The part of a text that this process trains on, as word numbers.

    words, counts: of the vocabulary of all processes, most frequent first; counts, (V,) int64, begins with 0 for id 0.
    length: words of the vocabulary in this process's part. unknown: how many were rarer than min_count. digest: of words and
    counts, by which a resumed run knows its text.
    """

    def __init__(self, rows, column, min_count=5, prepared=False, process=0, processes=1, gather=lambda part: [part]):
        self.rows = split_dataset_by_node(rows, process, processes) if processes > 1 else rows
        self.column, self.prepared = column, prepared
        self.streaming = isinstance(rows, datasets.IterableDataset)
        numbers, counts, kept = {}, [], []  # of every word that occurs, in the order of their first occurrence
        for texts in self._texts():
            lists = split_words(texts, prepared)
            coded = pc.dictionary_encode(pc.list_flatten(lists))
            own = np.array([numbers.setdefault(word, len(numbers)) for word in coded.dictionary.to_pylist()], np.int32)
            indices = coded.indices.to_numpy()
            counts.extend([0] * (len(numbers) - len(counts)))
            for number, count in zip(own.tolist(), np.bincount(indices, minlength=len(own)).tolist(), strict=True):
                counts[number] += count
            if not self.streaming:
                kept.append(_with_line_ends(own[indices] + 1 if len(own) else indices, lists))

        own_counts = dict(zip(numbers, counts, strict=True))
        total = {}
        for part in gather(own_counts):
            for word, count in part.items():
                total[word] = total.get(word, 0) + count
        frequent = [word for word, count in total.items() if count >= min_count and word != UNKNOWN]
        self.words = sorted(frequent, key=lambda word: (-total[word], word))
        if len(self.words) < 2:
            raise DataError(
                f"The text has {len(self.words)} words that occur at least min_count={min_count} times, of "
                f"{len(total)} different ones: expected at least 2."
            )
        self.counts = torch.tensor([0, *(total[word] for word in self.words)])
        self.total = int(self.counts.sum())
        self.digest = sha256("\n".join(self.words).encode() + self.counts.numpy().tobytes()).hexdigest()
        self.unknown = sum(total.values()) - self.total
        self.length = sum(own_counts.get(word, 0) for word in self.words)
        if self.length == 0:
            raise DataError(
                f"Process {process} of {processes} has no text: start fewer processes, or use more shards."
            )
        self.vocabulary = pa.array(self.words, pa.large_string())
        if not self.streaming:
            ids = {word: number for number, word in enumerate(self.words, start=1)}
            renumber = np.array([0, *(ids.get(word, -1) for word in numbers)], np.int32)
            self.ids = _drop_rare([renumber[part] for part in kept])

    def blocks(self, count, epoch=0, block=0, position=None):
        """Endless: (epoch, block, ids (n,) int64 with a 0 after each line, position to go on from after it).

        Each epoch has `count` blocks of as many words.
        """
        while True:
            bounds = [self.length * number // count for number in range(count + 1)]
            if self.streaming:
                parts = self._read_blocks(np.diff(bounds)[block:], position)
            else:
                words_before = np.concatenate([[0], np.cumsum(self.ids != 0)])
                cuts = np.searchsorted(words_before, bounds)  # where the first so many words end
                parts = ((self.ids[cuts[n] : cuts[n + 1]], None) for n in range(block, count))
            for number, (ids, after) in enumerate(parts, start=block):
                yield epoch, number, torch.from_numpy(ids.astype(np.int64)), after if number + 1 < count else None
            epoch, block, position = epoch + 1, 0, None

    def _texts(self):
        """The column, in pieces that are worth the overhead of each; lines as rows are short, documents long."""
        pieces, size = [], 0
        for table in self.rows.with_format("arrow").iter(ROWS):
            pieces += pa.chunked_array(table[self.column]).chunks
            size += sum(piece.nbytes for piece in pieces[-1:])
            if size > LETTERS:
                yield pa.concat_arrays(pieces)
                pieces, size = [], 0
        if pieces:
            yield pa.concat_arrays(pieces)

    def _read_blocks(self, lengths, position):
        """Cut the stream into blocks of so many words. A position is where the stream stood before the rows that the block
        ends in, and how many of their numbers are used."""
        data = self.rows.with_format("arrow")
        start, skip = (position["stream"], position["used"]) if position else (data.state_dict(), 0)
        data.load_state_dict(start)
        source = iter(data.iter(ROWS))
        ids, used = np.zeros(0, np.int32), 0  # of the rows last read, and how many numbers of them are used
        for length in lengths:
            parts, missing = [], length
            while missing:
                if used == len(ids):
                    start = data.state_dict()
                    table = next(source, None)
                    if table is None:
                        raise DataError("The stream has become shorter since its words were counted.")
                    lists = split_words(pa.chunked_array(table[self.column]).combine_chunks(), self.prepared)
                    found = pc.index_in(pc.list_flatten(lists), value_set=self.vocabulary)
                    numbers = pc.fill_null(pc.add(found, 1), -1).to_numpy(zero_copy_only=False)
                    ids, used, skip = _drop_rare([_with_line_ends(numbers, lists)]), skip, 0
                words_before = np.cumsum(ids[used:] != 0)
                end = used + min(int(np.searchsorted(words_before, missing)) + 1, len(ids) - used)
                parts.append(ids[used:end])
                missing -= int((parts[-1] != 0).sum())
                used = end
            yield np.concatenate(parts), {"stream": start, "used": used}


def _with_line_ends(numbers, lists):
    """The words' numbers, 1 or more or -1, with a 0 after each list."""
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64))
    return np.insert(numbers.astype(np.int32), ends, 0)


def _drop_rare(parts):
    return np.concatenate([part[part >= 0] for part in parts] or [np.zeros(0, np.int32)])


__all__ = ["UNKNOWN", "Corpus", "add_words", "read_as", "split_words", "word_tokenizer"]
