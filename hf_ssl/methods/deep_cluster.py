"""DeepCluster: cluster the features of all images, learn to tell the clusters apart, cluster again, and so on.

Caron et al. 2018, https://arxiv.org/abs/1807.05520. Official code: https://github.com/facebookresearch/deepcluster.
k-means is faiss's, as there: a cluster that loses all its rows gets half of a large one. Deviations: rows are drawn once an
epoch, and the loss weighs each by the inverse size of its cluster, which has the expectation of the paper's sampling
uniformly over clusters but rarely shows the rows of large ones less often; the head takes the pooled features, which are
clustered too, where the paper's has two hidden layers and clusters before their last ReLU; the head has momentum, which
starts at 0 with each new head, and a tenth of the rate, so that its steps are as long as the paper's without momentum; batch
statistics are those of all processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._distributed import gather, rank, world_size
from ._initialization import draw_as_torch
from ._sobel import behind_sobel


@strict
class DeepClusterConfig(SSLConfig):
    """Defaults: the paper's, with its AlexNet.

    backbone_config: of an image encoder of transformers with a pooler_output. num_samples: rows of the data; set by the
    command line. num_clusters: K. principal_components: of the features, those that are clustered, whitened; at most as
    many as there are features. iterations: of k-means. reassign_epochs: from one clustering to the next.
    head_rate: of the head, as a part of the others' learning rate; 0.1, with momentum 0.9, makes steps as long as the paper's
    without momentum. sobel: the network sees gradients, not colours, as the paper's does.
    """

    model_type = "ssl_deep_cluster"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    num_clusters: int = 10_000
    principal_components: int = 256
    iterations: int = 20
    reassign_epochs: int = 1
    head_rate: float = 0.1
    sobel: bool = False

    def validate_ranges(self):
        self.check_least(num_samples=0, num_clusters=2, principal_components=1, iterations=1, reassign_epochs=1)
        self.check_positive("head_rate")


class DeepClusterForPreTraining(SSLModel):
    config: DeepClusterConfig
    input_modalities = ("image",)
    uses_sample_indices = True

    def __init__(self, config: DeepClusterConfig):
        if config.sobel:
            config.backbone_config = behind_sobel(config.backbone_config)
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.head = nn.Linear(width, config.num_clusters)
        self.learning_rate_factors = {"head": config.head_rate}
        self.register_buffer(
            "assignments", torch.empty(config.num_samples, dtype=torch.long)
        )  # the cluster of each row
        self.register_buffer("distances", torch.empty(config.num_samples))  # of each row to its centroid, squared
        self.register_buffer("sizes", torch.empty(config.num_clusters))  # rows of each cluster
        self.register_buffer("agreement", torch.empty(()))  # NMI of the last two clusterings, 0 before there are two
        self.register_buffer("agreement_with_labels", torch.empty(()))  # NMI too
        self.row_labels = None  # (n,), where the data have labels: only compared with, never learnt from
        self.register_buffer("clusterings", torch.empty((), dtype=torch.long))  # how many there were
        self.post_init()

    def forward(self, pixel_values, sample_indices, **kwargs):
        """pixel_values: (N, C, H, W). sample_indices: (N,), their rows. `logits`: (N, K)."""
        features = self.embed(pixel_values)  # (N, D)
        logits = self.head(features)
        labels = self.assignments[sample_indices]
        weights = 1 / self.sizes[labels]
        weights = weights * (world_size() / gather(weights).sum())
        metrics = {
            "accuracy": (logits.argmax(1) == labels).float().mean(),
            "chance": self.sizes.max() / self.sizes.sum(),
            "nmi_with_previous": self.agreement,
            "nonempty_clusters": (self.sizes > 0).float().sum(),
        }
        if self.row_labels is not None:
            metrics["nmi_with_labels"] = self.agreement_with_labels
        return SSLOutput(
            loss=(weights * F.cross_entropy(logits.float(), labels, reduction="none")).sum(),
            logits=logits,
            features=features,
            metrics=metrics,
        )

    def before_epoch(self, epoch, features):
        """New clusters and a new head. Returns the head's parameters, of which the optimizer is to forget the momentum."""
        if epoch % self.config.reassign_epochs:
            return None
        seed = int(torch.randint(2**31 - 1, ()))  # on the CPU, alike on all processes
        weight = 0.01 * torch.randn(self.head.weight.shape)
        everyone = features()
        if (
            rank() == 0
        ):  # the processes of one machine would cluster on the same cores; the loop gives all the first's buffers
            reduced = whiten(everyone, self.config.principal_components)
            assignments, distances = k_means(reduced, self.config.num_clusters, self.config.iterations, seed)
            if self.clusterings:
                self.agreement.fill_(mutual_information(assignments, self.assignments))
            if self.row_labels is not None:
                self.agreement_with_labels.fill_(mutual_information(assignments, self.row_labels))
            self.assignments.copy_(assignments)
            self.distances.copy_(distances)
            self.sizes.copy_(assignments.bincount(minlength=self.config.num_clusters))
            self.clusterings.add_(1)
        self.head.weight.copy_(weight)
        self.head.bias.zero_()
        return list(self.head.parameters())

    def nearest_rows(self, clusters, count):
        """[(size of the cluster, its `count` rows nearest to the centroid, or fewer)] of `clusters` nonempty ones, evenly
        from the largest to the smallest."""
        order = self.sizes.argsort(descending=True, stable=True)[: int((self.sizes > 0).sum())]
        order = order[torch.linspace(0, len(order) - 1, min(clusters, len(order))).long().to(order.device)]
        nearest = []
        for cluster in order.tolist():
            rows = (self.assignments == cluster).nonzero()[:, 0]
            nearest.append((len(rows), rows[self.distances[rows].argsort(stable=True)[:count]].tolist()))
        return nearest

    def check_batch(self, size, processes):
        import_faiss()
        if self.config.num_clusters > self.config.num_samples:
            raise ValueError(
                f"num_clusters must be at most the number of rows, {self.config.num_samples}, found "
                f"{self.config.num_clusters}."
            )

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:  # before the first epoch: clusters of equal size that mean nothing
            rows = torch.arange(self.config.num_samples, device=self.assignments.device)
            init.copy_(self.assignments, rows % self.config.num_clusters)
            init.copy_(self.sizes, self.assignments.bincount(minlength=self.config.num_clusters).float())
            for buffer in (self.distances, self.agreement, self.agreement_with_labels, self.clusterings):
                init.zeros_(buffer)
        elif module is self.head:
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)
        else:
            draw_as_torch(module)


