"""How well clusters of the features agree with the labels: k-means of the test rows, as many clusters as there are classes.

Figure 2 of DeepCluster (Caron et al. 2018, https://arxiv.org/abs/1807.05520) shows this of its own clusters; here those of any
encoder are made anew, so that encoders, raw features and random weights compare. Nothing is learnt from the training rows.
"""

import torch
from torch.nn import functional

RESTARTS = 10
SETTINGS = {
    "clusters": "as many as classes",
    "feature": "of unit length",
    "k_means": f"the best of {RESTARTS} starts by k-means++",
    "score": "normalised mutual information I / sqrt(H H) of clusters and labels, in percent; by chance a little above 0",
}


def cluster_agreement(features, labels, classes, seed=0):
    """Normalised mutual information, 0 to 1, of k-means clusters of features (N, D) and labels (N,); 0 if there are fewer
    rows than classes."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    if len(features) < classes:
        return 0.0
    points = functional.normalize(features.to(torch.float32), dim=1).cpu().numpy()
    found = KMeans(classes, n_init=RESTARTS, random_state=seed).fit_predict(points)
    return float(normalized_mutual_info_score(labels.cpu().numpy(), found, average_method="geometric"))


__all__ = ["SETTINGS", "cluster_agreement"]
