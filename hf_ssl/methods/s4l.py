"""S4L: learn the labels of a few images, and of all of them by how much they are turned.

Zhai et al. 2019, https://arxiv.org/abs/1905.03670, S4L-Rotation. Official code: https://github.com/google-research/s4l. The
pretext task, which needs no label, is learnt beside the labels instead of before them, by the same network. Labelled images
are turned too, and each turn is to get the label. Deviation: batch statistics are those of all processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify
from ._base import SSLConfig, SSLModel, SSLOutput
from ._initialization import draw_as_torch
from ._semi_supervised import build_classifier, head_width, label_metrics
from ._turns import rotate

TURNS = 4  # by 0, 90, 180 and 270 degrees


@strict
class S4LConfig(SSLConfig):
    """Defaults: the original's, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    rotation_weight: of the mean of two losses, that of labelled images and that of unlabelled ones.
    """

    model_type = "ssl_s4l"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    rotation_weight: float = 1.0

    def validate_ranges(self):
        self.check_least(rotation_weight=0)


class S4LForPreTraining(SSLModel):
    config: S4LConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: S4LConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.turn_head = nn.Linear(head_width(self.backbone), TURNS)
        self.post_init()

    def forward(self, pixel_values, labelled_pixel_values, labels, **kwargs):
        """pixel_values: (N, C, H, W), H = W. labelled_pixel_values: (B, C, H, W). labels: (B,). `logits`: (B, K), of what is not
        turned."""
        turned = [rotate(images, TURNS) for images in (labelled_pixel_values, pixel_values)]  # (4 B, ...), (4 N, ...)
        sizes = [len(images) for images in turned]
        logits, features = classify(self.backbone, torch.cat(turned))
        logits, features = logits[: sizes[0]], features.split(sizes)
        supervised = F.cross_entropy(logits, labels.repeat(TURNS))
        turn_logits = [self.turn_head(part).float() for part in features]  # (4 B, 4), (4 N, 4)
        turns = [torch.arange(TURNS, device=labels.device).repeat_interleave(size // TURNS) for size in sizes]
        rotation = torch.stack([F.cross_entropy(*each) for each in zip(turn_logits, turns, strict=True)]).mean()
        turns_right = (turn_logits[1].argmax(1) == turns[1]).float().mean()
        return SSLOutput(
            loss=supervised + self.config.rotation_weight * rotation,
            logits=logits[: len(labels)],
            features=features[1],
            metrics=label_metrics(logits, labels.repeat(TURNS), supervised)
            | {"rotation": rotation.detach(), "turns_right": turns_right},
        )

    def check_images(self, height, width):
        if height != width:
            raise ValueError(f"S4L turns images by 90 degrees: expected square ones, found {height} x {width}.")

    def _init_weights(self, module):
        draw_as_torch(module)


__all__ = ["S4LConfig", "S4LForPreTraining"]
