"""Rotation: predict by how much an image was rotated, which takes seeing what is in it and how it usually stands.

Gidaris et al. 2018, https://arxiv.org/abs/1803.07728. Official code: https://github.com/gidariss/FeatureLearningRotNet.
Deviations: random crops are resized by bicubic interpolation, the original's by bilinear; batch statistics are those of
all processes; a linear layer on the averaged map tells the turn, in the paper's AlexNet three layers on the whole map; of
8 turns what lies outside the circle that fits in the image is left out, so that no corner tells the turn.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._initialization import draw_as_torch
from ._rotations import rotate


@strict
class RotationConfig(SSLConfig):
    """Defaults: the paper's AlexNet and four turns.

    backbone_config: of an image encoder of transformers with a pooler_output.
    rotations: R, 4 (0, 90, 180, 270 degrees), 2 (0, 180 degrees) or 8, whose odd ones (45 degrees and so on) are
    interpolated, which a network can see: the paper finds 4 the best.
    """

    model_type = "ssl_rotation"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    rotations: int = 4

    def validate_rotations(self):
        if self.rotations not in (2, 4, 8):
            raise ValueError(f"rotations must be 2, 4 or 8, found {self.rotations}.")


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
        """pixel_values: (N, C, H, W), for four and eight rotations with H = W. `logits`: (R N, R), rotation by rotation."""
        turned = rotate(pixel_values, self.config.rotations)  # (R N, C, H, W), all turns of an image in one batch
        labels = torch.arange(self.config.rotations, device=turned.device).repeat_interleave(len(pixel_values))
        features = self.embed(turned)  # (R N, D)
        logits = self.head(features)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return SSLOutput(
            loss=F.cross_entropy(logits.float(), labels),
            logits=logits,
            features=features,
            metrics={"accuracy": accuracy, "chance": accuracy.new_tensor(1 / self.config.rotations)},
        )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """All turns, and below each the angle that the model tells."""
        turns, degrees = self.config.rotations, 360 // self.config.rotations
        turned = rotate(pixel_values, turns).chunk(turns)
        answers = self(pixel_values).logits.argmax(1).chunk(turns)
        return [
            PretextLine(
                f"{label * degrees}°", images, found == label, [f"{each * degrees}°" for each in found.tolist()]
            )
            for label, (images, found) in enumerate(zip(turned, answers, strict=True))
        ]

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)


__all__ = ["RotationConfig", "RotationForPreTraining"]
