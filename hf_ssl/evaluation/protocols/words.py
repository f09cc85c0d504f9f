"""Word vectors by themselves: neighbours, similarity judgements, analogies, a map.

Similarity files hold two words and a human judgement in each line, parted by tabs, commas or spaces (WordSim-353, SimLex-999
as gensim ships them; lines of # and a first line of titles are passed by). Analogy files hold four words in each line and
the titles of their sections after a colon (questions-words.txt of word2vec.c). Neither comes with the package.
"""

import codecs
import csv
import gzip
import io
import logging
import math
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from ...errors import InputError
from ...training.checkpoints import write_json
from ..encoders.loading import load_weights, one_line
from ..plots import draw_all, save_word_map
from ..processes import process_state
from ..results import Metric, percent

logger = logging.getLogger(__name__)
SETTINGS = {
    "similarity": "Spearman's rank correlation of cosines with human judgements",
    "analogies": "3CosAdd on unit vectors, the words of the question excluded, among the 300,000 most frequent words",
    "unknown": "pairs and questions with a word that is not in the vocabulary are left out and counted",
}
METRICS = {  # of a file, whose name stands after a colon
    "similarity": Metric("word similarity", "spearman", "x 100", task="sentence-similarity"),
    "analogies": Metric("word analogies", task="sentence-similarity"),
    "unknown": Metric("left out for an unknown word", "share", task="sentence-similarity"),
}
DETAILS_FILE = "word_tests.json"
SHOWN = ("king", "france", "water", "three", "good")  # whose neighbours are told, where they are known
CHUNK = 256  # analogies that are compared with all words at a time
SAMPLE = 4096  # bytes of a file by which its format is known
MOST_PACKED = 1032  # bytes that one of a .gz can stand for


