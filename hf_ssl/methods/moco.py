"""Momentum contrast: find the other view of an image among thousands of other images, kept in a queue.

MoCo v1: He et al. 2019, https://arxiv.org/abs/1911.05722. v2: Chen et al. 2020, https://arxiv.org/abs/2003.04297.
Official code: https://github.com/facebookresearch/moco. Queries come from a network that is trained, keys from its moving
average, so that the keys in the queue, which are up to 256 steps old, agree with each other.
"""

import copy

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone, pooled
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import SplitBatchNorm, average_running_statistics, replace_batch_norm
from ._contrastive import queue_cross_entropy, queue_logits
from ._distributed import gather, own_part, world_size
from ._information import information_bound
from ._initialization import draw_as_torch
from ._memory import enqueue
from ._momentum import begin_as, momentum_update
from ._random import SHUFFLE_STREAM, fold_in


@strict
class MoCoConfig(SSLConfig):
    """Defaults: v2 with a ResNet-50. v1 has projector_layers=1 and temperature=0.07.

    backbone_config: of an image encoder of transformers with a pooler_output.
    projector_layers: 1, linear, or 2, with `projector_hidden_size` (0: as wide as the backbone's features) units between.
    projection_size: P, of queries and keys. queue_size: K, the
    negatives. momentum: of the key encoder. batch_norm_group_size: samples that share batch statistics; keys are
    shuffled between the groups (32: the original's 256 on 8 GPUs).
    """

    model_type = "ssl_moco"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    projector_layers: int = 2
    projector_hidden_size: int = 0
    projection_size: int = 128
    queue_size: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    batch_norm_group_size: int = 32

    def validate_ranges(self):
        if self.projector_layers not in (1, 2):
            raise ValueError(f"projector_layers must be 1 or 2, found {self.projector_layers}.")
        self.check_positive("temperature")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], found {self.momentum}.")
        self.check_least(projection_size=1, queue_size=1, batch_norm_group_size=1)


class MoCoForPreTraining(SSLModel):
    config: MoCoConfig
    input_modalities = ("image",)
    compares_samples = True

    def __init__(self, config: MoCoConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        split = {"group_size": config.batch_norm_group_size}
        self.has_batch_norm = replace_batch_norm(
            self.backbone, lambda *settings: SplitBatchNorm(*settings, **split), kinds=(nn.BatchNorm2d,)
        )
        self.projector = projector(width, config)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", torch.empty(config.queue_size, config.projection_size))  # (K, P)
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))
        self.post_init()

    def forward(self, pixel_values, pixel_values_2, sample_seeds=None, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image. `sample_seeds`, (N,) int64, decide how the
        keys are shuffled; without them it is drawn afresh. `logits`, (N, 1 + K), are only made in eval mode."""
        if self.training:
            self.check_batch(len(pixel_values), world_size())
        # keys first: without gradient they leave nothing in memory for the queries' activations to come on top of
        keys = self.encode_keys(pixel_values_2, sample_seeds)  # (W N, P), of all processes
        own_keys = own_part(keys) if self.training else keys
        features = self.embed(pixel_values)  # (N, D)
        queries = F.normalize(self.projector(features).float(), dim=1)  # (N, P)

        loss = queue_cross_entropy(queries, own_keys, self.queue, self.config.temperature)
        if self.training:
            logits = None
            enqueue(self.queue, self.queue_position, keys)  # after the loss: the queue holds earlier batches only
        else:
            logits = queue_logits(queries, own_keys, self.queue, self.config.temperature)
        return SSLOutput(
            loss=loss,
            logits=logits,
            features=features,
            projections=queries.detach(),
            projections_2=own_keys,
            metrics=information_bound(loss, 1 + self.config.queue_size),
        )

    @torch.no_grad()
    def encode_keys(self, pixel_values, sample_seeds=None):
        """The keys of all processes, (W N, P); in eval mode only this one's.

        Batch statistics would give the answer away if a query and its key had the same samples beside them. So the samples
        of all processes are shuffled before they are encoded, and put back in order after it.
        """
        shuffles = self.training and self.has_batch_norm
        if shuffles:
            if sample_seeds is None:
                sample_seeds = torch.randint(2**62, (len(pixel_values),), device=pixel_values.device)
            order = fold_in(gather(sample_seeds), SHUFFLE_STREAM).argsort()  # the same on 1 and on 64 processes
            pixel_values = gather(pixel_values)[own_part(order)]
        keys = F.normalize(self.key_projector(pooled(self.key_backbone, pixel_values)).float(), dim=1)
        if self.training:
            keys = gather(keys)
        return keys[order.argsort()] if shuffles else keys

    def check_batch(self, size, processes):
        group, queue = self.config.batch_norm_group_size, self.config.queue_size
        if self.has_batch_norm and size % group:
            raise ValueError(
                f"The batch of a process, per_device_train_batch_size, must be a multiple of batch_norm_group_size={group}, "
                f"found {size}."
            )
        if size * processes > queue:
            raise ValueError(f"The batch of all processes must fit in queue_size={queue}, found {size * processes}.")

    def after_step(self, progress):
        momentum_update(self.key_backbone, self.backbone, self.config.momentum)
        momentum_update(self.key_projector, self.projector, self.config.momentum)
        average_running_statistics(self)

    @torch.no_grad()
    def init_key_encoder(self):
        """Make the key encoder equal to the query encoder, as at the start of training."""
        self.key_backbone.load_state_dict(self.backbone.state_dict())
        self.key_projector.load_state_dict(self.projector.state_dict())

    @torch.no_grad()
    def init_queue(self, seed):
        """Fill the queue anew with random directions, the same for the same seed everywhere."""
        generator = torch.Generator().manual_seed(seed)
        self.queue.copy_(F.normalize(torch.randn(self.queue.shape, generator=generator), dim=1))
        self.queue_position.zero_()

    def load_encoder(self, encoder, missing=()):
        super().load_encoder(encoder, missing)
        self.init_key_encoder()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.copy_(self.queue, F.normalize(torch.randn_like(self.queue), dim=1))
            init.zeros_(self.queue_position)
            # modules are drawn before what holds them: what no file has of the key encoder begins as the query encoder
            begin_as(self.key_backbone, self.backbone)
            begin_as(self.key_projector, self.projector)
        else:
            draw_as_torch(module)  # as in the original


def projector(features, config):
    if config.projector_layers == 1:
        return nn.Sequential(nn.Linear(features, config.projection_size))
    hidden = config.projector_hidden_size or features
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, config.projection_size))


__all__ = ["MoCoConfig", "MoCoForPreTraining"]
