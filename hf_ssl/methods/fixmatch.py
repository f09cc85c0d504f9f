"""FixMatch: where the network is sure of a weakly augmented image, it is to say the same of the strongly augmented one.

Sohn et al. 2020, https://arxiv.org/abs/2001.07685. Official code: https://github.com/google-research/fixmatch. What is released
is the moving average of the weights. Deviation: batch statistics are those of all processes; of all images of a step, which the
original's interleaving comes close to, or of each kind of images.
"""

import copy

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import native_copy, pooled
from ._base import SSLConfig, SSLModel, SSLOutput
from ._momentum import begin_as, copy_buffers, momentum_update
from ._semi_supervised import (
    DistributionAlignment,
    build_classifier,
    classify_all,
    confident_cross_entropy,
    draw_with_alignment,
    label_metrics,
)


@strict
class FixMatchConfig(SSLConfig):
    """Defaults: the paper's, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    threshold: tau, how sure of a class the network must be. unlabelled_weight: lambda_u. align_classes: make the predictions'
    classes as frequent as the labels', as ReMixMatch does, before they are compared with the threshold. separate_statistics:
    normalise labelled, weakly and strongly augmented images each by batch statistics of their own. momentum: of the average
    that is released.
    """

    model_type = "ssl_fixmatch"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    threshold: float = 0.95
    unlabelled_weight: float = 1.0
    align_classes: bool = False
    separate_statistics: bool = False
    momentum: float = 0.999

    def validate_ranges(self):
        self.check_least(unlabelled_weight=0)
        self.check_below_one("threshold", "momentum")


class FixMatchForPreTraining(SSLModel):
    config: FixMatchConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: FixMatchConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.average = copy.deepcopy(self.backbone).requires_grad_(False)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, labelled_pixel_values, labels, **kwargs):
        """pixel_values: (N, C, H, W), weakly augmented; pixel_values_2: the same images, strongly. labelled_pixel_values:
        (B, C, H, W). labels: (B,). `logits`: (B, K)."""
        images = labelled_pixel_values, pixel_values, pixel_values_2
        logits, weak_logits, strong_logits, features = classify_all(
            self.backbone, *images, separate=self.config.separate_statistics
        )
        p = weak_logits.detach().softmax(1)  # (N, K), no gradient
        if self.alignment is not None:
            p = self.alignment(p, labels)
        supervised = F.cross_entropy(logits, labels)
        unlabelled, confident = confident_cross_entropy(strong_logits, p, p.argmax(1), self.config.threshold)
        return SSLOutput(
            loss=supervised + self.config.unlabelled_weight * unlabelled,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised)
            | {"unlabelled": unlabelled.detach(), "confident": confident},
        )

    def after_step(self, progress):
        momentum_update(self.average, self.backbone, self.config.momentum)
        copy_buffers(self.average, self.backbone)

    def embed(self, pixel_values):
        return pooled(self.average, pixel_values)

    def export_encoder(self):
        return native_copy(self.average)

    def load_encoder(self, encoder, missing=()):
        super().load_encoder(encoder, missing)
        self.average.load_state_dict(self.backbone.state_dict())

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            begin_as(self.average, self.backbone)
        else:
            draw_with_alignment(module)


__all__ = ["FixMatchConfig", "FixMatchForPreTraining"]
