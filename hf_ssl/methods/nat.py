"""Noise as targets: every image has a target, a random point of the unit sphere, and images change theirs for nearer ones.

Bojanowski and Joulin 2017, https://arxiv.org/abs/1704.05310. Official code, in Lua:
https://github.com/facebookresearch/noise-as-targets. Targets are spread evenly, so that features which fit them cannot
collapse; which image has which is learnt, by the best exchange within each batch. Deviations: batch statistics are those of
all processes; one linear layer on the backbone's pooled features leads to the sphere, in the paper's AlexNet three. A row
that stands twice in a batch takes part in the exchange once, with its last image.

The original sums its loss over a batch of 256 and has a learning rate of 0.01. Here the loss is 256 times the mean, the same
at that batch; at others `learning_rate`, which grows with the batch, makes each step that of the sum at the rate it names.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._distributed import from_first, gather, rank
from ._initialization import draw_as_torch
from ._sobel import behind_sobel

BATCH = 256  # of the original


@strict
class NATConfig(SSLConfig):
    """Defaults: the paper's AlexNet and targets.

    backbone_config: of an image encoder of transformers with a pooler_output. num_samples: n, rows of the data; set by the
    command line. projection_size: P, of the targets, one for each row. exchange_period: targets are exchanged in every so
    manieth epoch, the first one included. sobel: the network sees gradients, not colours, as the paper's does.
    """

    model_type = "ssl_nat"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_alexnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    projection_size: int = 2048
    exchange_period: int = 3
    sobel: bool = False

    def validate_ranges(self):
        self.check_least(num_samples=0, projection_size=2, exchange_period=1)


class NATForPreTraining(SSLModel):
    config: NATConfig
    input_modalities = ("image",)
    uses_sample_indices = True
    compares_samples = True

    def __init__(self, config: NATConfig):
        if config.sobel:
            config.backbone_config = behind_sobel(config.backbone_config)
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.projector = nn.Linear(width, config.projection_size)
        self.register_buffer("targets", torch.empty(config.num_samples, config.projection_size))  # (n, P)
        self.register_buffer("assignment", torch.arange(config.num_samples))  # (n,), the target of each row
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.known_epoch = None  # `epoch` on the host, which need not wait for the device in each step
        self.register_load_state_dict_post_hook(forget_epoch)
        self.post_init()

    def forward(self, pixel_values, sample_indices, **kwargs):
        """pixel_values: (N, C, H, W). sample_indices: (N,), their rows."""
        features = self.embed(pixel_values)  # (N, D)
        projections = F.normalize(self.projector(features).float(), dim=1)  # (N, P)
        before = self.assignment[sample_indices]
        if self.training and self.exchanges():
            self.exchange(projections.detach(), sample_indices)
        own = self.assignment[sample_indices]
        targets = self.targets[own].to(projections.dtype)  # (N, P)
        distance = (projections - targets).square().sum(1).mean()
        return SSLOutput(
            loss=BATCH * distance,
            features=features,
            projections=projections.detach(),
            projections_2=targets,
            metrics={
                "distance": distance.detach(),  # squared
                "chance": distance.new_full((), 2.0),
                "exchanged": (own != before).float().mean(),
            },
        )

    def before_epoch(self, epoch, features):
        self.epoch.fill_(epoch)
        self.known_epoch = epoch

    def exchanges(self):
        """Whether targets are exchanged in this epoch."""
        if self.known_epoch is None:
            self.known_epoch = self.epoch.item()
        return self.known_epoch % self.config.exchange_period == 0

    @torch.no_grad()
    def exchange(self, projections, sample_indices):
        """Give the targets of the rows of all processes to these rows anew, so that the sum of similarities is largest."""
        from scipy.optimize import linear_sum_assignment

        projections, indices = gather(projections), gather(sample_indices)  # (W N, P), (W N,)
        places = {row: place for place, row in enumerate(indices.tolist())}  # a row that stands twice: the last
        rows = torch.tensor(list(places), device=indices.device)
        targets = self.assignment[rows]
        if rank() == 0:
            places = list(places.values())
            similarities = projections[places].double() @ self.targets[targets].double().T
            _, chosen = linear_sum_assignment(similarities.cpu().numpy(), maximize=True)
            targets = targets[torch.from_numpy(chosen).to(targets.device)]
        self.assignment[rows] = from_first(targets)

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds=None):
        """The images, and for each the one of these whose target is nearest."""
        projections = F.normalize(self.projector(self.embed(pixel_values)).float(), dim=1)
        nearest = (projections @ self.targets[self.assignment[sample_indices]].T).argmax(1)
        places = torch.arange(len(nearest), device=nearest.device)
        return [
            PretextLine("image", pixel_values),
            PretextLine("whose target\nis nearest", pixel_values[nearest], nearest == places),
        ]

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.copy_(self.targets, F.normalize(torch.randn_like(self.targets), dim=1))
            init.copy_(self.assignment, torch.arange(len(self.assignment), device=self.assignment.device))
            init.zeros_(self.epoch)
        else:
            draw_as_torch(module)


def forget_epoch(model, incompatible_keys):
    model.known_epoch = None


__all__ = ["NATConfig", "NATForPreTraining"]
