"""Image encoders of transformers as the backbone of a method: ResNet, ViT, ConvNeXt, Swin, DINOv2 ..."""

import copy
from functools import cache

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer, ResNetEmbeddings

# blocks that transformers does not checkpoint
MORE_BLOCKS = (ResNetEmbeddings, ResNetBasicLayer, ResNetBottleNeckLayer, ConvNextLayer)


def check_backbone(config):
    """Raise ValueError, in one sentence, if a network of this config cannot be a backbone: D, the width of `pooled`."""
    found = f"backbone_config of model_type '{config.model_type}'"
    if not hasattr(config, "num_channels"):
        raise ValueError(f"{found} has no num_channels: expected an image encoder.")
    size = getattr(config, "image_size", None) or 224
    size = size if isinstance(size, list | tuple) else (size, size)
    with torch.device("meta"):  # shapes only
        network = AutoModel.from_config(copy.deepcopy(config)).eval()
        try:
            return pooled(network, torch.zeros(1, config.num_channels, *size)).shape[1]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{found} gives no pooler_output for images alone: choose another image encoder."
            ) from error


def build_backbone(config, auto_class=AutoModel):
    """A new network of this config, its weights drawn as transformers draws them: in float32, whatever its config says, or in
    the type that `from_pretrained` is building in."""
    backbone = auto_class.from_config(config, dtype=torch.get_default_dtype())
    for module in backbone.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # an activation less in memory; transformers adds residuals before it
    freeze_mask_tokens(backbone)
    return backbone


def checkpoint_activations(model):
    """Keep only what goes into each block of the network, and compute the rest a second time in the backward pass.

    transformers' own, for ResNet and ConvNeXt too, which it leaves out. Raises ValueError if there are no blocks.
    """
    if not model.supports_gradient_checkpointing:
        backbone = getattr(model.config, "backbone_config", None)
        of = f" with a backbone of model_type '{backbone.model_type}'" if backbone else ""
        raise ValueError(f"activation_checkpointing: {type(model).__name__}{of} has no blocks to compute twice.")
    has_new_name = hasattr(model, "activation_checkpointing_enable")  # not yet in transformers 5.20
    enable = model.activation_checkpointing_enable if has_new_name else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def has_blocks(model):
    """Whether `checkpoint_activations` finds any in a network."""
    return any(isinstance(m, MORE_BLOCKS) or hasattr(m, "gradient_checkpointing") for m in model.modules())


def prepare_blocks(model):
    """Let transformers' switch for checkpointing find the blocks that it leaves out."""
    for module in model.modules():
        if isinstance(module, MORE_BLOCKS) and not isinstance(module, GradientCheckpointingLayer):
            module.__class__ = _checkpointed(type(module))


def leave_out_stems(model):
    """Of what is checkpointed: torch's older way, with use_reentrant, gives no gradient to what sees the pixels themselves."""
    for module in model.modules():
        if isinstance(module, ResNetEmbeddings) and isinstance(module, GradientCheckpointingLayer):
            module.__class__ = type(module).__bases__[0]


@cache
def _checkpointed(block):
    """The class `block`, its instances now of the kind that transformers' switch for checkpointing looks for."""
    return type(block.__name__, (block, GradientCheckpointingLayer), {})


def freeze_mask_tokens(model):
    """Those of DINOv2 and its kin, which nothing here hides from: they would wait for a gradient in vain."""
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)


def pooled(backbone, pixel_values, **arguments):
    """(N, C, H, W) to (N, D): what the released encoder will give as `pooler_output`; of a classifier what its head reads."""
    if is_classifier(backbone):
        return classify(backbone, pixel_values)[1]
    features = getattr(backbone(pixel_values.to(backbone.dtype), **arguments), "pooler_output", None)
    if features is None:
        raise ValueError(f"{type(backbone).__name__} gives no pooler_output.")
    return features.flatten(1)


def is_classifier(network):
    """Whether it is one of transformers' image classifiers, an encoder with its head."""
    return isinstance(getattr(network, "classifier", None), nn.Module) and network.base_model is not network


def classify(classifier, pixel_values):
    """(N, C, H, W) to (logits (N, K) in float32, or wider, features (N, D), what the head reads), of one of transformers' image
    classifiers."""
    read = []
    hook = classifier.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        logits = classifier(pixel_values.to(classifier.dtype)).logits
    finally:
        hook.remove()
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), read[0].flatten(1)


def native_copy(backbone):
    """The network as plain transformers builds it, in float32 and eval mode, to be released."""
    auto_class = AutoModelForImageClassification if is_classifier(backbone) else AutoModel
    native = auto_class.from_config(copy.deepcopy(backbone.config), dtype=torch.float32)
    native.load_state_dict(backbone.state_dict())
    return native.eval()


def load_parts(network, other, missing=()):
    """Copy the weights of another network of the same kind, but for those `missing`, by name, in its file. Of a classifier
    only the encoder is copied if `other` has no head."""
    if is_classifier(network) and not is_classifier(other):
        network = network.base_model
    weights = other.state_dict()
    own = network.state_dict()
    network.load_state_dict({name: own[name] if name in missing else weights[name] for name in own})
