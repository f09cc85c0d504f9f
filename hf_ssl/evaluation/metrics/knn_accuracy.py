"""kNN accuracy of frozen features as an `evaluate` metric: `evaluate.load("<path of this file>")`, without network."""

# ruff: noqa: I001
# one import a line and absolute: `evaluate` copies this file elsewhere and reads its imports line by line
import datasets
import evaluate
import torch

from hf_ssl.evaluation.protocols.knn import NEIGHBOURS
from hf_ssl.evaluation.protocols.knn import TEMPERATURE
from hf_ssl.evaluation.protocols.knn import knn_predict

_DESCRIPTION = "Accuracy of the weighted cosine k-nearest-neighbour classifier of Wu et al. 2018 (lemniscate)."
_INPUTS = """
Args:
    predictions: test features, (M, D).
    references: test labels, (M,).
    train_features: (N, D).
    train_labels: (N,).
    k: neighbours that vote.
    temperature: of the vote's weight, exp(cosine / temperature).
Returns:
    knn_accuracy: fraction of the test rows, between 0 and 1.
"""


class KNNAccuracy(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions, references, train_features, train_labels, k=NEIGHBOURS, temperature=TEMPERATURE):
        test_features = torch.as_tensor(predictions, dtype=torch.float32)
        train_features = torch.as_tensor(train_features, dtype=torch.float32)
        train_labels = torch.as_tensor(train_labels, dtype=torch.int64)
        predicted = knn_predict(train_features, train_labels, test_features, k, temperature)
        return {"knn_accuracy": (predicted == torch.as_tensor(references)).float().mean().item()}
