"""ResNets and ViTs under the names of timm and torchvision, as safetensors that their own networks load strictly."""

import re
from importlib.util import find_spec

import PIL.Image
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTModel

from ...errors import InputError
from ...evaluation.encoders.images import load_encoder, processor_view
from ..conversion.timm_vit import vit_parameters
from ..conversion.torchvision_resnet import resnet_parameters
from ..conversion.weights import collect
from .graph import TOLERANCE, Inputs

RESNETS = {  # kind of layer and depths -> name, of both libraries
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
TORCHVISION_VIT = {  # timm's name, as a pattern -> torchvision's
    r"^cls_token": "class_token",
    r"^pos_embed": "encoder.pos_embedding",
    r"^patch_embed\.proj": "conv_proj",
    r"^norm\.": "encoder.ln.",
    r"^blocks\.(\d+)\.norm([12])": r"encoder.layers.encoder_layer_\1.ln_\2",
    r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
    r"^blocks\.(\d+)\.attn\.proj": r"encoder.layers.encoder_layer_\1.self_attention.out_proj",
    r"^blocks\.(\d+)\.mlp\.fc1": r"encoder.layers.encoder_layer_\1.mlp.0",
    r"^blocks\.(\d+)\.mlp\.fc2": r"encoder.layers.encoder_layer_\1.mlp.3",
}


def export_timm(name, model, missing, folder):
    """model.safetensors and timm's config.json, which names the network and holds the normalisation."""
    if find_spec("timm") is None:
        raise InputError('format timm needs the package timm: pip install "hf_ssl[export]".')
    import timm

    weights, config = _weights(name, model, "timm"), model.config
    if isinstance(model, ViTModel):
        architecture = "vit_base_patch16_224"
        settings = {
            "img_size": config.image_size, "patch_size": config.patch_size, "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size, "qkv_bias": config.qkv_bias,
        }  # fmt: skip
    else:
        architecture, settings = _resnet_name(name, config, "timm"), {}
    settings |= {"in_chans": config.num_channels, "num_classes": 0}
    network = timm.create_model(architecture, **settings)
    _load(name, "timm", network, weights)
    timm.models.save_for_hf(
        network,
        folder,
        model_args=settings,
        model_config={"pretrained_cfg": {"tag": None, "license": None}},  # else those of weights of timm's
        data_config=_data_config(name, config),
        safe_serialization=True,
    )
    _check(name, "timm", model, network)
    return """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
features = model.eval()(images)  # (N, C, H, W) to (N, D)
settings = timm.data.resolve_model_data_config(model)  # size and normalisation"""


def export_torchvision(name, model, missing, folder):
    """model.safetensors."""
    weights, config = _weights(name, model, "torchvision"), model.config
    if isinstance(model, ViTModel):
        sizes = {
            "image_size": config.image_size, "patch_size": config.patch_size, "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads, "hidden_dim": config.hidden_size, "mlp_dim": config.intermediate_size,
        }  # fmt: skip
        network = torchvision.models.VisionTransformer(**sizes)
        network.heads = nn.Identity()
        build, head = f"VisionTransformer({', '.join(f'{k}={v}' for k, v in sizes.items())})", "heads"
        for pattern, theirs in TORCHVISION_VIT.items():
            weights = {re.sub(pattern, theirs, key): weight for key, weight in weights.items()}
    else:
        architecture = _resnet_name(name, config, "torchvision")
        network = getattr(torchvision.models, architecture)()
        network.fc = nn.Identity()
        build, head = f"{architecture}()", "fc"
    _load(name, "torchvision", network, weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    network.load_state_dict(load_file(folder / "model.safetensors"))
    _check(name, "torchvision", model, network)
    return f"""\
import PIL.Image
import torch
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{build}
model.{head} = torch.nn.Identity()
model.load_state_dict(load_file("FOLDER/model.safetensors"))
features = model.eval()(images)  # (N, D) of (N, C, H, W); preprocessor_config.json has size and normalisation"""


def _data_config(name, config):
    """What the image processor does, in timm's words."""
    encoder = load_encoder(name)
    view, processor = processor_view(encoder.processor, encoder.channels), encoder.processor
    before = processor.size.shortest_edge or processor.size.height or view["size"]  # the crop
    return {
        "input_size": (config.num_channels, view["size"], view["size"]),
        "mean": view["mean"],
        "std": view["std"],
        "crop_pct": view["size"] / before,
        "interpolation": PIL.Image.Resampling(processor.resample).name.lower(),
    }


def _weights(name, model, library):
    """{timm's key: tensor}; a ResNet's are torchvision's too. Raises InputError for any other network."""
    kind = model.config.model_type
    if kind == "ssl_resnet":
        raise InputError(
            f"'{name}' is a ResNet for small images, with a 3x3 stem of stride 1 and without the first pooling, which no ResNet "
            f"of {library} has: train with --backbone resnet18 or resnet50, or choose --format onnx."
        )
    if kind not in ("resnet", "vit"):
        raise InputError(
            f"'{name}' is of model_type '{kind}': expected resnet or vit for --format {library}; --format onnx takes it."
        )
    parameters = vit_parameters(model) if kind == "vit" else resnet_parameters(model)
    return {key: weight.clone().contiguous() for key, weight in collect(parameters).items()}


def _resnet_name(name, config, library):
    known = RESNETS.get((config.layer_type, tuple(config.depths)))
    width = 4 if config.layer_type == "bottleneck" else 1
    expected = [64 * width * 2**stage for stage in range(4)]
    if known is None or list(config.hidden_sizes) != expected or config.embedding_size != 64:
        raise InputError(
            f"'{name}' is a ResNet of {list(config.depths)} {config.layer_type} layers of {list(config.hidden_sizes)} channels "
            f"after {config.embedding_size}, which {library} does not have: expected one of {', '.join(RESNETS.values())}."
        )
    return known


def _load(name, library, network, weights):
    """Strictly. Raises InputError if a key or shape differs."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"'{name}' does not fit the network of {library}: {str(error).splitlines()[1].strip()}"
        ) from error


@torch.no_grad()
def _check(name, library, model, network):
    """Raise InputError if the features differ, on two batches of other sizes."""
    network.eval()
    inputs = Inputs(name, model)
    for rows in (1, 3):
        images = inputs.draw(rows, 0)["pixel_values"]
        output = model(images)
        expected = output.last_hidden_state[:, 0] if isinstance(model, ViTModel) else output.pooler_output.flatten(1)
        difference = (network(images) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise InputError(
                f"'{name}' fits the network of {library}, but gives other features there: they differ by {difference:.2g}, "
                f"expected at most {TOLERANCE:g}."
            )


__all__ = ["RESNETS", "export_timm", "export_torchvision"]
