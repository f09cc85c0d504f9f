"""Unsupervised data augmentation: the network's prediction for an image, sharpened, is the target of the strongly augmented one.

Xie et al. 2019, https://arxiv.org/abs/1904.12848. Official code: https://github.com/google-research/uda. Training signal
annealing keeps few labels from being learnt by heart: a labelled image counts only while the network is not yet sure of its
label, and how sure that may be rises over the run. Deviation: batch statistics are those of all processes; of all images of a
step, or of each kind of images.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._base import SSLConfig, SSLModel, SSLOutput
from ._distributed import gather, world_size
from ._semi_supervised import (
    DistributionAlignment,
    build_classifier,
    classify_all,
    confident_cross_entropy,
    draw_with_alignment,
    label_metrics,
    sharpen,
)

ANNEALING = {  # how much of the way from 1 / K to 1 is done at t
    "linear": lambda t: t,
    "log": lambda t: 1 - torch.exp(-5 * t),
    "exp": lambda t: torch.exp(5 * (t - 1)),
}


@strict
class UDAConfig(SSLConfig):
    """Defaults: the original's on CIFAR-10, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    temperature: of the sharpening of the prediction for the weakly augmented image. threshold: beta, how sure of a class the
    network must be before that. unlabelled_weight: lambda. signal_annealing: none, linear, log (for many labels) or exp (for
    few). align_classes: first make the predictions' classes as frequent as the labels', as ReMixMatch does.
    separate_statistics: normalise labelled, weakly and strongly augmented images each by batch statistics of their own.
    """

    model_type = "ssl_uda"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    temperature: float = 0.4
    threshold: float = 0.8
    unlabelled_weight: float = 1.0
    signal_annealing: str = "linear"
    align_classes: bool = False
    separate_statistics: bool = False

    def validate_ranges(self):
        self.check_least(unlabelled_weight=0)
        self.check_positive("temperature")
        self.check_below_one("threshold")
        if self.signal_annealing not in ("none", *ANNEALING):
            raise ValueError(
                f"signal_annealing must be one of none, {', '.join(ANNEALING)}, found '{self.signal_annealing}'."
            )


class UDAForPreTraining(SSLModel):
    config: UDAConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: UDAConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, labelled_pixel_values, labels, **kwargs):
        """pixel_values: (N, C, H, W), weakly augmented; pixel_values_2: the same images, strongly. labelled_pixel_values:
        (B, C, H, W). labels: (B,). `logits`: (B, K)."""
        images = labelled_pixel_values, pixel_values, pixel_values_2
        logits, weak_logits, strong_logits, features = classify_all(
            self.backbone, *images, separate=self.config.separate_statistics
        )
        p = weak_logits.detach().softmax(1)  # (N, K)
        if self.alignment is not None:
            p = self.alignment(p, labels)
        sharpened = sharpen(p, self.config.temperature)
        # its gradient is that of the divergence, whose other part, the entropy of the target, nothing learns from
        unlabelled, confident = confident_cross_entropy(strong_logits, p, sharpened, self.config.threshold)
        supervised = self.annealed_cross_entropy(logits, labels)
        return SSLOutput(
            loss=supervised + self.config.unlabelled_weight * unlabelled,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised)
            | {"unlabelled": unlabelled.detach(), "confident": confident},
        )

    def annealed_cross_entropy(self, logits, labels):
        """The mean over the labelled images of which the network is not yet too sure; 0 if there are none."""
        losses = F.cross_entropy(logits, labels, reduction="none")  # (B,)
        if self.config.signal_annealing == "none":
            return losses.mean()
        chance = 1 / logits.shape[1]
        highest = chance + (1 - chance) * ANNEALING[self.config.signal_annealing](self.progress)
        counts = (torch.exp(-losses.detach()) <= highest).float()
        everyones = gather(counts.sum()[None]).sum().clamp(min=1)
        return (losses * counts).sum() * world_size() / everyones

    def after_step(self, progress):
        self.progress.fill_(progress)

    def _init_weights(self, module):
        if module is self:
            init.zeros_(self.progress)
        else:
            draw_with_alignment(module)


__all__ = ["UDAConfig", "UDAForPreTraining"]
