"""ResNet for small images, such as CIFAR's: a 3x3 stem of stride 1 and no max-pool; else transformers' own ResNet.

The stem is that of the SimCLR paper for CIFAR-10 (https://arxiv.org/abs/2002.05709, appendix B.9); transformers has no
setting for it. This file imports nothing of hf_ssl and is saved beside the weights, so that where hf_ssl is not
installed, `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads both.
"""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import ResNetBackbone, ResNetConfig, ResNetForImageClassification, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetEmbeddings


@strict
class SSLResNetConfig(ResNetConfig):
    """The fields of ResNetConfig."""

    model_type = "ssl_resnet"
    _auto_class = "AutoConfig"  # this file is saved beside the config

    def save_pretrained(self, save_directory, **kwargs):
        # by itself transformers names only the class that is saved, and each of the four must load from any of them
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class SSLResNetEmbeddings(ResNetEmbeddings):
    """The stem: (N, C, H, W) to (N, embedding_size, H, W)."""

    def __init__(self, config):
        super().__init__(config)
        self.embedder = ResNetConvLayer(config.num_channels, config.embedding_size, activation=config.hidden_act)
        self.pooler = nn.Identity()


class SSLResNetModel(ResNetModel):
    config: SSLResNetConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedder = SSLResNetEmbeddings(config)
        self.post_init()  # draws the weights of the new parts; the others are marked as drawn


class SSLResNetForImageClassification(ResNetForImageClassification):
    config: SSLResNetConfig

    def __init__(self, config):
        super().__init__(config)
        self.resnet = SSLResNetModel(config)
        self.post_init()


class SSLResNetBackbone(ResNetBackbone):
    config: SSLResNetConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedder = SSLResNetEmbeddings(config)
        self.post_init()


_AUTO_MAP = {
    "AutoConfig": "SSLResNetConfig",
    "AutoModel": "SSLResNetModel",
    "AutoModelForImageClassification": "SSLResNetForImageClassification",
    "AutoBackbone": "SSLResNetBackbone",
}

__all__ = ["SSLResNetBackbone", "SSLResNetConfig", "SSLResNetForImageClassification", "SSLResNetModel"]
