"""SimCLR: two views of an image must find each other among all other views in the batch.

Chen et al. 2020, https://arxiv.org/abs/2002.05709. Official code: https://github.com/google-research/simclr (its loss is
the sum over the two views; here, as in the paper, the mean).
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._contrastive import nt_xent
from ._information import information_bound
from ._initialization import draw_as_torch


@strict
class SimCLRConfig(SSLConfig):
    """Defaults: the paper's ResNet-50. The official repository's default is projector_layers=3 (SimCLR v2).

    backbone_config: of an image encoder of transformers with a pooler_output.
    projector_layers: of the head, which is thrown away; hidden ones are as wide as the backbone's features.
    projection_size: P. temperature: 0.1 on ImageNet, 0.5 on CIFAR.
    """

    model_type = "ssl_simclr"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    projector_layers: int = 2
    projection_size: int = 128
    temperature: float = 0.1

    def validate_ranges(self):
        self.check_positive("temperature")
        self.check_least(projector_layers=1, projection_size=1)


class SimCLRForPreTraining(SSLModel):
    config: SimCLRConfig
    input_modalities = ("image",)
    compares_samples = True

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.projector = projector(width, config)
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image."""
        features = self.embed(torch.cat([pixel_values, pixel_values_2]))  # (2 N, D), one batch for the statistics
        projections = F.normalize(self.projector(features).float(), dim=1)  # (2 N, P)
        first, second = projections.chunk(2)
        loss, logits = nt_xent(first, second, self.config.temperature)
        return SSLOutput(
            loss=loss,
            logits=logits,
            features=features,
            projections=first.detach(),
            projections_2=second.detach(),
            metrics=information_bound(loss, logits.shape[1] - 1),  # without the own view
        )

    def check_batch(self, size, processes):
        if size * processes < 2:
            raise ValueError(f"SimCLR needs other images to compare with: the batch of all processes is {size}.")

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
        else:
            draw_as_torch(module)


def projector(features, config):
    """Each linear layer is followed by a batch norm, as in the official code; the last one has a scale but no shift."""
    layers = []
    for _ in range(config.projector_layers - 1):
        layers += [nn.Linear(features, features, bias=False), GlobalBatchNorm(features), nn.ReLU(inplace=True)]
    last = GlobalBatchNorm(config.projection_size)
    last.bias = None
    return nn.Sequential(*layers, nn.Linear(features, config.projection_size, bias=False), last)


__all__ = ["SimCLRConfig", "SimCLRForPreTraining"]
