"""What semi-supervised methods share: labelled and unlabelled images in one pass, how their weights rise, and what they log."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification
from transformers import initialization as init

from ._backbone import build_backbone, classify, is_classifier
from ._batch_norm import GlobalBatchNorm, fixed_running_statistics, replace_batch_norm
from ._distributed import gather
from ._initialization import draw_as_torch


def build_classifier(config):
    """A new image classifier of transformers of `config.num_labels` classes. Raises ValueError if transformers has none of this
    kind."""
    found = f"backbone_config of model_type '{config.model_type}'"
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{found} has no image classifier in transformers: choose another image encoder.")
    classifier = build_backbone(config, AutoModelForImageClassification)
    if not is_classifier(classifier):
        raise ValueError(
            f"{found} gives a classifier without a head called `classifier`: choose another image encoder."
        )
    replace_batch_norm(classifier, GlobalBatchNorm)
    return classifier


def head_width(classifier):
    """D, of the features that the head of a classifier reads. Raises ValueError if it has no linear layer."""
    for module in classifier.classifier.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    kind = classifier.config.model_type
    raise ValueError(
        f"backbone_config of model_type '{kind}' gives a head without a linear layer: choose another image encoder."
    )


def classify_all(classifier, labelled, *unlabelled, separate=False, moving=1):
    """Logits of labelled images (B, C, H, W) and of each of `unlabelled` (N, C, H, W), and the features of the first unlabelled
    ones. One pass, whose batch statistics are those of all; with `separate` a pass each, with statistics of its own. moving: the
    kind whose statistics then move the running ones: the first unlabelled images, which are many, or 0, the labelled ones."""
    if separate:
        outputs = []
        for kind, images in enumerate((labelled, *unlabelled)):
            with nullcontext() if kind == moving else fixed_running_statistics(classifier):
                outputs.append(classify(classifier, images))
        return *(logits for logits, _ in outputs), outputs[1][1]
    sizes = [len(images) for images in (labelled, *unlabelled)]
    logits, features = classify(classifier, torch.cat([labelled, *unlabelled]))
    return *logits.split(sizes), features.split(sizes)[1]


class DistributionAlignment(nn.Module):
    """Guesses whose classes become as frequent as those of the labels, so that a network which takes one class for another does
    not teach itself to do so more and more.

    Berthelot et al. 2020 (ReMixMatch), https://arxiv.org/abs/1911.09785, section 3.1. Frequencies are moving averages of all
    processes' batches, where the original has means of the last 128.
    """

    MOMENTUM = 0.99

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("frequencies", torch.full((2, classes), 1 / classes))  # of labels, of guesses

    @torch.no_grad()
    def forward(self, p, labels):
        """p: guesses (N, K). labels: (B,), of this step. Returns the aligned guesses, (N, K)."""
        if self.training:
            of_labels = F.one_hot(labels, p.shape[1]).float().mean(0)
            now = gather(torch.stack([of_labels, p.float().mean(0)])[None]).mean(0)  # over processes
            self.frequencies.lerp_(now.to(self.frequencies), 1 - self.MOMENTUM)
        of_labels, of_guesses = self.frequencies + 1e-6
        aligned = p * (of_labels / of_guesses).to(p.dtype)
        return aligned / aligned.sum(1, keepdim=True)


@torch.no_grad()
def draw_with_alignment(module):
    """For `_init_weights`: as torch draws layers; all classes equally frequent."""
    if isinstance(module, DistributionAlignment):
        init.constant_(module.frequencies, 1 / module.frequencies.shape[1])
    else:
        draw_as_torch(module)


def sigmoid_ramp(progress):
    """exp(-5 (1 - t)^2), from 0.007 to 1, and 1 from t = 1 on. progress: t, a scalar tensor."""
    return torch.exp(-5 * (1 - progress.clamp(0, 1)).square())


def linear_ramp(progress, start=0.0):
    """0 up to `start`, 1 from t = 1 on, a line between. progress: t, a scalar tensor."""
    return ((progress - start) / (1 - start)).clamp(0, 1)


def sharpen(p, temperature):
    """Probabilities (N, K) to the power of 1 / temperature, normalised; one that is 0 gets no gradient, and gives none."""
    return (p.clamp(min=torch.finfo(p.dtype).tiny).log() / temperature).softmax(1)


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