def whiten(features, components):
    """(M, D) to (M, components), or fewer: principal components of variance 1, then rows of length 1. What does not vary
    is left out."""
    centred = features.float() - features.float().mean(0)
    variances, axes = torch.linalg.eigh((centred.T @ centred).double() / len(centred))  # from the smallest on
    kept = min(components, int((variances > 1e-7 * variances[-1]).sum()))
    if kept == 0:
        return torch.zeros_like(centred[:, :1])
    scaled = axes[:, -kept:] / variances[-kept:].sqrt()
    return F.normalize(centred @ scaled.float(), dim=1)


def k_means(points, clusters, iterations, seed):
    """Lloyd's algorithm over all of (M, D), from rows that are drawn: (each row's cluster, its squared distance), (M,) both.
    The same on any number of threads. In each round a cluster without rows moves beside one that is drawn in proportion to
    its size, and takes a part of its rows."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    points = points.cpu().contiguous().numpy()
    search = faiss.IndexFlatL2(points.shape[1])
    algorithm = faiss.Clustering(points.shape[1], clusters)
    algorithm.niter, algorithm.seed = iterations, seed
    algorithm.min_points_per_centroid, algorithm.max_points_per_centroid = 1, len(points)  # all rows, and no warning
    algorithm.train(points, search)
    distances, nearest = search.search(points, 1)
    return torch.from_numpy(nearest[:, 0]), torch.from_numpy(distances[:, 0])


def mutual_information(labels, others):
    """Of two clusterings, (M,) both: I / sqrt(H H), as in section 4.1 of the paper, 0 to 1."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels.cpu(), others.cpu(), average_method="geometric"))


def import_faiss():
    try:
        import faiss
    except ImportError:
        raise ValueError(
            'DeepCluster clusters by faiss, which was not found: pip install "hf_ssl[clusters]".'
        ) from None
    return faiss


__all__ = ["DeepClusterConfig", "DeepClusterForPreTraining"]
