"""From documents to rows of tokens: pairs of segments for next-sentence prediction, or rows packed with text.

Pairs are drawn as in create_pretraining_data.py of https://github.com/google-research/bert (Devlin et al. 2018), random
number by random number. Two things differ: the random second segment comes from another document of the same block of
BLOCK documents, so that a stream is read with bounded memory, and documents of more than PIECE characters are cut.
"""

import json
import logging
import random
import zlib
from itertools import chain, islice

import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from torch.nn.utils.rnn import pad_sequence

from ..methods._random import seed_from
from .loading import DataError
from .text import sentences

logger = logging.getLogger(__name__)
BLOCK = 2000  # documents that are read together
PIECE = 2**18  # characters of a document that are taken together; a longer one counts as several
GROUP = 2**25  # characters of a block that are held as tokens at a time
SHORT = 0.1  # part of the documents that is cut into segments of a random length
LEAST, LEAST_PAIRS = 0.01, 0.2  # part of the pairs that are true ones: to train at all, and without a warning
FEWEST = 20  # pairs or sentences, of which a part says anything
PEEK, PEEK_SIZE = 1000, 2**21  # documents, and characters of them, by which the rest is judged
SMALLEST = 8  # tokens; no text is begun in less room at the end of a packed row
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "lengths": List(Value("int32")),  # of what the row holds, special tokens counted
        "next_sentence_label": Value("int8"),  # 0: the second segment follows the first, 1: it is random
        "seed": Value("int64"),
    }
)


def token_rows(data, column, tokenizer, max_seq_length, pairs=True, copies=1, seed=0):
    """A text data set or stream as rows of FEATURES, each of at most `max_seq_length` tokens.

    pairs: two segments a row; else as much text as fits, of several documents. copies: how often each document is used,
    with other draws. Both kinds of data are read in blocks; those in memory or on disk are prepared once and cached.
    Raises DataError if nothing is left.
    """
    make = RowMaker(tokenizer, max_seq_length, pairs, copies, seed, column)
    rows = map_blocks(data, column, make, FEATURES, (identity(tokenizer), max_seq_length, pairs, copies, seed))
    if isinstance(data, Dataset) and len(rows) == 0:
        raise DataError(
            f"Nothing is left of the {len(data)} documents in '{column}': found no sentence in any of them."
        )
    if pairs:
        labels = (
            rows["next_sentence_label"]
            if isinstance(data, Dataset)
            else make(peek(data, column))["next_sentence_label"]
        )
        check_share(
            sum(label == 0 for label in labels), len(labels), LEAST_PAIRS,
            f"pairs of segments in '{column}' follow each other",
            f"documents of several sentences, each shorter than max_seq_length={max_seq_length}, or --config_overrides "
            "next_sentence_prediction=false",
        )  # fmt: skip
    return rows


