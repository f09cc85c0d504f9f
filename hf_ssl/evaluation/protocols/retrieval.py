"""Retrieval: of each test image its text among all texts of the test part, and of each text its images.

Candidates are distinct: several images may share a text, an image may have several texts, in one row or in several, and
any of the right ones counts. As in CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020), by cosine, recall@k.
"""

import hashlib
import logging

import torch
from torch.nn import functional

from ...data.pairs import captions
from ...errors import InputError
from .. import pictures
from ..encoders.images import decode_rows
from ..features import check_finite
from ..plots import draw_all
from ..results import Metric, percent

logger = logging.getLogger(__name__)
RANKS = (1, 5, 10)
SETTINGS = {
    "candidates": "distinct texts, or distinct images, of the test split",
    "similarity": "cosine",
    "ties": "count as missed",
}
METRICS = {
    f"{way}@{k}": Metric(f"{way.replace('_', '-')} recall@{k}", "recall", task="image-text-retrieval")
    for way in ("image_to_text", "text_to_image")
    for k in RANKS
}
CHUNK = 1024  # queries that are compared with all candidates at a time
ROUNDING = 1e-6  # of cosines: texts that are cut to the same tokens tie, in whatever batches they were encoded
SHOWN, TOP = 8, 5  # images of the picture, texts beside each


def run(encoders, source, output_dir):
    """The protocol `retrieval`, as run.py describes; it needs no labels."""
    column, keys, texts_of = _read_pairs(source)
    texts = sorted({text for own in texts_of for text in own})
    number = {text: i for i, text in enumerate(texts)}
    numbers = {}
    for row, images, encoded in source.features(encoders, texts):
        first, pairs = {}, set()  # by an image's key, the number of its first decoded row
        for i, data_row in enumerate(images.rows.tolist()):
            if texts_of[data_row]:
                image = first.setdefault(keys[data_row], (len(first), i))[0]
                pairs |= {(image, number[text]) for text in texts_of[data_row]}
        pairs = torch.tensor(sorted(pairs))
        chosen = [i for _, i in first.values()]
        numbers[row] = recalls(images.features[chosen], encoded.features, pairs)
        if row == "pretrained":
            numbers["chance"] = chance(len(chosen), len(texts), pairs)
            source.found |= {
                "text_columns": [column],
                "test_rows": len(keys),
                "rows_without_text": sum(not own for own in texts_of),
                "distinct_images": len(chosen),
                "distinct_texts": len(texts),
                "truncated_texts": encoded.too_long,
                "broken_images": images.skipped,
            }
            if output_dir is not None:
                shown = encoders[row], source, images, encoded, chosen, texts, texts_of
                draw_all(output_dir, {"captions": lambda path: _draw(path, *shown)})  # noqa: B023
    return numbers


def _read_pairs(source):
    """(the text column; of each test row something that tells its image from others; of each row its texts)."""
    data, image_column = source.test()
    column = source.find_texts(data)
    keys, texts_of = [], []
    for batch in data.select_columns([image_column, column]).iter(CHUNK):
        for image, texts in zip(batch[image_column], batch[column], strict=True):
            texts_of.append(_distinct(texts, column))
            content = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
            if isinstance(content, str):
                content = content.encode()
            keys.append(hashlib.blake2b(content).digest() if isinstance(content, bytes) else len(keys))
    if missing := sum(not own for own in texts_of):
        logger.warning("%d of %d test rows have no text in the column '%s'.", missing, len(keys), column)
    if missing == len(keys):
        raise InputError(f"text_column '{column}' holds no text in the {len(keys)} test rows.")
    return column, keys, texts_of


def _distinct(value, column):
    try:
        return list(dict.fromkeys(captions(value)))
    except TypeError:  # numbers
        raise InputError(
            f"text_column '{column}' holds {value!r}: expected a text, or a list of texts, in each row."
        ) from None


def recalls(images, texts, pairs, ks=RANKS):
    """{column: percent} of features of distinct images, (N, D), and texts, (T, D). pairs: (P, 2) int64, the numbers of an
    image and of a text that is right for it. No column for a k that is not below the number of candidates. Raises InputError
    if features are not finite."""
    check_finite("image features", images)
    check_finite("text features", texts)
    images, texts = (functional.normalize(features, dim=1) for features in (images, texts))
    found = {}
    for way, queries, candidates, right in (
        ("image_to_text", images, texts, pairs),
        ("text_to_image", texts, images, pairs.flip(1)),
    ):
        ranks = first_ranks(queries, candidates, right)
        found |= {f"{way}@{k}": percent((ranks < k).float().mean().item()) for k in ks if k < len(candidates)}
    return found


def first_ranks(queries, candidates, pairs):
    """For each query that has a right candidate, in order: how many wrong ones are at least as similar as the best right
    one, (Q,) int64. pairs: (P, 2) int64, of a query and a right candidate. Never all pairs at once."""
    found = []
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK] @ candidates.T
        own = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + CHUNK)]
        right = torch.zeros_like(similarity, dtype=torch.bool)
        right[own[:, 0] - start, own[:, 1]] = True
        asked = right.any(1)
        found.append(best_rank(similarity[asked], right[asked]))
    return torch.cat(found)


def best_rank(similarity, right):
    """The rank, from 0, of each row's best right candidate, behind wrong ones that are as similar. (N, T) each to (N,)."""
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return ((similarity >= best - ROUNDING) & ~right).sum(1)


def chance(images, texts, pairs, ks=RANKS):
    """{column: percent} that an order by lot is expected to have. images, texts: their numbers. pairs: as in `recalls`."""
    found = {}
    for way, side, candidates in (("image_to_text", 0, texts), ("text_to_image", 1, images)):
        right = pairs[:, side].unique(return_counts=True)[1].double()
        for k in ks:
            if k < candidates:
                missed = torch.ones_like(right)
                for i in range(k):  # drawn without putting back
                    missed *= ((candidates - right - i) / (candidates - i)).clamp(min=0)
                found[f"{way}@{k}"] = percent((1 - missed).mean().item())
    return found


def _draw(path, encoder, source, images, encoded, chosen, texts, texts_of):
    """Some test images with the texts that the encoder ranks highest, and the best right one if it is not among them."""
    first = {}
    for i in chosen:  # no text twice
        first.setdefault(texts_of[images.rows[i].item()][0], i)
    shown = list(first.values())
    shown = [shown[len(shown) * i // SHOWN] for i in range(SHOWN)] if len(shown) > SHOWN else shown
    rows = images.rows[shown].tolist()
    similarity = functional.normalize(images.features[shown], dim=1) @ functional.normalize(encoded.features, dim=1).T
    beside = []
    for row, cosines, order in zip(rows, *similarity.sort(descending=True), strict=True):
        ranked = [
            (rank, texts[i], cosines[rank].item(), texts[i] in texts_of[row]) for rank, i in enumerate(order.tolist())
        ]
        right = [entry for entry in ranked if entry[-1]]
        beside.append(ranked[:TOP] + [entry for entry in right[:1] if entry[0] >= TOP])
    data, image_column = source.test()
    pictures.save_captions(path, decode_rows(data, image_column, encoder.channels, rows), beside)


__all__ = ["METRICS", "RANKS", "SETTINGS", "best_rank", "chance", "first_ranks", "recalls", "run"]
