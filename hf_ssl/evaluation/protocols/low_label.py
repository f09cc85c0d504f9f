"""Linear probes with few labels: class-balanced 1% and 10% of the training rows, as in SimCLR's tables.

The papers use one fixed list of ImageNet files; here the subsets are drawn, and results are the mean over three draws.
"""

import torch

from ..features import check_finite
from .linear_probe import linear_probe

FRACTIONS = (0.01, 0.1)
DRAWS = 3
SETTINGS = {"fractions": FRACTIONS, "draws": DRAWS, "subsets": "class-balanced", "probe": "as linear_probe"}


def balanced_subset(labels, fraction, seed):
    """Positions of a class-balanced fraction of the rows, ascending: at least one of each class, at most all of it."""
    generator = torch.Generator().manual_seed(seed)
    present = labels.unique()
    per_class = max(1, round(fraction * len(labels) / len(present)))
    chosen = []
    for label in present:
        positions = (labels == label).nonzero()[:, 0]
        chosen.append(positions[torch.randperm(len(positions), generator=generator)[:per_class]])
    return torch.cat(chosen).sort().values


def low_label(train_features, train_labels, test_features, test_labels, classes=None, *, fractions=FRACTIONS, seed=0):
    """{fraction: accuracy of the linear probe on it, the mean over DRAWS subsets}."""
    check_finite("training features", train_features)  # whichever rows are drawn
    accuracies = {}
    for fraction in fractions:
        probes = []
        for draw in range(DRAWS):
            rows = balanced_subset(train_labels, fraction, seed * DRAWS + draw)
            few = train_features[rows], train_labels[rows]
            probes.append(linear_probe(*few, test_features, test_labels, classes, seed=seed))
        accuracies[fraction] = sum(probe.accuracy for probe in probes) / DRAWS
    return accuracies


__all__ = ["DRAWS", "FRACTIONS", "SETTINGS", "balanced_subset", "low_label"]
