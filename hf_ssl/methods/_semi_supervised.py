"""What semi-supervised methods share: labelled and unlabelled images in one pass, how their weights rise, and what they log."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification
from transformers import initialization as init

from ._backbone import build_backbone, classify, is_classifier
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._distributed import gather


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


def classify_together(classifier, labelled, *unlabelled):
    """Logits of labelled images (B, C, H, W) and of each of `unlabelled` (N, C, H, W), in one pass, whose batch statistics are
    those of all; and the features of the first unlabelled ones."""
    sizes = [len(images) for images in (labelled, *unlabelled)]
    logits, features = classify(classifier, torch.cat([labelled, *unlabelled]))
    return *logits.split(sizes), features.split(sizes)[1]


class DistributionAlignment(nn.Module):
    """Guesses whose classes become as frequent as those of the labels, so that a network which takes one class for another does
    not teach itself to do so more and more.

    Berthelot et al. 2020 (ReMixMatch), https://arxiv.org/abs/1911.09785, section 3.1; FixMatch's section 2.5 has it too.
    Frequencies are moving averages of all processes' batches, where the original has means of the last 128.
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
    def reset(self):
        """For `_init_weights`: all classes as frequent."""
        init.constant_(self.frequencies, 1 / self.frequencies.shape[1])


def linear_ramp(progress):
    """A line from 0 to 1, and 1 from t = 1 on. progress: t, a scalar tensor."""
    return progress.clamp(0, 1)


def entropy(logits):
    """The mean entropy of softmaxes, in nats. logits: (N, K)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def mean_squared_difference(p, q):
    """Of two sets of probabilities (N, K), the mean over batch and classes."""
    return (p - q).square().mean()


def label_metrics(logits, labels, supervised):
    """What the log says of the labelled images: their loss, how many get their label, and how many would by chance."""
    right = (logits.argmax(1) == labels).float().mean()
    return {
        "supervised": supervised.detach(),
        "accuracy": right,
        "chance": right.new_tensor(1 / logits.shape[1]),
    }
