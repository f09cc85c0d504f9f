"""Temporal ensembling: predictions for an image are to agree with the moving average of those of earlier epochs.

Laine and Aila 2016, https://arxiv.org/abs/1610.02242. Official code: https://github.com/smlaine2/tempens. The average of many
predictions, by other weights and of other views, is better than any one of them, and costs no second pass. Deviations, as
in the Pi-model: each batch has labelled images beside unlabelled ones, so that the weight is not multiplied by the part of
images that have a label; what is remembered is what the unlabelled stream shows, in which labelled images come too; any
network, not its 9 layers with weight normalisation. A batch that lies across the border of two epochs belongs to the later
one: its rows enter the ensemble with the prediction before, and those that the first epoch has not shown are for an epoch to be
of all classes alike. Memory: 2 n K numbers, of n rows and K classes, on each device.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._base import SSLConfig, SSLModel, SSLOutput
from ._memory import write_rows
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
class TemporalEnsemblingConfig(SSLConfig):
    """Defaults: the original's, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    num_samples: n, rows of the data; set by the command line. consistency_weight: w at the end of the ramp. ramp_end: the part
    of the run in which it rises, 80 of 300 epochs. ensemble_momentum: alpha, what the ensemble of a row keeps of itself each
    epoch. align_classes: make the classes of the predictions that it is made of as frequent as the labels', as ReMixMatch does.
    temperature: of the sharpening of what the ensemble gives, as in MixMatch; 1: none. separate_statistics: normalise labelled
    and unlabelled images by batch statistics of their own, of which those of labelled ones move the running ones.
    """

    model_type = "ssl_temporal_ensembling"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    consistency_weight: float = 30.0
    ramp_end: float = 0.267
    ensemble_momentum: float = 0.6
    align_classes: bool = False
    temperature: float = 1.0
    separate_statistics: bool = False

    def validate_ranges(self):
        self.check_least(num_samples=0, consistency_weight=0)
        self.check_positive("ramp_end", most=1)
        self.check_positive("temperature")
        self.check_below_one("ensemble_momentum")


class TemporalEnsemblingForPreTraining(SSLModel):
    config: TemporalEnsemblingConfig
    input_modalities = ("image",)
    learns_from_labels = True
    uses_sample_indices = True

    def __init__(self, config: TemporalEnsemblingConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        size = config.num_samples, config.backbone_config.num_labels
        self.register_buffer("ensemble", torch.empty(size))  # Z, (n, K)
        self.register_buffer("predictions", torch.empty(size))  # z, (n, K), the last predictions for each row
        self.register_buffer("epochs", torch.zeros(()))  # t, how many of them the ensemble has
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.post_init()

    def forward(self, pixel_values, labelled_pixel_values, labels, sample_indices, **kwargs):
        """pixel_values: (N, C, H, W). sample_indices: (N,), their rows. labelled_pixel_values: (B, C, H, W). labels: (B,).
        `logits`: (B, K)."""
        logits, unlabelled_logits, features = classify_all(
            self.backbone, labelled_pixel_values, pixel_values, separate=self.config.separate_statistics, moving=0
        )
        p = unlabelled_logits.softmax(1)  # (N, K)
        supervised = F.cross_entropy(logits, labels)
        difference = mean_squared_difference(p, self.targets(sample_indices))
        if self.training:
            guesses = p.detach() if self.alignment is None else self.alignment(p, labels)
            write_rows(self.predictions, sample_indices, guesses)
        return SSLOutput(
            loss=supervised + self.weight() * difference,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised) | {"difference": difference.detach()},
        )

    def targets(self, sample_indices):
        """The ensemble of these rows without the zeros that it began with, Z / (1 - alpha^t), sharpened, (N, K); zeros in the
        first epoch, and of a row that this has not shown all classes alike."""
        mean = self.ensemble[sample_indices] / (1 - self.config.ensemble_momentum**self.epochs)
        return torch.where(self.epochs > 0, sharpen(mean, self.config.temperature), 0)

    def weight(self):
        """w(t); 0 in the first epoch, which has no targets."""
        ramp = sigmoid_ramp(self.progress / self.config.ramp_end)
        return self.config.consistency_weight * torch.where(self.epochs > 0, ramp, 0)

    def before_epoch(self, epoch, features):
        """Z <- alpha Z + (1 - alpha) z."""
        if epoch > 0:
            self.ensemble.lerp_(self.predictions, 1 - self.config.ensemble_momentum)
            self.epochs += 1

    def after_step(self, progress):
        self.progress.fill_(progress)

    def _init_weights(self, module):
        if module is self:
            for buffer in (self.ensemble, self.predictions, self.epochs, self.progress):
                init.zeros_(buffer)
        else:
            draw_with_alignment(module)


__all__ = ["TemporalEnsemblingConfig", "TemporalEnsemblingForPreTraining"]
