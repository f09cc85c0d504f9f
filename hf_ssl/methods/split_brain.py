"""Split-brain autoencoder: each half of a network predicts what the other half sees, such as colours from lightness and
lightness from colours. Together they see all of the image, and neither could copy what it is to predict.

Zhang et al. 2017, https://arxiv.org/abs/1611.09842. Official code, of the trained network only:
https://github.com/richzhang/splitbrainauto. The halves share no weights and are half as wide as the whole; the pair, with
their features side by side, is released. With backbone_config.conversion="none" the halves see groups of an image's own channels,
such as colour and depth. Deviations: a hidden layer on the last map of each half predicts every `stride`-th pixel, in the
paper the fully connected layers of its AlexNet each place of a map of 12 x 12; a colour is shared out among the five nearest
bins as in colorization, and lightness has `lightness_bins`, which the files of the code do not tell; batch statistics are
those of all processes.
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._colour_bins import annealed_mean, gamut_bins, share_out, shared_cross_entropy
from ._colour_spaces import lab_to_rgb
from ._initialization import draw_as_torch
from ._stages import StageHead, freeze_beside_map, pixel_places, read_grid, stage_widths
from ._two_halves import CHANNELS, LAB_MEAN, LAB_STD, SSLTwoHalvesConfig

LIGHTNESS, COLOURS = (0,), (1, 2)  # channels of Lab
NEIGHBOURS, SIGMA, TEMPERATURE = 5, 5.0, 0.38  # of colorization


@strict
class SplitBrainConfig(SSLConfig):
    """Defaults: classes of Lab, with two ResNet-50.

    backbone_config: of two halves, model_type ssl_two_halves; its `conversion`, `first_channels` and `second_channels` say what
    each half sees, and so what the other predicts. loss: "classification" for L and ab, or "regression", for any channels.
    head_hidden_size: of the layer between the last map of a half and its predictions. stride: of the pixels that are
    predicted. lightness_bins: classes of L.
    """

    model_type = "ssl_split_brain"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_two_halves", init_kwargs={"conversion": "lab"})
    }

    backbone_config: dict | PreTrainedConfig | None = None
    loss: str = "classification"
    head_hidden_size: int = 256
    stride: int = 4
    lightness_bins: int = 100

    def validate_ranges(self):
        self.check_least(head_hidden_size=1, stride=1, lightness_bins=2)
        if self.loss not in ("classification", "regression"):
            raise ValueError(f"loss must be one of classification, regression, found '{self.loss}'.")
        backbone = self.backbone_config
        if not isinstance(backbone, SSLTwoHalvesConfig):
            raise ValueError(f"backbone_config must be of model_type 'ssl_two_halves', found '{backbone.model_type}'.")
        groups = tuple(backbone.first_channels), tuple(backbone.second_channels)
        if shared := set(groups[0]) & set(groups[1]):
            raise ValueError(
                f"first_channels and second_channels must have none in common, or a half could copy it: found {sorted(shared)} "
                "in both."
            )
        if self.loss == "classification" and (backbone.conversion != "lab" or set(groups) != {LIGHTNESS, COLOURS}):
            raise ValueError(
                "loss=classification needs backbone_config.conversion=lab and halves that see L and ab, found "
                f"conversion={backbone.conversion} and channels {list(groups[0])} and {list(groups[1])}: set loss=regression."
            )


class SplitBrainForPreTraining(SSLModel):
    config: SplitBrainConfig
    input_modalities = ("image",)

    def __init__(self, config: SplitBrainConfig):
        super().__init__(config)
        backbone, hidden = config.backbone_config, config.head_hidden_size
        halves = backbone.first_config, backbone.second_config
        for half in halves:
            check_backbone(half)
        widths = [stage_widths(half) for half in halves]
        self.first_maps = len(widths[0])  # of all hidden states, those of the first half
        self.seen = tuple(backbone.first_channels), tuple(backbone.second_channels)
        self.backbone = build_backbone(backbone)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        for half in (self.backbone.first, self.backbone.second):
            freeze_beside_map(half)
        self.register_buffer("bins", torch.empty(len(gamut_bins()), 2))  # (Q, 2), a and b
        of_second, of_first = (self.outputs(channels) for channels in reversed(self.seen))
        self.first_head = StageHead(widths[0][-1:], hidden, of_second)  # from the first half to what the second sees
        self.second_head = StageHead(widths[1][-1:], hidden, of_first)
        self.post_init()

    def outputs(self, channels):
        """How many numbers predict channels at a place."""
        if self.config.loss == "regression":
            return len(channels)
        return self.config.lightness_bins if channels == LIGHTNESS else len(self.bins)

    @property
    def needs_colours(self):
        return self.config.backbone_config.conversion == "lab"

    def forward(self, pixel_values, **kwargs):
        """pixel_values: (N, C, H, W), for conversion="lab" in [0, 1]. `logits`: (N, H / stride, W / stride, K1 + K2), what the
        first half predicts of the second's channels, then the reverse."""
        features, predicted = self.features_and_predictions(pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            channels = self.channels(pixel_values.float())
            (first, first_chance), (second, second_chance) = (
                self.cross_channel_loss(logits.float(), channels, target)
                for logits, target in zip(predicted, reversed(self.seen), strict=True)
            )
        metrics = {
            "first_loss": first.detach(), "first_chance": first_chance,
            "second_loss": second.detach(), "second_chance": second_chance,
        }  # fmt: skip
        return SSLOutput(loss=first + second, logits=torch.cat(predicted, dim=3), features=features, metrics=metrics)

    def features_and_predictions(self, pixel_values):
        """(N, D1 + D2), the pooled output, and what each half predicts of the other's channels, (N, R, S, K) both."""
        output = self.backbone(pixel_values.to(self.backbone.dtype), output_hidden_states=True)
        maps = output.hidden_states[self.first_maps - 1], output.hidden_states[-1]
        sides = [
            (torch.arange(0, side, self.config.stride, device=pixel_values.device), side)
            for side in pixel_values.shape[2:]
        ]
        rows, columns = (pixel_places(pixels, side) for pixels, side in sides)
        heads = self.first_head, self.second_head
        predicted = tuple(head([each], rows, columns) for head, each in zip(heads, maps, strict=True))
        return output.pooler_output, predicted

    def channels(self, pixels):
        """(N, R, S, C), the converted channels of every `stride`-th pixel."""
        stride = self.config.stride
        return self.backbone.convert(pixels)[..., ::stride, ::stride].permute(0, 2, 3, 1)

    def cross_channel_loss(self, logits, channels, target):
        """(loss, chance) of logits (N, R, S, K) for channels `target` of (N, R, S, C): the mean over places, and what the best
        prediction would have that is the same everywhere in these images."""
        true = channels[..., list(target)]
        if self.config.loss == "regression":
            middle = true.mean((0, 1, 2), keepdim=True)
            return tuple((true - guess).square().sum(-1).mean() / 2 for guess in (logits, middle))
        indices, shares = self.classes(true, target)
        loss = shared_cross_entropy(logits, indices, shares).mean()
        frequency = (
            logits.new_zeros(logits.shape[-1]).scatter_add(0, indices.flatten(), shares.flatten()) / shares.sum()
        )
        return loss, -torch.xlogy(frequency, frequency).sum()

    def classes(self, true, target):
        """(indices, shares), (N, R, S, k), of converted channels (N, R, S, c)."""
        mean, std = (true.new_tensor([numbers[channel] for channel in target]) for numbers in (LAB_MEAN, LAB_STD))
        lab = true * std + mean
        if target == COLOURS:
            return share_out(lab, self.bins, NEIGHBOURS, SIGMA)
        bins = self.config.lightness_bins
        indices = (lab * bins / 100).long().clamp(0, bins - 1)
        return indices, torch.ones_like(lab)

    @torch.no_grad()
    def predict(self, pixel_values):
        """(N, H, W) of each converted channel that a half predicts, in its units (L and ab in those of Lab): {channel: map}."""
        _, predicted = self.features_and_predictions(pixel_values)
        found = {}
        for logits, target in zip(predicted, reversed(self.seen), strict=True):
            values = logits.float()
            if self.config.loss == "classification":
                if target == COLOURS:
                    values = annealed_mean(values, self.bins, TEMPERATURE)
                else:
                    bins = self.config.lightness_bins
                    centres = (torch.arange(bins, device=values.device) + 0.5) * 100 / bins
                    values = values.softmax(-1) @ centres[:, None]
            elif self.needs_colours:
                values = torch.stack([values[..., i] * LAB_STD[c] + LAB_MEAN[c] for i, c in enumerate(target)], dim=-1)
            pixels = (torch.arange(side, device=values.device) / self.config.stride for side in pixel_values.shape[2:])
            between = (pixel_places(at, size) for at, size in zip(pixels, values.shape[1:3], strict=True))
            found |= dict(zip(target, read_grid(values, *between).unbind(-1), strict=True))
        return found

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """Of Lab: the images, their colours as predicted from L, and their lightness as predicted from colours. Of other
        channels: each, and what is predicted of it."""
        found, channels = self.predict(pixel_values), self.backbone.convert(pixel_values.float())
        conversion = self.config.backbone_config.conversion
        if self.needs_colours:
            true = [channels[:, c] * LAB_STD[c] + LAB_MEAN[c] for c in range(3)]
            lines = [PretextLine("image", pixel_values)]
            for channel, target in (("L", LIGHTNESS), ("ab", COLOURS)):
                mixed = [found.get(c, true[c]) if c in target else true[c] for c in range(3)]
                lines.append(PretextLine(f"its {channel}\npredicted", lab_to_rgb(torch.stack(mixed, dim=1))))
            return lines
        names, lines = CHANNELS.get(conversion, range(channels.shape[1])), []
        for channel, values in sorted(found.items()):
            shown = torch.stack([channels[:, channel], values])  # (2, N, H, W)
            low, high = shown[0].min(), shown[0].max()
            shown = (
                ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)[:, :, None].expand(-1, *pixel_values.shape)
            )
            lines += [PretextLine(f"{names[channel]}", shown[0]), PretextLine("predicted", shown[1])]
        return lines

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.copy_(self.bins, gamut_bins().to(self.bins))
        elif isinstance(module, StageHead):
            module.reset_output()
        else:
            draw_as_torch(module)


__all__ = ["SplitBrainConfig", "SplitBrainForPreTraining"]
