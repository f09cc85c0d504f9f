"""ResNets under torchvision's names, as most PyTorch repositories publish them, become transformers' ResNetModel."""

from transformers import ResNetConfig

from ...errors import InputError
from .weights import build_config, depth, listed, shape_of

STAGES = (1, 2, 3, 4)


def resnet_config(weights, path) -> ResNetConfig:
    """Depths, kind of layer and widths from the tensors' shapes. Strides, which no shape tells, are torchvision's."""
    if "conv1.weight" not in weights:
        raise InputError(f"{path} holds no ResNet under torchvision's names, but {listed(weights, most=3)}.")
    width, channels, *kernel = shape_of(weights, "conv1.weight", 4, path)
    if kernel != [7, 7]:
        raise InputError(f"{path}: conv1 is {kernel[0]} x {kernel[1]}, expected 7 x 7, the stem of ResNetModel.")
    bottleneck = "layer1.0.conv3.weight" in weights
    last = "conv3" if bottleneck else "conv2"
    sizes = [shape_of(weights, f"layer{stage}.0.{last}.weight", 4, path)[0] for stage in STAGES]
    inner = shape_of(weights, "layer1.0.conv1.weight", 4, path)[0]
    if bottleneck and sizes[0] != 4 * inner:
        raise InputError(
            f"{path}: bottlenecks of {inner} channels in blocks of {sizes[0]}, expected a quarter, as ResNetModel has."
        )
    return build_config(
        ResNetConfig,
        path,
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=sizes,
        depths=[depth(weights, f"layer{stage}") for stage in STAGES],
        layer_type="bottleneck" if bottleneck else "basic",
    )


def resnet_parameters(backbone, prefix=""):
    """torchvision's keys, each after `prefix` -> the parameters and buffers of a ResNetModel."""
    return {prefix + torchvision_name(name): [tensor] for name, tensor in backbone.state_dict().items()}


def torchvision_name(name):
    match name.replace("convolution", "conv").replace("normalization", "bn").split("."):
        case ["embedder", "embedder", part, kind]:
            return f"{part}1.{kind}"
        case ["encoder", "stages", stage, "layers", layer, "layer", number, part, kind]:
            return f"layer{int(stage) + 1}.{layer}.{part}{int(number) + 1}.{kind}"
        case ["encoder", "stages", stage, "layers", layer, "shortcut", part, kind]:
            return f"layer{int(stage) + 1}.{layer}.downsample.{('conv', 'bn').index(part)}.{kind}"
    raise ValueError(f"{name} is not of a ResNetModel")


def resnet_name(config):
    return f"ResNet-{(3 if config.layer_type == 'bottleneck' else 2) * sum(config.depths) + 2}"


def resnet_table(config):
    """Rows for the card."""
    depths, sizes = (", ".join(map(str, numbers)) for numbers in (config.depths, config.hidden_sizes))
    return {
        "images": f"{config.num_channels} channels, 224 px",
        "encoder": f"stem of {config.embedding_size} channels, {depths} {config.layer_type} layers of {sizes} channels",
    }
