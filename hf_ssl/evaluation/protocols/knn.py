"""Weighted k-nearest-neighbour classification of frozen features: no training, no settings to tune.

Wu et al. 2018, https://arxiv.org/abs/1805.01978. Official code: https://github.com/zhirongw/lemniscate.pytorch.
"""

import torch
from torch.nn import functional

from ..features import check_finite
from ..processes import process_state

NEIGHBOURS, TEMPERATURE = 200, 0.07  # lemniscate test.py
SETTINGS = {"k": NEIGHBOURS, "temperature": TEMPERATURE, "similarity": "cosine"}
TRAIN_CHUNK, TEST_CHUNK = 16384, 1024  # similarities held at a time


@torch.no_grad()
def nearest(train_features, test_features, k, train_chunk=TRAIN_CHUNK, test_chunk=TEST_CHUNK, device=None):
    """Cosine similarity and row of the k nearest training features: (M, k) float32 and (M, k) int64, nearest first."""
    device = device or process_state().device
    check_finite("training features", train_features)
    check_finite("test features", test_features)
    k = min(k, len(train_features))
    similarities, indices = [], []
    for test in test_features.split(test_chunk):
        test = functional.normalize(test.to(device), dim=1)
        best, best_rows = test.new_empty(len(test), 0), test.new_empty(len(test), 0, dtype=torch.int64)
        for number, train in enumerate(train_features.split(train_chunk)):
            found = test @ functional.normalize(train.to(device), dim=1).T  # (chunk, chunk)
            found, rows = found.topk(min(k, found.shape[1]), dim=1)
            best, rows = torch.cat([best, found], 1), torch.cat([best_rows, rows + number * train_chunk], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            best_rows = rows.gather(1, order)
        similarities.append(best.cpu())
        indices.append(best_rows.cpu())
    return torch.cat(similarities), torch.cat(indices)


def knn_predict(
    train_features, train_labels, test_features, k=NEIGHBOURS, temperature=TEMPERATURE, classes=None, **chunks
):
    """The class of each test row, (M,) int64, by the vote of its k nearest training rows.

    A vote has the weight exp(cosine / temperature). k is capped at the number of training rows. chunks: of `nearest`,
    so that memory never holds all pairs.
    """
    classes = classes or int(train_labels.max()) + 1
    similarities, rows = nearest(train_features, test_features, k, **chunks)
    votes = torch.zeros(len(rows), classes)
    # as in the original the weights are not normalised; the largest is e^14, far from overflow
    votes.scatter_add_(1, train_labels.cpu()[rows], (similarities / temperature).exp())
    return votes.argmax(dim=1)


__all__ = ["NEIGHBOURS", "SETTINGS", "TEMPERATURE", "knn_predict", "nearest"]