class WordVectors:
    """words: V strings, most frequent first if there is an order; vectors: (V, D) float32."""

    def __init__(self, words, vectors):
        self.words, self.vectors = list(words), vectors.float()
        self.unit = F.normalize(self.vectors, dim=1)
        self.number = {}  # of a word that stands twice the first
        for number, word in enumerate(self.words):
            self.number.setdefault(word, number)

    @classmethod
    def from_pretrained(cls, name_or_path, **kwargs):
        """From a release of word vectors, a folder or Hub id, or from any model with a tokenizer and input embeddings."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise InputError(f"'{name_or_path}' is not a folder or Hub id of word vectors: {reason}.") from error
        model, _ = load_weights(AutoModel, name_or_path, **kwargs)
        return cls.of_model(model, tokenizer)

    @classmethod
    def of_model(cls, model, tokenizer):
        """The input embeddings of any model with a tokenizer."""
        table = model.get_input_embeddings().weight.detach().cpu()
        special = set(tokenizer.all_special_tokens)
        known = [(n, word) for word, n in tokenizer.get_vocab().items() if word not in special and n < len(table)]
        return cls([word for _, word in sorted(known)], table[sorted(number for number, _ in known)])

    @classmethod
    def load(cls, path):
        """From word2vec's text or binary format, which gensim writes too, also in a .gz; of words that stand twice the first.
        Raises InputError if the file is neither."""
        words, vectors = read_word2vec(path)
        return cls(words, vectors)

    def save(self, path, binary=None):
        """Write word2vec's format, which gensim's KeyedVectors.load_word2vec_format reads; binary if the name ends in .bin."""
        binary = Path(path).suffix == ".bin" if binary is None else binary
        if (bad := next((word for word in self.words if not word or set(word) & set(" \n")), None)) is not None:
            raise InputError(f"The word '{bad}' is empty or has a space, which word2vec's format cannot hold.")
        partial = Path(f"{path}.partial")
        with open(partial, "wb") as file:
            file.write(f"{len(self.words)} {self.vectors.shape[1]}\n".encode())
            for word, vector in zip(self.words, self.vectors.numpy(), strict=True):
                if binary:
                    file.write(word.encode() + b" " + vector.astype("<f4").tobytes() + b"\n")
                else:
                    file.write(f"{word} {' '.join(map(repr, vector.tolist()))}\n".encode())
        partial.replace(path)

    def __contains__(self, word):
        return word in self.number

    def __getitem__(self, word):
        """The vector of a word, (D,)."""
        return self.vectors[self._number(word)]

    def similarity(self, one, other):
        """The cosine of two words."""
        return float(self.unit[self._number(one)] @ self.unit[self._number(other)])

    def most_similar(self, word, count=10):
        """The nearest words by cosine, without the word itself: [(word, cosine)]."""
        return self._nearest(self.unit[self._number(word)], {self._number(word)}, count)

    def analogy(self, a, b, c, count=1):
        """What is to c as b is to a: nearest to b - a + c, of unit vectors, without the three (3CosAdd): [(word, cosine)]."""
        numbers = [self._number(word) for word in (a, b, c)]
        wanted = self.unit[numbers[1]] - self.unit[numbers[0]] + self.unit[numbers[2]]
        return self._nearest(F.normalize(wanted, dim=0), set(numbers), count)

    def _number(self, word):
        if word not in self.number:
            raise InputError(f"The word '{word}' is not among the {len(self.words):,} of the vocabulary.")
        return self.number[word]

    def _nearest(self, wanted, without, count):
        cosines, numbers = (self.unit @ wanted).topk(min(count + len(without), len(self.words)))
        found = zip(numbers.tolist(), cosines.tolist(), strict=True)
        return [(self.words[number], cosine) for number, cosine in found if number not in without][:count]


def run(encoders, source, output_dir):
    """The protocol `words`: the files that the user brings, a map, some neighbours; as run.py describes."""
    if not process_state().is_main_process:
        return {}
    rows = {row: each for row, each in encoders.items() if hasattr(each.model, "get_input_embeddings")}
    vectors = {row: WordVectors.of_model(each.model, each.processor) for row, each in rows.items()}
    numbers, details = {row: {} for row in vectors}, {}
    if not source.word_files:
        logger.info("Without word_files the protocol words draws a map and tells neighbours, but gives no numbers.")
    for path in map(Path, source.word_files):
        for row, own in vectors.items():
            if any(line.startswith(":") for _, line in _lines(path)):
                found = word_analogies(own, path)
                total = found["total"]
                score = {f"analogies:{path.stem}": percent(total["correct"] / total["questions"])}
                unknown = total["unknown"] / (total["unknown"] + total["questions"])
            else:
                found = word_similarity(own, path)
                score = {f"similarity:{path.stem}": percent(found["spearman"])}
                unknown = found["unknown"] / found["pairs"]
            numbers[row] |= score | {f"unknown:{path.stem}": percent(unknown)}
            details.setdefault(row, {})[path.stem] = found
    own = vectors["pretrained"]
    for word in filter(own.__contains__, SHOWN):
        logger.info("%s: %s", word, ", ".join(near for near, _ in own.most_similar(word, 8)))
    if output_dir is not None:
        draw_all(output_dir, {"word_map": lambda path: save_word_map(path, own, seed=source.seed)})
        if details:
            write_json(Path(output_dir) / DETAILS_FILE, details)
    return numbers


def word_similarity(vectors, path):
    """{"spearman", "pairs", "unknown"}: the rank correlation of cosines with the judgements of a file. Words are looked up
    as they stand, then in lower case; pairs with an unknown word are left out and counted."""
    cosines, judgements, unknown, lines = [], [], 0, _lines(path)
    for number, line in lines:
        words, judgement = _judged(line)
        if judgement is None:
            if number == lines[0][0]:
                logger.info("%s: line %d, '%s', is taken for titles.", path, number, line.strip()[:60])
                continue
            raise InputError(
                f"{path}, line {number}: found '{line.strip()[:60]}', expected two words and a number, parted by tabs, commas or "
                "spaces."
            )
        known = [_known(vectors, word) for word in words]
        if None in known:
            unknown += 1
            continue
        cosines.append(vectors.similarity(*known))
        judgements.append(judgement)
    if len(set(judgements)) < 2:
        equal = ", which are judged alike" if len(judgements) > 1 else ""
        raise InputError(
            f"{path}: {len(cosines)} pairs have both words in the vocabulary{equal}: expected at least 2 that are judged "
            "differently."
        )
    return {
        "spearman": float(spearmanr(cosines, judgements).statistic) if len(set(cosines)) > 1 else 0.0,
        "pairs": len(cosines) + unknown,
        "unknown": unknown,
    }


def _judged(line):
    """(the two words, the number) of a line; the number is None if there is none, or more than one thing that it could be."""
    delimiter = next((mark for mark in "\t;," if mark in line), None)
    fields = next(csv.reader([line.strip()], delimiter=delimiter)) if delimiter else line.split()
    number = fields[2].strip() if len(fields) > 2 else ""
    if delimiter == "," and len(fields) == 4 and number.isdigit() and fields[3].isdigit():  # 5,9 for 5.9?
        return fields[:2], None
    try:
        judgement = float(number.replace(",", "."))
    except ValueError:
        judgement = math.nan
    return [word.strip() for word in fields[:2]], judgement if math.isfinite(judgement) else None


def word_analogies(vectors, path, most_frequent=300_000):
    """{section: {"correct", "questions", "unknown"}} and the same under "total": 3CosAdd over the questions of a file, the
    three words of the question excluded, among the `most_frequent` first words; case is ignored, as in word2vec.c's
    accuracy. Questions with an unknown word are left out and counted."""
    lower = {}
    for number, word in enumerate(vectors.words[:most_frequent]):
        lower.setdefault(word.lower(), number)
    unit, sections, title = vectors.unit[:most_frequent], {}, "questions"
    for number, line in _lines(path):
        if line.startswith(":"):
            title = line[1:].strip()
            continue
        words = line.lower().split()
        if len(words) != 4:
            raise InputError(f"{path}, line {number}: found '{line.strip()[:60]}', expected four words.")
        sections.setdefault(title, []).append([lower.get(word, -1) for word in words])
    results = {}
    for title, questions in sections.items():
        numbers = torch.tensor(questions)
        numbers = numbers[(numbers >= 0).all(1)]
        correct = 0
        for part in numbers.split(CHUNK):
            wanted = unit[part[:, 1]] - unit[part[:, 0]] + unit[part[:, 2]]
            cosines = F.normalize(wanted, dim=1) @ unit.T
            cosines.scatter_(1, part[:, :3], -torch.inf)
            correct += int((cosines.argmax(1) == part[:, 3]).sum())
        results[title] = {"correct": correct, "questions": len(numbers), "unknown": len(questions) - len(numbers)}
    if not any(section["questions"] for section in results.values()):
        raise InputError(f"{path}: no question has all four words in the vocabulary.")
    names = ("correct", "questions", "unknown")
    return results | {"total": {name: sum(section[name] for section in results.values()) for name in names}}


def read_word2vec(path):
    """(words, (V, D) float32) of a file in word2vec's text or binary format, which may be in a .gz. Of a word that stands twice
    the first is taken. Bytes of a word that are not UTF-8 are written as \\xff."""
    try:
        with _opened(path) as (file, most):
            header = file.readline(100).removeprefix(codecs.BOM_UTF8)
            try:
                count, width = map(int, header.split())
            except ValueError:
                raise InputError(
                    f"{path} begins with '{header[:40].decode(errors='replace').strip()}': expected the number of words "
                    "and the width of their vectors, as word2vec writes them."
                ) from None
            if count < 1 or width < 1 or count * width * 2 > most:  # a number takes two letters or more
                raise InputError(f"{path} announces {count} words of {width} numbers, which it cannot hold.")
            read = _text_row if _is_text(file.peek(SAMPLE)[:SAMPLE]) else _binary_row
            words, vectors = {}, np.empty((count, width), np.float32)
            for number in range(count):
                word, vector = read(file, width)
                if vector is None:
                    raise InputError(f"{path} ends after {number} of {count} words, or holds something else there.")
                word = word.decode(errors="backslashreplace")
                if number == 0 and read is _text_row and " " in word and _is_number(word.split(" ")[-1]):
                    raise InputError(
                        f"{path} announces vectors of {width} numbers, but the first one has more, found '{word}' before "
                        "them: correct the number in its first line."
                    )
                if not np.isfinite(vector).all():
                    raise InputError(
                        f"{path}: the vector of '{word}', word {number + 1}, has numbers that are not finite."
                    )
                if word not in words:
                    vectors[len(words)] = vector
                    words[word] = None
            if file.read(SAMPLE).strip():
                raise InputError(
                    f"{path} announces {count} words, but goes on after them: correct the number in its first line."
                )
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"The word vectors {path} could not be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    if len(words) < count:
        logger.warning("%s: %d words stand twice; the first of each is taken.", path, count - len(words))
    return list(words), torch.from_numpy(vectors[: len(words)])


@contextmanager
def _opened(path):
    """(a buffered file, the most bytes that it can hold), unpacked if it begins as a .gz does."""
    with open(path, "rb") as file:
        most = Path(path).stat().st_size
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file, most
            return
        with io.BufferedReader(gzip.GzipFile(fileobj=file)) as unpacked:
            yield unpacked, most * MOST_PACKED


def _is_text(sample):
    """Do numbers stand as text behind the first word, or behind others, if it has spaces?"""
    fields = sample.split(b"\n")[0].rstrip(b"\r ").split(b" ")[1:]
    numbers = sum(_is_number(field.replace(b",", b".")) for field in fields)
    return bool(fields) and 2 * numbers >= len(fields)


def _is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


def _text_row(file, width):
    word, *fields = file.readline().rstrip(b"\r\n ").rsplit(b" ", width)
    if len(fields) < width:
        return word, None
    try:
        return word, np.array(fields, np.float32)
    except ValueError:
        try:  # 0,5 for 0.5?
            return word, np.array([field.replace(b",", b".") for field in fields], np.float32)
        except ValueError:
            return word, None


def _binary_row(file, width):
    word = bytearray()
    while (letter := file.read(1)) not in (b" ", b""):
        if letter != b"\n":
            word += letter
    values = file.read(4 * width)
    return bytes(word), np.frombuffer(values, "<f4") if len(values) == 4 * width else None


def check_word_files(paths):
    """Raise InputError if two files have one name, under which the results would stand."""
    known = {}
    for path in map(Path, paths):
        if path.stem in known:
            raise InputError(
                f"word_files '{known[path.stem]}' and '{path}' have the same name: rename one of the two."
            )
        known[path.stem] = path


def _lines(path):
    """[(number, line)] without those that are empty or a comment."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = enumerate(file.read().splitlines(), start=1)
            return [(number, line) for number, line in lines if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The word file {path} could not be read: {error}.") from error


def _known(vectors, word):
    return next((form for form in (word, word.lower()) if form in vectors), None)


__all__ = [
    "METRICS",
    "SETTINGS",
    "WordVectors",
    "check_word_files",
    "read_word2vec",
    "run",
    "save_word_map",
    "word_analogies",
    "word_similarity",
]
