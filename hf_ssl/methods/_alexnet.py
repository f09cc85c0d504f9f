"""AlexNet with batch norm, the network of the first papers, which transformers lacks: five convolutions and no more.

Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824; widths and batch norm as in Gidaris et al. 2018,
https://github.com/gidariss/FeatureLearningRotNet (architectures/AlexNet.py). What follows the convolutions is the method's
business: here their last map is averaged. This file imports nothing of hf_ssl and is saved beside the weights, so that
where hf_ssl is not installed, `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads both.
"""

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import can_return_tuple

KERNELS = (11, 5, 3, 3, 3)
POOLED = (0, 1)  # the layers whose maps are halved by a max-pool before the next layer
_AUTO_MAP = {
    "AutoConfig": "SSLAlexNetConfig",
    "AutoModel": "SSLAlexNetModel",
    "AutoModelForImageClassification": "SSLAlexNetForImageClassification",
}


@strict
class SSLAlexNetConfig(PreTrainedConfig):
    """Defaults: for 224 px.

    stride: of the first convolution, 4; 2 for patches and images of half the size, as jigsaw's authors have it.
    hidden_sizes: the channels of the five layers.
    """

    model_type = "ssl_alexnet"
    _auto_class = "AutoConfig"  # this file is saved beside the config

    num_channels: int = 3
    stride: int = 4
    hidden_sizes: list[int] | tuple[int, ...] = (64, 192, 384, 256, 256)

    def validate_sizes(self):
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, found {self.stride}.")
        if len(self.hidden_sizes) != len(KERNELS) or min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be {len(KERNELS)} positive numbers, found {list(self.hidden_sizes)}.")

    @property
    def smallest_size(self):
        """The side in pixels from which on every layer has something to see."""
        return 6 * self.stride + 7

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class SSLAlexNetPreTrainedModel(PreTrainedModel):
    config: SSLAlexNetConfig
    base_model_prefix = "alexnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)


class SSLAlexNetModel(SSLAlexNetPreTrainedModel):
    """`last_hidden_state`: the map of the fifth layer, (N, D, H', W'); `pooler_output`: its average, (N, D, 1, 1).
    `hidden_states`: the maps of the five layers, after their ReLU."""

    def __init__(self, config):
        super().__init__(config)
        widths = (config.num_channels, *config.hidden_sizes)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    widths[i], widths[i + 1], kernel, stride=1 if i else config.stride, padding=min(2, kernel // 2), bias=False
                ),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(inplace=True),
            )
            for i, kernel in enumerate(KERNELS)
        )  # fmt: skip
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values, output_hidden_states=None, **kwargs):
        """pixel_values: (N, C, H, W), H and W at least `config.smallest_size`."""
        if min(pixel_values.shape[-2:]) < (least := self.config.smallest_size):
            height, width = pixel_values.shape[-2:]
            raise ValueError(
                f"An AlexNet with stride={self.config.stride} needs images of at least {least} px, found {height} x {width}."
            )
        maps, hidden = [], pixel_values
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden)
            maps.append(hidden)
            if i in POOLED:
                hidden = F.max_pool2d(hidden, 3, stride=2)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden,
            pooler_output=hidden.mean((2, 3), keepdim=True),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


class SSLAlexNetForImageClassification(SSLAlexNetPreTrainedModel):
    """A linear layer on the average of the last map."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.alexnet = SSLAlexNetModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values, labels=None, output_hidden_states=None, **kwargs):
        """labels: (N,) int64 for the loss, or None."""
        output = self.alexnet(pixel_values, output_hidden_states=output_hidden_states)
        logits = self.classifier(output.pooler_output.flatten(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=output.hidden_states)


__all__ = ["SSLAlexNetConfig", "SSLAlexNetForImageClassification", "SSLAlexNetModel"]
