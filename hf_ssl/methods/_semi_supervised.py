"""What semi-supervised methods share: labelled and unlabelled images in one pass, how their weights rise, and what they log."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification

from ._backbone import build_backbone, classify, is_classifier
from ._batch_norm import GlobalBatchNorm, check_groups, replace_batch_norm
from ._distributed import world_size


def build_classifier(config, batch_norm_groups=1):
    """A new image classifier of transformers of `config.num_labels` classes. Raises ValueError if transformers has none of this
    kind.

    batch_norm_groups: the batch of all processes is normalised in so many parts, each by its own statistics, in the place of the
    originals' devices. `check_groups` says which batches that asks for.
    """
    found = f"backbone_config of model_type '{config.model_type}'"
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{found} has no image classifier in transformers: choose another image encoder.")
    classifier = build_backbone(config, AutoModelForImageClassification)
    if not is_classifier(classifier):
        raise ValueError(
            f"{found} gives a classifier without a head called `classifier`: choose another image encoder."
        )
    has_batch_norm = replace_batch_norm(classifier, partial(GlobalBatchNorm, groups=batch_norm_groups))
    if batch_norm_groups > 1 and not has_batch_norm:
        raise ValueError(f"batch_norm_groups={batch_norm_groups} needs batch norm, which {found} lacks: set it to 1.")
    return classifier


def head_width(classifier):
    """D, of the features that the head of a classifier reads."""
    return [module for module in classifier.classifier.modules() if isinstance(module, nn.Linear)][-1].in_features


def classify_together(classifier, labelled, *unlabelled):
    """Logits of labelled images (B, C, H, W) and of each of `unlabelled` (N, C, H, W), in one pass, whose batch statistics are
    those of all; and the features of the first unlabelled ones. With several groups of batch norm each has the same share of
    every kind of images, and all views of its unlabelled ones."""
    kinds, groups = (labelled, *unlabelled), count_groups(classifier)
    for images in kinds:
        check_groups(groups, len(images), world_size())
    # a group is consecutive images: first come those of the first group, a part of each kind, then those of the second ...
    by_group = zip(*(images.chunk(max(1, groups // world_size())) for images in kinds), strict=True)
    parts = [part for group in by_group for part in group]
    sizes = [len(part) for part in parts]
    logits, features = (x.split(sizes) for x in classify(classifier, torch.cat(parts)))
    by_kind = [torch.cat(logits[kind :: len(kinds)]) for kind in range(len(kinds))]
    return *by_kind, torch.cat(features[1 :: len(kinds)])


def count_groups(classifier):
    """In how many parts batch norm splits the batch of all processes: in evaluation, and where there is none, in 1."""
    norms = (module for module in classifier.modules() if isinstance(module, GlobalBatchNorm) and module.training)
    return next((norm.groups for norm in norms), 1)


def sigmoid_ramp(progress):
    """exp(-5 (1 - t)^2), from 0.007 to 1, and 1 from t = 1 on. progress: t, a scalar tensor."""
    return torch.exp(-5 * (1 - progress.clamp(0, 1)).square())


def linear_ramp(progress, start=0.0):
    """0 up to `start`, 1 from t = 1 on, a line between. progress: t, a scalar tensor."""
    return ((progress - start) / (1 - start)).clamp(0, 1)


def entropy(logits):
    """The mean entropy of softmaxes, in nats. logits: (N, K)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def mean_squared_difference(p, q):
    """Of two sets of probabilities (N, K), the mean over batch and classes."""
    return (p - q).square().mean()


def confident_cross_entropy(logits, p, targets, threshold):
    """(cross-entropy with `targets` where `p` has a class of at least `threshold`, the mean over all of the batch; the part of
    the batch where it has). logits: (N, K). p: (N, K), probabilities. targets: (N,) classes or (N, K) probabilities."""
    confident = (p.amax(1) >= threshold).float()
    return (F.cross_entropy(logits, targets, reduction="none") * confident).mean(), confident.mean()


def label_metrics(logits, labels, supervised):
    """What the log says of the labelled images: their loss, how many get their label, and how many would by chance."""
    right = (logits.argmax(1) == labels).float().mean()
    return {
        "supervised": supervised.detach(),
        "accuracy": right,
        "chance": right.new_tensor(1 / logits.shape[1]),
    }
