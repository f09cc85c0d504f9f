"""S4L: learn the labels of a few images, and of all of them by how much they are turned.

Zhai et al. 2019, https://arxiv.org/abs/1905.03670, S4L-Rotation. Official code: https://github.com/google-research/s4l. The
pretext task, which needs no label, is learnt beside the labels instead of before them, by the same network. Labelled images
are turned too, and each turn is to get the label. Deviation: batch statistics are those of all processes.

A network that is to know a class however it is turned has more to learn from a few labels than a test asks for. With
`rotate_labelled=False` labelled images stay as they are, and have batch statistics of their own, which move the running ones.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import fixed_running_statistics
from ._initialization import draw_as_torch
from ._rotations import rotate
from ._semi_supervised import build_classifier, head_width, label_metrics

TURNS = 4  # by 0, 90, 180 and 270 degrees


@strict
class S4LConfig(SSLConfig):
    """Defaults: the original's, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    rotation_weight: of the loss of turns, the mean of that of labelled images and that of unlabelled ones. rotate_labelled: turn
    the labelled images too; without it the unlabelled ones alone have that loss.
    """

    model_type = "ssl_s4l"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    rotation_weight: float = 1.0
    rotate_labelled: bool = True

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
        self.check_images(*pixel_values.shape[-2:])
        count, turned = len(labels), rotate(pixel_values, TURNS)  # (4 N, C, H, W)
        if self.config.rotate_labelled:
            labels = labels.repeat(TURNS)  # (4 B,)
            images = torch.cat([rotate(labelled_pixel_values, TURNS), turned])
            logits, features = classify(self.backbone, images)
            logits, features = logits[: len(labels)], features.split([len(labels), len(turned)])
        else:
            logits, _ = classify(self.backbone, labelled_pixel_values)
            with fixed_running_statistics(self.backbone):
                features = [classify(self.backbone, turned)[1]]
        supervised = F.cross_entropy(logits, labels)
        losses, right = zip(*(self.predict_turns(part) for part in features), strict=True)
        rotation = torch.stack(losses).mean()
        return SSLOutput(
            loss=supervised + self.config.rotation_weight * rotation,
            logits=logits[:count],
            features=features[-1],
            metrics=label_metrics(logits, labels, supervised)
            | {"rotation": rotation.detach(), "turns_right": right[-1]},
        )

    def predict_turns(self, features):
        """(cross-entropy, the part that is right) of (4 M, D), of M images in the four turns, turn by turn."""
        logits = self.turn_head(features).float()
        turns = torch.arange(TURNS, device=logits.device).repeat_interleave(len(logits) // TURNS)
        return F.cross_entropy(logits, turns), (logits.argmax(1) == turns).float().mean()

    def check_images(self, height, width):
        if height != width:
            raise ValueError(f"S4L turns images by 90 degrees: expected square ones, found {height} x {width}.")

    def _init_weights(self, module):
        draw_as_torch(module)


__all__ = ["S4LConfig", "S4LForPreTraining"]
