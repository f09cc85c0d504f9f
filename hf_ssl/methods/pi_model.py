"""Pi-model: an image that is augmented twice, by a network that drops units twice, is to get the same prediction.

Laine and Aila 2016, https://arxiv.org/abs/1610.02242. Official code: https://github.com/smlaine2/tempens. The squared
difference of the two predictions counts little at first, when they are wrong alike, and more and more as training goes on.
Deviations: each batch has labelled images beside unlabelled ones, where the original's has as many labels as it happens to
hold, so that its weight is not multiplied by the part of images that have one; the two views that are compared are those of
the unlabelled stream, in which labelled images come too; the weight is 0 before the first step, not for the first epoch; any
network, not its 9 layers with weight normalisation, dropout and noise on the input: of one that drops nothing the views alone
differ.
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
    draw_with_alignment,
    label_metrics,
    mean_squared_difference,
    sharpen,
    sigmoid_ramp,
)


@strict
class PiModelConfig(SSLConfig):
    """Defaults: the original's, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    consistency_weight: w at the end of the ramp. ramp_end: the part of the run in which it rises, 80 of 300 epochs.
    align_classes: make the classes of predictions for the first view as frequent as the labels', as ReMixMatch does; they are
    then targets, without gradient. temperature: of the sharpening of the predictions for the first view, as in MixMatch; 1: none.
    separate_statistics: normalise labelled images and each view of the others by batch statistics of their own.
    """

    model_type = "ssl_pi_model"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    consistency_weight: float = 100.0
    ramp_end: float = 0.267
    align_classes: bool = False
    temperature: float = 1.0
    separate_statistics: bool = False

    def validate_ranges(self):
        self.check_least(consistency_weight=0)
        self.check_positive("ramp_end", most=1)
        self.check_positive("temperature")


class PiModelForPreTraining(SSLModel):
    config: PiModelConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: PiModelConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, labelled_pixel_values, labels, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image; where one is augmented more, it is the second.
        labelled_pixel_values: (B, C, H, W). labels: (B,). `logits`: (B, K)."""
        images = labelled_pixel_values, pixel_values, pixel_values_2
        logits, one, other, features = classify_all(self.backbone, *images, separate=self.config.separate_statistics)
        supervised = F.cross_entropy(logits, labels)
        targets = one.softmax(1)  # (N, K), with gradient
        if self.alignment is not None:
            targets = self.alignment(targets, labels)  # without
        targets = sharpen(targets, self.config.temperature)
        difference = mean_squared_difference(other.softmax(1), targets)
        return SSLOutput(
            loss=supervised + self.weight() * difference,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised) | {"difference": difference.detach()},
        )

    def weight(self):
        """w(t); 0 before the first step, as in the original's first epoch."""
        ramp = sigmoid_ramp(self.progress / self.config.ramp_end)
        return self.config.consistency_weight * torch.where(self.progress > 0, ramp, 0)

    def after_step(self, progress):
        self.progress.fill_(progress)

    def _init_weights(self, module):
        if module is self:
            init.zeros_(self.progress)
        else:
            draw_with_alignment(module)


__all__ = ["PiModelConfig", "PiModelForPreTraining"]
