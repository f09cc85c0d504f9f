"""Barlow Twins: each number that describes an image is the same in two views of it, and no two numbers say the same.

Zbontar et al. 2021, https://arxiv.org/abs/2103.03230. Official code: https://github.com/facebookresearch/barlowtwins.
Deviations: the preset's weight decay is the paper's, the code's is 1e-6; the cosine falls to 0, the code's to 0.001; biases
and norms have the rate of the other weights, the code's 0.0048 instead of 0.2; the blur is torchvision's.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._distributed import sum_with_gradient, world_size
from ._initialization import draw_as_torch


@strict
class BarlowTwinsConfig(SSLConfig):
    """Defaults: the paper's, with a ResNet-50 (section 2.2; lambda as in the official code, the paper's 5e-3 to two digits).

    backbone_config: of an image encoder of transformers with a pooler_output.
    projector_layers, projection_size: of the head, which is thrown away; P, the width of each of its layers.
    redundancy_weight: the paper's lambda.
    """

    model_type = "ssl_barlow_twins"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    projector_layers: int = 3
    projection_size: int = 8192
    redundancy_weight: float = 0.0051

    def validate_ranges(self):
        self.check_least(projector_layers=1, projection_size=2, redundancy_weight=0)


class BarlowTwinsForPreTraining(SSLModel):
    config: BarlowTwinsConfig
    input_modalities = ("image",)
    compares_samples = True

    def __init__(self, config: BarlowTwinsConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.projector = projector(width, config)
        self.normalize = GlobalBatchNorm(config.projection_size, affine=False)
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image. `logits`: (P, P), their cross-correlation over
        the batch of all processes."""
        features, features_2 = self.embed(pixel_values), self.embed(pixel_values_2)  # (N, D), statistics of each view
        projections, projections_2 = self.projector(features), self.projector(features_2)  # (N, P)

        correlation = self.cross_correlation(projections, projections_2)
        diagonal = torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
        invariance = (correlation.diagonal() - 1).square().sum()
        redundancy = correlation.masked_fill(diagonal, 0).square().sum()
        return SSLOutput(
            loss=invariance + self.config.redundancy_weight * redundancy,
            logits=correlation,
            features=torch.cat([features, features_2]),
            projections=projections.detach(),
            projections_2=projections_2.detach(),
            metrics={"invariance": invariance, "redundancy": redundancy},
        )

    def cross_correlation(self, projections, projections_2):
        """(N, P) of each view to (P, P), between -1 and 1: numbers of the first by numbers of the second, in float32."""
        with torch.autocast(projections.device.type, enabled=False):
            views = (view.to(self.normalize.running_mean.dtype) for view in (projections, projections_2))
            first, second = (self.normalize(view).float() for view in views)
            return sum_with_gradient(first.T @ second) / (len(first) * world_size())

    def check_batch(self, size, processes):
        if size * processes < 2:
            raise ValueError(
                f"Barlow Twins correlates over the batch: that of all processes is {size}, expected 2 or more."
            )

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)


def projector(features, config):
    """Linear layers, none with a bias; batch norm and ReLU between them."""
    layers, width = [], config.projection_size
    for _ in range(config.projector_layers - 1):
        layers += [nn.Linear(features, width, bias=False), GlobalBatchNorm(width), nn.ReLU(inplace=True)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, width, bias=False))


__all__ = ["BarlowTwinsConfig", "BarlowTwinsForPreTraining"]
