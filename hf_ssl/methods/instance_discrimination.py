"""Instance discrimination: every image is a class of its own, and the network tells which one an augmented image is.

Wu et al. 2018, https://arxiv.org/abs/1805.01978. Official code: https://github.com/zhirongw/lemniscate.pytorch. The weight
vector of a class is what the network itself made of the image before: a memory bank has a unit vector for each row of the
data. Deviations: the bank begins with what the network makes of all rows before it has learnt anything, the code's with
random numbers, from which short runs do not recover; batch statistics are those of all processes; the released
representation is the backbone's, not the projection. A row that stands twice in a batch moves towards the last of its
images.
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
from ._information import information_bound
from ._initialization import draw_as_torch
from ._memory import fill_bank, move_rows
from ._noise_contrastive import NoiseContrastiveLoss
from ._own_rows import check_bank, draw_noise_rows, own_row_loss, recognition_lines

LOSSES = ("nce", "softmax", "parametric")


@strict
class InstanceDiscriminationConfig(SSLConfig):
    """Defaults: the paper's, with a ResNet-50.

    backbone_config: of an image encoder of transformers with a pooler_output. num_samples: n, rows of the data; set by the
    command line. projection_size: P, of the bank's vectors. loss: "nce", against noise_samples draws; "softmax", against
    the whole bank; "parametric", a softmax over rows whose weights are learnt and which needs no bank, the paper's
    baseline. noise_samples: m, the draws of each image. temperature: 0.07 on ImageNet, 0.1 on CIFAR. bank_momentum: what a
    vector of the bank keeps of itself when its image is seen. proximal_weight: the paper's lambda (section 3.3), of the
    squared distance from the bank's vector; 0 in the code, which has bank_momentum in its place.
    """

    model_type = "ssl_instance_discrimination"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    projection_size: int = 128
    loss: str = "nce"
    noise_samples: int = 4096
    temperature: float = 0.07
    bank_momentum: float = 0.5
    proximal_weight: float = 0.0

    def validate_ranges(self):
        self.check_least(num_samples=0, projection_size=1, noise_samples=1, proximal_weight=0)
        check_bank(self, LOSSES)
        if self.loss == "parametric" and self.proximal_weight:
            raise ValueError(f"loss=parametric has no bank: expected proximal_weight=0, found {self.proximal_weight}.")


class InstanceDiscriminationForPreTraining(SSLModel):
    config: InstanceDiscriminationConfig
    input_modalities = ("image",)
    uses_sample_indices = True

    def __init__(self, config: InstanceDiscriminationConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.projector = nn.Linear(width, config.projection_size)
        if config.loss == "parametric":
            self.classifier = nn.Linear(config.projection_size, config.num_samples, bias=False)
        else:
            self.register_buffer("bank", torch.empty(config.num_samples, config.projection_size))  # (n, P)
        self.noise_contrastive_loss = NoiseContrastiveLoss(config.temperature) if config.loss == "nce" else None
        self.post_init()

    def forward(self, pixel_values, sample_indices, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W). sample_indices: (N,), their rows. noise: (N, m), rows of the bank, for loss="nce"; it
        follows from `sample_seeds`, (N,) int64, if not given, and is drawn afresh without those. `logits`, (N, n), are
        only made in eval mode."""
        features = self.embed(pixel_values)  # (N, D)
        projections = self.projector(features).float()  # (N, P)
        if self.config.loss == "parametric":
            logits = self.classifier(projections.to(self.dtype)).float()
            loss = F.cross_entropy(logits, sample_indices)
            metrics = information_bound(loss, logits.shape[1])
            return SSLOutput(loss, None if self.training else logits, features, metrics=metrics)

        queries = F.normalize(projections, dim=1)
        keys = self.bank[sample_indices].to(queries.dtype)  # (N, P), a copy
        if noise is None and self.config.loss == "nce":
            noise = self.draw_noise(sample_indices, sample_seeds)
        loss, metrics = own_row_loss(
            queries, self.bank, sample_indices, self.config.temperature, self.noise_contrastive_loss, noise
        )
        if self.config.proximal_weight:
            metrics["proximal"] = (queries - keys).square().sum(1).mean()
            loss = loss + self.config.proximal_weight * metrics["proximal"]
        logits = None if self.training else queries @ self.bank.to(queries.dtype).T / self.config.temperature
        if self.training:
            move_rows(self.bank, sample_indices, queries.detach(), self.config.bank_momentum)  # after the loss
        return SSLOutput(
            loss=loss,
            logits=logits,
            features=features,
            projections=queries.detach(),
            projections_2=keys,
            metrics=metrics,
        )

    def before_epoch(self, epoch, features):
        """The bank begins with what the network makes of all rows before it has learnt anything."""
        if epoch == 0 and self.config.loss != "parametric":
            fill_bank(self.bank, self.projector, features().to(self.dtype))

    def draw_noise(self, sample_indices, sample_seeds=None):
        """(N, m) rows of the bank, evenly, with replacement."""
        return draw_noise_rows(sample_indices, sample_seeds, self.config.noise_samples, self.config.num_samples)

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds):
        """The images, below each at which place its own row stands among all rows, and of the others here the one whose row
        is nearest."""
        logits = self(pixel_values, sample_indices, sample_seeds).logits
        return recognition_lines("image", pixel_values, pixel_values, logits, sample_indices)

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            if self.config.loss != "parametric":
                init.copy_(self.bank, F.normalize(torch.randn_like(self.bank), dim=1))
        elif isinstance(module, NoiseContrastiveLoss):
            module.reset()
        else:
            draw_as_torch(module)


__all__ = ["InstanceDiscriminationConfig", "InstanceDiscriminationForPreTraining"]
