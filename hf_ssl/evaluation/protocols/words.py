"""Word vectors by themselves: neighbours, similarity judgements, analogies, a map.

Similarity files hold two words and a human judgement in each line, parted by tabs, commas or spaces (WordSim-353, SimLex-999
as gensim ships them; lines of # and a first line of titles are passed by). Analogy files hold four words in each line and
the titles of their sections after a colon (questions-words.txt of word2vec.c). Neither comes with the package.
"""

import logging
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from ...errors import InputError
from ...training.checkpoints import write_json
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
MAP_WORDS, FEWEST_ON_MAP = 150, 8  # that the picture shows


class WordVectors:
    """words: V strings, most frequent first if there is an order; vectors: (V, D) float32."""

    def __init__(self, words, vectors):
        self.words, self.vectors = list(words), vectors.float()
        self.unit = F.normalize(self.vectors, dim=1)
        self.number = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def from_pretrained(cls, name_or_path, **kwargs):
        """From a release of word vectors, a folder or Hub id, or from any model with a tokenizer and input embeddings."""
        from ...methods import METHODS  # noqa: F401 (registers our architectures)

        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
            model = AutoModel.from_pretrained(name_or_path, **kwargs)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise InputError(f"'{name_or_path}' is not a folder or Hub id of word vectors: {reason}.") from error
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
        """From word2vec's text or binary format, which gensim writes too. Raises InputError if the file is neither."""
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
    for path in map(Path, source.word_files):
        for row, own in vectors.items():
            if any(line.startswith(":") for line in _lines(path)):
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
        save_word_map(Path(output_dir) / "images/word_map.png", own, seed=source.seed)
        if details:
            write_json(Path(output_dir) / DETAILS_FILE, details)
    return numbers


def word_similarity(vectors, path):
    """{"spearman", "pairs", "unknown"}: the rank correlation of cosines with the judgements of a file. Words are looked up
    as they stand, then in lower case; pairs with an unknown word are left out and counted."""
    cosines, judgements, unknown = [], [], 0
    for number, line in enumerate(_lines(path), start=1):
        fields = re.split(r"[\t,;]| +", line.strip())
        try:
            judgement = float(fields[2])
        except (IndexError, ValueError):
            if number == 1:  # titles
                continue
            raise InputError(
                f"{path}, line {number}: found '{line.strip()[:60]}', expected two words and a number."
            ) from None
        known = [_known(vectors, word) for word in fields[:2]]
        if None in known:
            unknown += 1
            continue
        cosines.append(vectors.similarity(*known))
        judgements.append(judgement)
    if len(cosines) < 2:
        raise InputError(f"{path}: {len(cosines)} pairs have both words in the vocabulary: expected at least 2.")
    return {
        "spearman": float(spearmanr(cosines, judgements).statistic),
        "pairs": len(cosines) + unknown,
        "unknown": unknown,
    }


def word_analogies(vectors, path, most_frequent=300_000):
    """{section: {"correct", "questions", "unknown"}} and the same under "total": 3CosAdd over the questions of a file, the
    three words of the question excluded, among the `most_frequent` first words; case is ignored, as in word2vec.c's
    accuracy. Questions with an unknown word are left out and counted."""
    lower = {}
    for number, word in enumerate(vectors.words[:most_frequent]):
        lower.setdefault(word.lower(), number)
    unit, sections, title = vectors.unit[:most_frequent], {}, "questions"
    for number, line in enumerate(_lines(path), start=1):
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


def save_word_map(path, vectors, count=MAP_WORDS, skip=50, seed=0):
    """A picture of frequent words in two dimensions by t-SNE; the `skip` most frequent, mostly grammar, are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    shown = [n for n, word in enumerate(vectors.words) if len(word) > 2 and not word.isdigit()]
    skip = min(skip, max(0, len(shown) - count))
    chosen = shown[skip : skip + count]
    if len(chosen) < FEWEST_ON_MAP:
        logger.warning("There is no map of %d words.", len(chosen))
        return
    places = TSNE(
        2, perplexity=min(12, len(chosen) / 4), random_state=seed, metric="cosine", init="random"
    ).fit_transform(vectors.unit[chosen].numpy())
    figure, axis = pyplot.subplots(figsize=(12, 9))
    axis.scatter(*places.T, s=4)
    for (x, y), number in zip(places, chosen, strict=True):
        axis.annotate(vectors.words[number], (x, y), fontsize=8)
    axis.set_axis_off()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def read_word2vec(path):
    """(words, (V, D) float32) of a file in word2vec's text or binary format."""
    try:
        with open(path, "rb") as file:
            header = file.readline(100)
            try:
                count, width = map(int, header.split())
            except ValueError:
                raise InputError(
                    f"{path} begins with '{header[:40].decode(errors='replace').strip()}': expected the number of words "
                    "and the width of their vectors, as word2vec writes them."
                ) from None
            if (
                count < 1 or width < 1 or count * width * 2 > Path(path).stat().st_size
            ):  # a number takes two letters or more
                raise InputError(f"{path} announces {count} words of {width} numbers, which it cannot hold.")
            start, sample = file.tell(), file.read(4096)
            file.seek(start)
            text = _is_text(sample, width)
            words, vectors = [], np.empty((count, width), np.float32)
            for number in range(count):
                word, vector = (_text_row if text else _binary_row)(file, width)
                if vector is None:
                    raise InputError(f"{path} ends after {number} of {count} words, or holds something else there.")
                words.append(word)
                vectors[number] = vector
    except OSError as error:
        raise InputError(f"The word vectors {path} could not be opened: {error.strerror or error}.") from error
    return words, torch.from_numpy(vectors)


def _is_text(sample, width):
    """Numbers stand in the first line as text?"""
    fields = sample.split(b"\n")[0].rstrip().split(b" ")[-width:][:3]
    try:
        return bool([float(field) for field in fields if field])
    except ValueError:
        return False


def _text_row(file, width):
    fields = file.readline().decode(errors="replace").rstrip("\n ").split(" ")
    try:
        return fields[0], np.array(fields[1:], np.float32) if len(fields) == width + 1 else None
    except ValueError:
        return fields[0], None


def _binary_row(file, width):
    word = bytearray()
    while (letter := file.read(1)) not in (b" ", b""):
        if letter != b"\n":
            word += letter
    values = file.read(4 * width)
    vector = np.frombuffer(values, "<f4") if len(values) == 4 * width else None
    return word.decode(errors="replace"), vector


def _lines(path):
    try:
        with open(path, encoding="utf-8") as file:
            return [line for line in file.read().splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The word file {path} could not be read: {error}.") from error


def _known(vectors, word):
    return next((form for form in (word, word.lower()) if form in vectors), None)


__all__ = [
    "METRICS",
    "SETTINGS",
    "WordVectors",
    "read_word2vec",
    "run",
    "save_word_map",
    "word_analogies",
    "word_similarity",
]
