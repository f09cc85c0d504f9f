"""Gradients in the place of colours: what a network sees of an image is how its brightness changes, across and down.

The fixed first layer of Bojanowski and Joulin 2017 (https://arxiv.org/abs/1704.05310) and Caron et al. 2018
(https://arxiv.org/abs/1807.05520), whose features would else follow colours. It belongs to the encoder, which is released with
it: transformers has no image processor that filters, and it does not fold into the first convolution, which would have to be
wider than the architecture has it and would differ along the border, where both layers pad with zeros. This file and those
that it imports are saved beside the weights, so that where hf_ssl is not installed,
`AutoModel.from_pretrained(folder, trust_remote_code=True)` loads all.
"""

import copy

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from ._alexnet import SSLAlexNetConfig, SSLAlexNetModel
from ._resnet import SSLResNetConfig, SSLResNetModel

_AUTO_MAP = {"AutoConfig": "SSLSobelConfig", "AutoModel": "SSLSobelModel"}

for _config, _model in ((SSLAlexNetConfig, SSLAlexNetModel), (SSLResNetConfig, SSLResNetModel)):
    if _config.model_type not in CONFIG_MAPPING:  # hf_ssl is not installed
        AutoConfig.register(_config.model_type, _config)
        AutoModel.register(_config, _model)


class Sobel(nn.Module):
    """(N, C, H, W) to (N, 2, H, W), by how much the mean of the channels grows to the right and downwards; nothing in it is
    trained. The kernels [-1, 0, 1] x [1, 2, 1], with zeros beyond the border."""

    def forward(self, images):
        grey = F.pad(images.mean(1), (1, 1, 1, 1))  # (N, H + 2, W + 2)
        across, down = grey[..., 2:] - grey[..., :-2], grey[:, 2:] - grey[:, :-2]
        across = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
        down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        return torch.stack([across, down], dim=1)


@strict
class SSLSobelConfig(PreTrainedConfig):
    """Defaults: a ResNet-50 behind the filter.

    encoder_config: of an image encoder with a pooler_output and num_channels=2. num_channels: of the image.
    """

    model_type = "ssl_sobel"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(AutoConfig, model_type="resnet", init_kwargs={"num_channels": 2})
    }
    _auto_class = "AutoConfig"  # this file is saved beside the config

    encoder_config: dict | PreTrainedConfig | None = None
    num_channels: int = 3

    def validate_channels(self):
        found = getattr(self.encoder_config, "num_channels", None)
        if found != 2:
            raise ValueError(f"encoder_config must have num_channels=2, across and down, found {found}.")

    @property
    def image_size(self):
        """The encoder's, None if it sees any size."""
        return getattr(self.encoder_config, "image_size", None)

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class SSLSobelModel(PreTrainedModel):
    """The outputs of its encoder, which sees the gradients of `pixel_values`."""

    config: SSLSobelConfig
    base_model_prefix = "sobel_encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.sobel = Sobel()
        self.encoder = AutoModel.from_config(config.encoder_config, dtype=torch.get_default_dtype())
        self.post_init()

    def forward(self, pixel_values, output_hidden_states=None, **kwargs):
        """pixel_values: (N, C, H, W)."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return self.encoder(self.sobel(pixel_values), output_hidden_states=output_hidden_states, **kwargs)


def behind_sobel(config):
    """The config of a new network as `config` says, but behind the filter; one that is behind it already stays as it is.
    Raises ValueError for a network that was trained without it."""
    if isinstance(config, SSLSobelConfig):
        return config
    if config.name_or_path:
        raise ValueError(f"sobel=True needs a new network: '{config.name_or_path}' has been trained on colours.")
    encoder = copy.deepcopy(config)
    encoder.num_channels = 2
    return SSLSobelConfig(encoder_config=encoder, num_channels=config.num_channels)


__all__ = ["SSLSobelConfig", "SSLSobelModel"]
