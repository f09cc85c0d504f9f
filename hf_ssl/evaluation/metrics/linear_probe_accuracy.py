"""Linear probe accuracy of frozen features as an `evaluate` metric: `evaluate.load("<path of this file>")`."""

# one import a line and absolute: `evaluate` copies this file elsewhere and reads its imports line by line
import datasets
import evaluate
import torch

from hf_ssl.evaluation.protocols.linear_probe import linear_probe

_DESCRIPTION = "Accuracy of a softmax layer trained on frozen, standardised features with SimCLR's settings."
_INPUTS = """
Args:
    predictions: test features, (M, D).
    references: test labels, (M,).
    train_features: (N, D).
    train_labels: (N,).
    seed: of the held-out rows and the order of the batches.
Returns:
    linear_probe_accuracy: fraction of the test rows, between 0 and 1.
"""


class LinearProbeAccuracy(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions, references, train_features, train_labels, seed=0):
        test_features = torch.as_tensor(predictions, dtype=torch.float32)
        train_features = torch.as_tensor(train_features, dtype=torch.float32)
        train_labels, test_labels = torch.as_tensor(train_labels), torch.as_tensor(references)
        probe = linear_probe(train_features, train_labels, test_features, test_labels, seed=seed)
        return {"linear_probe_accuracy": probe.accuracy}
