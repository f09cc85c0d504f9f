"""Rotation: predict by how much an image was rotated, which takes seeing what is in it and how it usually stands.

Gidaris et al. 2018, https://arxiv.org/abs/1803.07728. Official code: https://github.com/gidariss/FeatureLearningRotNet.
Deviations: random crops are resized by bicubic interpolation, the original's by bilinear; batch statistics are those of all
processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._initialization import draw_as_torch


@strict
class RotationConfig(SSLConfig):
    """Defaults: the paper's four turns, with a ResNet-50; the paper uses AlexNet, which transformers does not have.

    backbone_config: of an image encoder of transformers with a pooler_output.
    rotations: R, 4 (0, 90, 180, 270 degrees) or 2 (0, 180 degrees).
    """

    model_type = "ssl_rotation"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    rotations: int = 4

    def validate_rotations(self):
        if self.rotations not in (2, 4):
            raise ValueError(f"rotations must be 2 or 4, found {self.rotations}.")


class RotationForPreTraining(SSLModel):
    config: RotationConfig
    input_modalities = ("image",)

    def __init__(self, config: RotationConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.head = nn.Linear(width, config.rotations)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        """pixel_values: (N, C, H, W), for four rotations with H = W. `logits`: (R N, R), rotation by rotation."""
        turned = rotate(pixel_values, self.config.rotations)  # (R N, C, H, W), all turns of an image in one batch
        labels = torch.arange(self.config.rotations, device=turned.device).repeat_interleave(len(pixel_values))
        features = self.embed(turned)  # (R N, D)
        logits = self.head(features)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return SSLOutput(
            loss=F.cross_entropy(logits.float(), labels),
            logits=logits,
            features=features,
            metrics={"accuracy": accuracy},
        )

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)


def rotate(images, rotations):
    """(N, C, H, W) to (R N, C, H, W): first all as they are, then all turned counter-clockwise by 360 / R degrees, and so
    on. Pixels change their places and nothing else: an interpolation would tell that the image was turned."""
    height, width = images.shape[-2:]
    if rotations == 4 and height != width:
        raise ValueError(f"rotations=4 needs square images, found {height} x {width}: crop them, or set rotations=2.")
    return torch.cat([torch.rot90(images, turn * 4 // rotations, dims=(-2, -1)) for turn in range(rotations)])


__all__ = ["RotationConfig", "RotationForPreTraining"]
