"""Mean Teacher: predictions for an unlabelled image are to agree with a teacher's for another view of it, and the teacher is
the moving average of the network.

Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780. Official code: https://github.com/CuriousAI/mean-teacher. An
average of weights predicts better than the weights of any step, and it is there after each of them, where temporal ensembling
waits for an epoch. What is released is the teacher. Deviations: the teacher begins as the network, not with weights of its
own; the two views that are compared are those of the unlabelled stream, in which labelled images come too; one output, where
the original's residual networks have one for each loss.
"""

import copy

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify, native_copy, pooled
from ._base import SSLConfig, SSLModel, SSLOutput
from ._momentum import begin_as, momentum_update
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
class MeanTeacherConfig(SSLConfig):
    """Defaults: those of the original's TensorFlow code, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    consistency_weight: at the end of the ramp, of the squared difference, a mean over classes. ramp_end: the part of the run in
    which it rises. momentum: of the teacher during the ramp, final_momentum after it; at step s it is 1 - 1 / (s + 1) if that
    is smaller, so that the first weights are soon forgotten. align_classes: make the classes of the teacher's predictions as
    frequent as the labels', as ReMixMatch does. temperature: of the sharpening of what that gives, as in MixMatch; 1: none.
    separate_statistics: let the student too normalise unlabelled images by batch statistics of their own, not of labelled ones
    beside them.
    """

    model_type = "ssl_mean_teacher"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    consistency_weight: float = 100.0
    ramp_end: float = 0.267
    momentum: float = 0.99
    final_momentum: float = 0.999
    align_classes: bool = False
    temperature: float = 1.0
    separate_statistics: bool = False

    def validate_ranges(self):
        self.check_least(consistency_weight=0)
        self.check_positive("ramp_end", most=1)
        self.check_positive("temperature")
        self.check_below_one("momentum", "final_momentum")


class MeanTeacherForPreTraining(SSLModel):
    config: MeanTeacherConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: MeanTeacherConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, labelled_pixel_values, labels, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image; where one is augmented more, it is the second,
        which the student sees. labelled_pixel_values: (B, C, H, W). labels: (B,). `logits`: (B, K)."""
        logits, student_logits, features = classify_all(
            self.backbone, labelled_pixel_values, pixel_values_2, separate=self.config.separate_statistics
        )
        with torch.no_grad():  # in training mode too: the teacher has batch statistics of its own
            teacher_logits, _ = classify(self.teacher, pixel_values)
        targets = teacher_logits.softmax(1)  # (N, K)
        if self.alignment is not None:
            targets = self.alignment(targets, labels)
        targets = sharpen(targets, self.config.temperature)
        supervised = F.cross_entropy(logits, labels)
        difference = mean_squared_difference(student_logits.softmax(1), targets)
        return SSLOutput(
            loss=supervised + self.weight() * difference,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised) | {"difference": difference.detach()},
        )

    def weight(self):
        """w(t) of the squared difference."""
        return self.config.consistency_weight * sigmoid_ramp(self.progress / self.config.ramp_end)

    def after_step(self, progress):
        self.progress.fill_(progress)
        self.steps += 1
        highest = self.config.momentum if progress < self.config.ramp_end else self.config.final_momentum
        momentum_update(self.teacher, self.backbone, torch.clamp(1 - 1 / (self.steps + 1), max=highest))

    def embed(self, pixel_values):
        return pooled(self.teacher, pixel_values)

    def export_encoder(self):
        return native_copy(self.teacher)

    def load_encoder(self, encoder, missing=()):
        super().load_encoder(encoder, missing)
        self.teacher.load_state_dict(self.backbone.state_dict())

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.zeros_(self.progress)
            init.zeros_(self.steps)
            begin_as(self.teacher, self.backbone)
        else:
            draw_with_alignment(module)


__all__ = ["MeanTeacherConfig", "MeanTeacherForPreTraining"]
