"""Pseudo-label: the class that the network predicts for an unlabelled image is its label.

Lee 2013, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf (no official code); the threshold as in
Oliver et al. 2018, https://arxiv.org/abs/1804.09170, whose code is
https://github.com/brain-research/realistic-ssl-evaluation. The network's own mistakes are taught to it too, so the weight
rises from 0, when it knows little. Deviation: batch statistics are those of labelled and unlabelled images together, or of
each.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._base import SSLConfig, SSLModel, SSLOutput
from ._semi_supervised import (
    DistributionAlignment,
    build_classifier,
    classify_all,
    confident_cross_entropy,
    draw_with_alignment,
    label_metrics,
    linear_ramp,
)


@strict
class PseudoLabelConfig(SSLConfig):
    """Defaults: a ResNet-50, and Lee's ramp on all images: alpha(t) of equation 16, whose T1 and T2 are 100 and 600 epochs of
    some 3,000, here parts of the run.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    unlabelled_weight: alpha at the end of the ramp. ramp_start, ramp_end: the parts of the run between which it rises.
    threshold: only images that the network is at least so sure of count; 0: all, as in Lee. 0.95 in Oliver et al., whose weight
    is 1, risen after 0.4 of the run. align_classes: first make the predictions' classes as frequent as the labels', as ReMixMatch
    does. separate_statistics: normalise labelled and unlabelled images by batch statistics of their own.
    """

    model_type = "ssl_pseudo_label"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    unlabelled_weight: float = 3.0
    ramp_start: float = 0.033
    ramp_end: float = 0.2
    threshold: float = 0.0
    align_classes: bool = False
    separate_statistics: bool = False

    def validate_ranges(self):
        self.check_least(unlabelled_weight=0)
        if not 0 <= self.ramp_start < self.ramp_end <= 1:
            raise ValueError(
                f"ramp_start must be at least 0, smaller than ramp_end, and that at most 1: found {self.ramp_start} and "
                f"{self.ramp_end}."
            )
        self.check_below_one("threshold")


class PseudoLabelForPreTraining(SSLModel):
    config: PseudoLabelConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: PseudoLabelConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.post_init()

    def forward(self, pixel_values, labelled_pixel_values, labels, **kwargs):
        """pixel_values: (N, C, H, W). labelled_pixel_values: (B, C, H, W). labels: (B,). `logits`: (B, K)."""
        logits, unlabelled_logits, features = classify_all(
            self.backbone, labelled_pixel_values, pixel_values, separate=self.config.separate_statistics
        )
        p = unlabelled_logits.detach().softmax(1)  # (N, K), no gradient: the label is a fact
        if self.alignment is not None:
            p = self.alignment(p, labels)
        supervised = F.cross_entropy(logits, labels)
        unlabelled, confident = confident_cross_entropy(unlabelled_logits, p, p.argmax(1), self.config.threshold)
        return SSLOutput(
            loss=supervised + self.weight() * unlabelled,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised)
            | {"unlabelled": unlabelled.detach(), "confident": confident},
        )

    def weight(self):
        """alpha(t): 0, then a line, then `unlabelled_weight`."""
        start, end = self.config.ramp_start, self.config.ramp_end
        return self.config.unlabelled_weight * linear_ramp(self.progress / end, start / end)

    def after_step(self, progress):
        self.progress.fill_(progress)

    def _init_weights(self, module):
        if module is self:
            init.zeros_(self.progress)
        else:
            draw_with_alignment(module)


__all__ = ["PseudoLabelConfig", "PseudoLabelForPreTraining"]
