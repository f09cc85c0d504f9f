"""Contrastive multiview coding: what one view of a thing says is to be recognised in another, such as the lightness of an
image in its colours. What only one of them shows, noise above all, is left out.

Tian et al. 2019, https://arxiv.org/abs/1906.05849. Official code: https://github.com/HobbitLong/CMC. An encoder has two
halves, one for L and one for a and b of a Lab image; each has a memory bank with a unit vector for each row of the data, and
each is compared with the bank of the other. The pair is released. Deviations: the banks begin with what the network makes of
all rows before it has learnt anything, the code's with random numbers, from which short runs do not recover; batch statistics
are those of all processes. Grey images have no colours: backbone_config.conversion="gradients", which is not in the paper,
compares their brightness with how it changes across and down. A row that stands twice in a batch moves towards the last of its
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
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._initialization import draw_as_torch
from ._memory import fill_bank, move_rows
from ._noise_contrastive import NoiseContrastiveLoss
from ._own_rows import check_bank, draw_noise_rows, own_row_loss, recognition_lines
from ._two_halves import CHANNELS, SSLTwoHalvesConfig

LOSSES = ("nce", "softmax")


@strict
class CMCConfig(SSLConfig):
    """Defaults: the paper's, with two ResNet-50.

    backbone_config: of two halves, model_type ssl_two_halves; its `conversion` says which views they see. num_samples: n, rows
    of the data; set by the command line. projection_size: P, of the banks' vectors. loss: "nce", against noise_samples
    draws, or "softmax", against the whole bank. noise_samples: 4096 in the code. temperature: 0.07 on ImageNet, 0.1 on
    STL-10. bank_momentum: what a vector of a bank keeps of itself when its image is seen.
    """

    model_type = "ssl_cmc"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_two_halves", init_kwargs={"conversion": "lab"})
    }

    backbone_config: dict | PreTrainedConfig | None = None
    num_samples: int = 0
    projection_size: int = 128
    loss: str = "nce"
    noise_samples: int = 16_384
    temperature: float = 0.07
    bank_momentum: float = 0.5

    def validate_ranges(self):
        self.check_least(num_samples=0, projection_size=1, noise_samples=1)
        check_bank(self, LOSSES)


class CMCForPreTraining(SSLModel):
    config: CMCConfig
    input_modalities = ("image",)
    uses_sample_indices = True

    def __init__(self, config: CMCConfig):
        super().__init__(config)
        backbone, size = config.backbone_config, config.projection_size
        if not isinstance(backbone, SSLTwoHalvesConfig):
            raise ValueError(f"backbone_config must be of model_type 'ssl_two_halves', found '{backbone.model_type}'.")
        self.widths = [check_backbone(half) for half in (backbone.first_config, backbone.second_config)]
        self.backbone = build_backbone(backbone)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        self.first_projector, self.second_projector = (nn.Linear(width, size) for width in self.widths)
        self.register_buffer("first_bank", torch.empty(config.num_samples, size))  # (n, P)
        self.register_buffer("second_bank", torch.empty(config.num_samples, size))
        nce = config.loss == "nce"
        self.first_nce = NoiseContrastiveLoss(config.temperature) if nce else None
        self.second_nce = NoiseContrastiveLoss(config.temperature) if nce else None
        self.post_init()

    def forward(self, pixel_values, sample_indices, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W), in [0, 1] for conversion="lab". sample_indices: (N,), their rows. noise: (N, m), rows of
        both banks, for loss="nce"; it follows from `sample_seeds`, (N,) int64, if not given, and is drawn afresh without
        those. `logits`, (N, n), how the first view resembles each row's second, are only made in eval mode."""
        config = self.config
        if noise is None and config.loss == "nce":
            noise = draw_noise_rows(sample_indices, sample_seeds, config.noise_samples, config.num_samples)
        features = self.embed(pixel_values)  # (N, D1 + D2)
        first, second = features.split(self.widths, dim=1)
        first = F.normalize(self.first_projector(first).float(), dim=1)  # (N, P)
        second = F.normalize(self.second_projector(second).float(), dim=1)

        of_first, first_metrics = own_row_loss(
            first, self.second_bank, sample_indices, config.temperature, self.first_nce, noise
        )
        of_second, metrics = own_row_loss(
            second, self.first_bank, sample_indices, config.temperature, self.second_nce, noise
        )
        metrics = {name: (value + first_metrics[name]) / 2 for name, value in metrics.items()}
        logits = None if self.training else first @ self.second_bank.to(first.dtype).T / config.temperature
        if self.training:  # after the loss
            move_rows(self.first_bank, sample_indices, first.detach(), config.bank_momentum)
            move_rows(self.second_bank, sample_indices, second.detach(), config.bank_momentum)
        return SSLOutput(
            loss=of_first + of_second,
            logits=logits,
            features=features,
            projections=first.detach(),
            projections_2=second.detach(),
            metrics=metrics | {"first_loss": of_first.detach(), "second_loss": of_second.detach()},
        )

    def before_epoch(self, epoch, features):
        """The banks begin with what the network makes of all rows before it has learnt anything. Raises ValueError if one of
        the views is the same of all images."""
        if epoch:
            return
        halves = features().to(self.dtype).split(self.widths, dim=1)
        for half, own in zip(("first", "second"), halves, strict=True):
            bank = getattr(self, f"{half}_bank")
            fill_bank(bank, getattr(self, f"{half}_projector"), own)
            if len(bank) > 1 and (bank - bank[0]).abs().max() < 1e-5:
                raise ValueError(
                    f"All images are the same to the {half} half: expected views that differ from image to image. Grey images "
                    "have no colours for conversion=lab: set backbone_config.conversion=gradients."
                )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices, sample_seeds):
        """The images, above each at which place its first view has its own second among all rows, the channels of both views,
        and of the others here the one whose second view is nearest to it."""
        logits = self(pixel_values, sample_indices, sample_seeds).logits
        image, nearest = recognition_lines("image", pixel_values, pixel_values, logits, sample_indices)
        channels, config = self.backbone.convert(pixel_values), self.config.backbone_config
        names = CHANNELS.get(config.conversion, range(channels.shape[1]))
        low, high = (extreme(channels, dim=(0, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
        channels = (channels - low) / (high - low).clamp(min=1e-6)
        seen = [
            PretextLine(str(names[channel]), channels[:, channel, None].expand_as(pixel_values))
            for view in ("first", "second")
            for channel in getattr(config, f"{view}_channels")
        ]
        return [image, *seen, nearest]

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            for bank in (self.first_bank, self.second_bank):
                init.copy_(bank, F.normalize(torch.randn_like(bank), dim=1))
        elif isinstance(module, NoiseContrastiveLoss):
            module.reset()
        else:
            draw_as_torch(module)


__all__ = ["CMCConfig", "CMCForPreTraining"]
