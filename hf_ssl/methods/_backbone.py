"""Any image encoder of transformers as the backbone of a method: ResNet, ViT, ConvNeXt, Swin ..."""

from torch import nn
from transformers import AutoModel


def build_backbone(config):
    """A new network of this config, its weights drawn as transformers draws them."""
    backbone = AutoModel.from_config(config)
    if backbone.main_input_name != "pixel_values":
        raise ValueError(f"backbone_config of model_type '{config.model_type}' is not an image encoder.")
    for module in backbone.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # an activation less in memory; transformers adds residuals before it
    return backbone


def feature_size(config):
    """D, the width of `pooled`."""
    sizes = getattr(config, "hidden_sizes", None) or [config.hidden_size]
    return sizes[-1]


def pooled(backbone, pixel_values):
    """(N, C, H, W) to (N, D): what the released encoder will give as `pooler_output`."""
    return backbone(pixel_values).pooler_output.flatten(1)


def native_copy(backbone):
    """The network as plain transformers builds it, in float32 and eval mode, to be released."""
    native = AutoModel.from_config(backbone.config)
    native.load_state_dict(backbone.state_dict())
    return native.float().eval()
