"""Zero-shot classification: the class whose texts lie nearest to the image, without training.

Radford et al. 2021, https://arxiv.org/abs/2103.00020. Official code: https://github.com/openai/CLIP. A class is described
by its name in some prompts, or, where nobody would write that name below a picture, by the training texts of its images.
Its embedding is the mean of their unit features.
"""

import logging

import torch
from torch.nn import functional

from ...data.loading import column_names
from ...data.pairs import captions, check_texts
from ...errors import InputError
from ..features import checked_labels
from ..results import Metric, percent
from .retrieval import best_rank

logger = logging.getLogger(__name__)
PROMPTS = ("a photo of a {}.",)  # the paper's, of section 3.1.4
TOP = 5
SETTINGS = {
    "class_embedding": "mean of the unit features of its texts",
    "similarity": "cosine",
    "ties": "count as missed",
}
METRICS = {
    "zero_shot": Metric("zero-shot accuracy", task="zero-shot-image-classification"),
    "zero_shot_top5": Metric("zero-shot top-5 accuracy", task="zero-shot-image-classification"),
}


def run(encoders, source, output_dir):
    """The protocol `zero_shot`, as run.py describes."""
    column, labels, texts_of = _training_texts(source) if source.class_texts else _prompts(source)
    labels, classes = torch.tensor(labels), len(texts_of)
    texts = sorted({text for own in texts_of for text in own})
    number = {text: i for i, text in enumerate(texts)}
    pairs = torch.tensor([(number[text], i) for i, own in enumerate(texts_of) for text in own])
    numbers = {}
    for row, images, encoded in source.features(encoders, texts):
        embeddings = class_embeddings(encoded.features, pairs, classes)
        own = labels[images.rows]
        similarity = functional.normalize(images.features, dim=1) @ embeddings.T
        numbers[row] = top_accuracies(similarity.masked_fill(~embeddings.any(1), -torch.inf), own)
        if row == "pretrained":
            numbers["chance"] = majority(own, classes)
            source.found |= {
                "label_column": column,
                "test_rows": len(labels),
                "classes": classes,
                "class_texts": len(texts),
                "truncated_class_texts": encoded.too_long,
                "broken_images": images.skipped,
            }
    return numbers


def class_embeddings(texts, pairs, classes):
    """Unit embeddings of the classes, (K, D); zero for a class without texts. texts: features, (T, D). pairs: (P, 2) int64,
    the numbers of a text and of a class that it describes."""
    texts = functional.normalize(texts, dim=1)
    sums = texts.new_zeros(classes, texts.shape[1]).index_add_(0, pairs[:, 1], texts[pairs[:, 0]])
    return functional.normalize(sums, dim=1)


def top_accuracies(similarity, labels):
    """{column: percent}, top-5 with more than 5 classes only. similarity: (N, K). labels: (N,) int64."""
    ranks = best_rank(similarity, functional.one_hot(labels, similarity.shape[1]).bool())
    columns = {"zero_shot": 1} | ({"zero_shot_top5": TOP} if similarity.shape[1] > TOP else {})
    return {column: percent((ranks < k).float().mean().item()) for column, k in columns.items()}


def majority(labels, classes):
    """{column: percent} of always giving the same answer."""
    counts = labels.bincount(minlength=classes).sort(descending=True).values
    columns = {"zero_shot": 1} | ({"zero_shot_top5": TOP} if classes > TOP else {})
    return {column: percent(counts[:k].sum().item() / len(labels)) for column, k in columns.items()}


def _prompts(source):
    """(label column; class of each test row; for each class, the prompts with its name). The test part alone is read."""
    test, names, column = source.labelled_test_rows()
    if names is None:
        raise InputError(
            f"label_column '{column}' holds numbers without names, which zero_shot needs: name another column, or, by "
            "class_texts, one of texts of the training part that describe the classes."
        )
    labels = checked_labels(source.values(test, column), column)
    names = [name.replace("_", " ") for name in names]
    return column, labels, [[prompt.replace("{}", name) for prompt in source.prompts] for name in names]


def _training_texts(source):
    """(label column; class of each test row; for each class, the distinct texts of its training images)."""
    train, test, names, column = source.labelled_rows(source.label_column)
    train, test = source.drawn(train), source.drawn(test)
    if source.class_texts not in (known := column_names(train)):
        raise InputError(f"class_texts '{source.class_texts}' is no column of the training part: found {known}.")
    check_texts(train, source.class_texts, "class_texts", "texts")
    labels = checked_labels(source.values(test, column), column)
    described = checked_labels(source.values(train, column), column)
    texts_of = [[] for _ in range(len(names) if names else 1 + max(labels + described))]
    for label, texts in zip(described, source.values(train, source.class_texts), strict=True):
        texts_of[label] += captions(texts)
    if not any(texts_of):
        raise InputError(f"class_texts '{source.class_texts}' holds no text in the {len(described)} training rows.")
    if empty := sum(not own for own in texts_of):
        logger.warning("%d of %d classes have no training text, so they are never answered.", empty, len(texts_of))
    return column, labels, [list(dict.fromkeys(own)) for own in texts_of]


__all__ = ["METRICS", "PROMPTS", "SETTINGS", "class_embeddings", "majority", "run", "top_accuracies"]
