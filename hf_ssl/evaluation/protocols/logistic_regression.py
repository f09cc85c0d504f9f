"""L2-regularised logistic regression of frozen features with cross-validation: for labelled data without a test split.

As skip-thought vectors (Kiros et al. 2015, https://arxiv.org/abs/1506.06726) and CPC for text report it on MR, CR, Subj and
MPQA. The weight of the regularisation is chosen inside of each fold, on a part of its training rows.
"""

import math

from ...errors import InputError
from ..features import check_finite

FOLDS = 10
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C: the inverse weight of the regularisation
SETTINGS = {
    "folds": FOLDS,
    "rows": "of the train split alone; passages of one document may stand in several folds",
    "C": STRENGTHS,
    "chosen_on": "a tenth of each fold's training rows",
    "features": "standardised",
}


def cross_validated_accuracy(features, labels, seed=0):
    """The share of rows, (N, D) with labels (N,), that are told right by the classifier of the folds without them.

    Raises InputError if there are no two classes, if one has fewer rows than there are folds, or if features are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_finite("training features", features)
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < 2:
        raise InputError(
            f"logistic_regression needs rows of at least two classes, found {len(counts)} in the training part."
        )
    if (few := int(counts.min())) < FOLDS:
        raise InputError(f"logistic_regression needs at least {FOLDS} rows of each class, found {few} of one.")

    def fitted(x, y, strength):
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(x, y)

    x, y, right = features.double().numpy(), labels.numpy(), 0
    for rows, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        chosen_on = max(math.ceil(0.1 * len(rows)), len(counts))  # at least a row of each class
        fit, choose = train_test_split(rows, test_size=chosen_on, random_state=seed, stratify=y[rows])
        best = max(STRENGTHS, key=lambda strength: fitted(x[fit], y[fit], strength).score(x[choose], y[choose]))  # noqa: B023
        right += int((fitted(x[rows], y[rows], best).predict(x[held_out]) == y[held_out]).sum())
    return right / len(y)


__all__ = ["FOLDS", "SETTINGS", "cross_validated_accuracy"]
