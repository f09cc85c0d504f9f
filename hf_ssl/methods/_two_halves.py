"""An image encoder of two halves, each of which sees some of the channels: L and ab of a Lab image, for example. It may make
these channels itself, of pixels that any image processor gives.

Split-brain autoencoders (Zhang et al. 2016, https://arxiv.org/abs/1611.09842) and contrastive multiview coding (Tian et al.
2019, https://arxiv.org/abs/1906.05849) train the halves on each other and use both side by side. This file and those that it
imports are saved beside the weights, so that where hf_ssl is not installed,
`AutoModel.from_pretrained(folder, trust_remote_code=True)` loads all.
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ._colour_spaces import rgb_to_lab
from ._sobel import Sobel  # which registers our AlexNet and ResNet too

_AUTO_MAP = {"AutoConfig": "SSLTwoHalvesConfig", "AutoModel": "SSLTwoHalvesModel"}
CHANNELS = {"lab": ("L", "a", "b"), "gradients": ("grey", "across", "down")}  # that a conversion makes
# L, a and b of https://github.com/HobbitLong/CMC, train_CMC.py, to -1 to 1
LAB_MEAN, LAB_STD = (50.0, 6.025, -6.6895), (50.0, 92.208, 101.1675)


@strict
class SSLTwoHalvesConfig(PreTrainedConfig):
    """Defaults: two ResNet-50 for Lab images.

    num_channels: of the whole image. conversion: what channels are made of it: "none", its own; "lab", L, a and b, in -1 to 1,
    of red, green and blue in [0, 1]; "gradients", the mean of its channels and how that grows across and down. first_channels,
    second_channels: what of these each half sees. first_config, second_config: of image encoders with a pooler_output;
    num_channels of each is the number of channels it sees.
    """

    model_type = "ssl_two_halves"
    sub_configs_defaults = {
        "first_config": SubConfigSpec(AutoConfig, model_type="resnet", init_kwargs={"num_channels": 1}),
        "second_config": SubConfigSpec(AutoConfig, model_type="resnet", init_kwargs={"num_channels": 2}),
    }
    _auto_class = "AutoConfig"  # this file is saved beside the config

    first_config: dict | PreTrainedConfig | None = None
    second_config: dict | PreTrainedConfig | None = None
    num_channels: int = 3
    conversion: str = "none"
    first_channels: list[int] | tuple[int, ...] = (0,)
    second_channels: list[int] | tuple[int, ...] = (1, 2)

    def validate_channels(self):
        if self.conversion not in ("none", *CHANNELS):
            raise ValueError(f"conversion must be one of none, {', '.join(CHANNELS)}, found '{self.conversion}'.")
        if self.conversion == "lab" and self.num_channels != 3:
            raise ValueError(
                f"conversion=lab needs num_channels=3, red, green and blue, found {self.num_channels}: grey images have no "
                "colours, set conversion=gradients."
            )
        channels_in_all = self.num_channels if self.conversion == "none" else len(CHANNELS[self.conversion])
        for half in ("first", "second"):
            channels, config = getattr(self, f"{half}_channels"), getattr(self, f"{half}_config")
            if not channels or not all(0 <= channel < channels_in_all for channel in channels):
                raise ValueError(
                    f"{half}_channels must name some of the {channels_in_all} channels, counted from 0, "
                    f"found {list(channels)}."
                )
            if getattr(config, "num_channels", None) != len(channels):
                raise ValueError(
                    f"{half}_config must have num_channels={len(channels)}, as many as {half}_channels, "
                    f"found {getattr(config, 'num_channels', None)}."
                )

    @property
    def image_size(self):
        """Of the halves, None if they see any size."""
        sizes = (getattr(config, "image_size", None) for config in (self.first_config, self.second_config))
        return next((size for size in sizes if size), None)

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class SSLTwoHalvesModel(PreTrainedModel):
    """`pooler_output`, (N, D1 + D2), is that of the first half followed by that of the second."""

    config: SSLTwoHalvesConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        dtype = torch.get_default_dtype()  # that this model is being built in
        self.first = AutoModel.from_config(config.first_config, dtype=dtype)
        self.second = AutoModel.from_config(config.second_config, dtype=dtype)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values, output_hidden_states=None, **kwargs):
        """pixel_values: (N, C, H, W). hidden_states: those of the first half, then those of the second."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        halves = zip((self.first, self.second), self.split(pixel_values), strict=True)
        outputs = [half(pixels, output_hidden_states=output_hidden_states) for half, pixels in halves]
        return BaseModelOutputWithPooling(
            pooler_output=torch.cat([output.pooler_output.flatten(1) for output in outputs], dim=1),
            hidden_states=sum((output.hidden_states for output in outputs), ()) if output_hidden_states else None,
        )

    def split(self, pixel_values):
        """(N, C, H, W) to what the first half sees, (N, C1, H, W), and the second, (N, C2, H, W)."""
        channels = self.convert(pixel_values)
        return channels[:, list(self.config.first_channels)], channels[:, list(self.config.second_channels)]

    def convert(self, pixel_values):
        """(N, C, H, W) to the channels of `config.conversion`."""
        if self.config.conversion == "none":
            return pixel_values
        with torch.autocast(pixel_values.device.type, enabled=False):
            pixels = pixel_values.float()
            if self.config.conversion == "lab":
                lab = zip(rgb_to_lab(pixels).unbind(1), LAB_MEAN, LAB_STD, strict=True)
                channels = torch.stack([(channel - mean) / std for channel, mean, std in lab], dim=1)
            else:
                channels = torch.cat([pixels.mean(1, keepdim=True), Sobel()(pixels)], dim=1)
        return channels.to(pixel_values.dtype)


__all__ = ["SSLTwoHalvesConfig", "SSLTwoHalvesModel"]