def peek(data, column):
    """Some documents as a block: the first of a stream, of other data some from everywhere, and of long ones their beginnings."""
    if isinstance(data, Dataset):
        texts = data[:: -(-len(data) // PEEK)][column]
    else:
        texts = next(data.iter(PEEK), {column: []})[column]
    return {column: [text and text[: PEEK_SIZE // PEEK] for text in texts]}


def check_share(used, total, least, what, expected):
    """Warn where less than `least` of the `total` is used; raises DataError where it is next to nothing."""
    if total <= FEWEST or used >= least * total:
        return
    message = (
        f"{used:,} of {total:,} {what}: expected {expected}. Each row must be a document; of a folder of .txt files each file is "
        "one, of a single file each paragraph between blank lines, or without them each line."
    )
    if used < LEAST * total:
        raise DataError(f"Only {message}")
    logger.warning("Only %s", message)


def map_blocks(data, column, make, features, settings):
    """Documents as rows: `make` of each block of BLOCK, {column: texts} to {name of a feature: values}. settings: what decides
    the rows besides the data; those of a Dataset are prepared once and cached."""
    how = dict(batched=True, batch_size=BLOCK, remove_columns=[column], features=features)
    if not isinstance(data, Dataset):
        rows = data.map(make, **how)
        rows.info.splits = None  # their number is the documents', not the rows'
        return rows
    return data.map(make, new_fingerprint=Hasher.hash((data._fingerprint, column, *settings)), **how)


def identity(tokenizer):
    """What decides its tokens, without what calling it leaves in it."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    if not tokenizer.is_fast:
        return vocabulary
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return vocabulary, state["normalizer"], state["pre_tokenizer"]


class RowMaker:
    """What turns a block of documents to rows; `token_rows` says how."""

    def __init__(self, tokenizer, max_seq_length, pairs=True, copies=1, seed=0, column="text"):
        self.tokenizer, self.max_seq_length, self.pairs = tokenizer, max_seq_length, pairs
        self.copies, self.seed, self.column = copies, seed, column

    def __call__(self, block):
        rows = [row for group in document_groups(block[self.column]) for row in self.rows(group)]
        return {name: [row[i] for row in rows] for i, name in enumerate(FEATURES)}

    def rows(self, documents):
        """Of documents as lists of sentences: tuples of what FEATURES names. What is drawn follows from the seed and their
        text, since a stream has no row numbers."""
        text = zlib.crc32("\n".join(chain.from_iterable(documents)).encode("utf-8", "replace"))
        draw = random.Random(seed_from(self.seed, text))
        documents = tokenize(self.tokenizer, documents)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        rows = []
        for _ in range(self.copies):
            if not self.pairs:
                rows += [(*row, 0) for row in packed(documents, self.max_seq_length, cls, sep)]
                continue
            for number in range(len(documents)):
                for a, b, is_random in segment_pairs(documents, number, self.max_seq_length - 3, draw):
                    rows.append(([cls, *a, sep, *b, sep], [len(a) + 2, len(b) + 1], int(is_random)))
        draw.shuffle(rows)
        return [(*row, draw.getrandbits(63)) for row in rows]


def tokenize(tokenizer, documents):
    """Lists of sentences as lists of lists of tokens; what has no tokens is left out."""
    tokens = tokenizer(
        list(chain.from_iterable(documents)), add_special_tokens=False, split_special_tokens=True, verbose=False,
        return_attention_mask=False, return_token_type_ids=False,
    )["input_ids"] if any(documents) else []  # fmt: skip
    tokens = iter(tokens)
    documents = [[sentence for sentence in islice(tokens, len(document)) if sentence] for document in documents]
    return [document for document in documents if document]


def document_groups(texts):
    """Texts (or None) as lists of documents, each a list of sentences, of at most GROUP characters or one piece."""
    group, size = [], 0
    for piece in (piece for text in texts for piece in _pieces(text or "")):
        length = sum(map(len, piece))
        if group and size + length > GROUP:
            yield group
            group, size = [], 0
        group.append(piece)
        size += length
    if group:
        yield group


def _pieces(text):
    """The sentences of a document, cut where it exceeds PIECE characters."""
    piece, size = [], 0
    for sentence in sentences(text):
        for part in (sentence[start : start + PIECE] for start in range(0, len(sentence), PIECE)):
            if piece and size + len(part) > PIECE:
                yield piece
                piece, size = [], 0
            piece.append(part)
            size += len(part)
    if piece:
        yield piece


def segment_pairs(documents, number, room, draw):
    """Pairs (first segment, second segment, whether the second is random) of document `number`.

    documents: lists of sentences, each a list of tokens, none of them empty. room: tokens of a pair. draw: a
    random.Random; the calls and their order are the original's.
    """
    document = documents[number]
    target = draw.randint(2, room) if draw.random() < SHORT else room
    start = 0
    while start < len(document):
        end = size = 0
        while start + end < len(document) and size < target:
            size += len(document[start + end])
            end += 1
        chunk = document[start : start + end]
        split = draw.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
        first = list(chain.from_iterable(chunk[:split]))
        is_random = len(chunk) == 1 or draw.random() < 0.5
        if is_random:
            second = _random_segment(documents, number, target - len(first), draw)
            start += split  # the rest of the chunk is used again
        else:
            second = list(chain.from_iterable(chunk[split:]))
            start += end
        yield *_truncated(first, second, room, draw), is_random


def _random_segment(documents, number, target, draw):
    """At least `target` tokens of another document, if it has so many; of the same one if ten draws find no other."""
    for _ in range(10):
        other = draw.randint(0, len(documents) - 1)
        if other != number:
            break
    segment = []
    for sentence in documents[other][draw.randint(0, len(documents[other]) - 1) :]:
        segment += sentence
        if len(segment) >= target:
            break
    return segment


def _truncated(first, second, room, draw):
    """Both segments, the longer one shortened token by token, at the front or at the back."""
    front, back = [0, 0], [len(first), len(second)]
    while (length := back[0] - front[0]) + (other := back[1] - front[1]) > room:
        longer = 0 if length > other else 1
        if draw.random() < 0.5:
            front[longer] += 1
        else:
            back[longer] -= 1
    return first[front[0] : back[0]], second[front[1] : back[1]]


def packed(documents, max_seq_length, cls, sep):
    """Rows (tokens, lengths of their texts) that are full but for less than SMALLEST tokens: each text is [CLS], a
    document or as much of it as fits, [SEP]."""
    row, lengths = [], []
    for document in documents:
        tokens = list(chain.from_iterable(document))
        start = 0
        while start < len(tokens):
            if row and max_seq_length - len(row) < SMALLEST:
                yield row, lengths
                row, lengths = [], []
            text = tokens[start : start + max_seq_length - len(row) - 2]
            start += len(text)
            row = [*row, cls, *text, sep]
            lengths = [*lengths, len(text) + 2]
    if row:
        yield row, lengths


class TokenBatches:
    """Rows of `token_rows` to `forward`'s arguments, padded to the longest.

    static_masks: a row hides the same tokens in every epoch; else other ones in each.
    """

    def __init__(self, pad_token_id, pairs=True, static_masks=False):
        self.pad_token_id, self.pairs, self.static_masks = pad_token_id, pairs, static_masks

    def decode(self, row):
        return row

    def collate(self, rows, sample_seeds):
        """input_ids: (N, L). For pairs attention_mask, token_type_ids and next_sentence_label, (N,); else document_ids,
        which number the texts of a row from 1, 0 for padding."""
        input_ids = _padded([row["input_ids"] for row in rows], self.pad_token_id)
        numbers = torch.arange(1, 1 + max(len(row["lengths"]) for row in rows))
        part = _padded(
            [numbers[: len(row["lengths"])].repeat_interleave(torch.tensor(row["lengths"])) for row in rows]
        )
        if self.static_masks:
            sample_seeds = torch.tensor([row["seed"] for row in rows])
        batch = {"input_ids": input_ids, "sample_seeds": sample_seeds}
        if not self.pairs:
            return batch | {"document_ids": part}
        labels = torch.tensor([row["next_sentence_label"] for row in rows])
        batch |= {"attention_mask": part.sign(), "token_type_ids": (part - 1).clamp(min=0)}
        return batch | {"next_sentence_label": labels}

    def view(self, **tensors):
        return tensors


def _padded(rows, value=0):
    return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=value)


__all__ = [
    "FEATURES",
    "RowMaker",
    "TokenBatches",
    "document_groups",
    "identity",
    "map_blocks",
    "token_rows",
    "tokenize",
]
