"""SimCLR: PyTorch conversions of the TensorFlow checkpoints of https://github.com/google-research/simclr."""

from transformers import ResNetModel

from ...data import image_processor
from ...errors import InputError
from .release import Release, image_card
from .torchvision_resnet import resnet_config, resnet_name, resnet_parameters, resnet_table
from .weights import fill, read_weights


def convert_simclr(args):
    """SimCLR's encoder in PyTorch, under torchvision's names: resnet50-1x.pth, -2x, -4x of tonylins/simclr-converter."""
    path = args.file
    weights = read_weights(path)
    if any(key.startswith("encoder_q.") for key in weights):
        raise InputError(f"{path} is a checkpoint of MoCo: convert it as `moco`.")
    encoder = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    config = resnet_config(encoder, path)
    model = ResNetModel(config).eval()
    fill(resnet_parameters(model), encoder, path)
    processor = image_processor(224, config.num_channels, normalize=False)
    left_out = " and the layer fc, a classifier, is left out" if len(encoder) < len(weights) else ""
    return Release(
        encoder=model,
        processor=processor,
        pretraining=None,
        card=simclr_card(config, args),
        notes=(f"{path.name} holds the encoder alone: no pretraining/ is written{left_out}.",),
    )


def simclr_card(config, args):
    return image_card(
        args,
        license={"license": "apache-2.0"},
        about=f"""\
A {resnet_name(config)} pretrained without labels by SimCLR ([Chen et al. 2020](https://arxiv.org/abs/2002.05709)): the
weights of `{args.file.name}`, a PyTorch conversion, copied value by value; the official checkpoints, of
[google-research/simclr](https://github.com/google-research/simclr), are for TensorFlow. The root is the encoder alone, a
plain `ResNetModel`; the file holds no projection head, so there is no `pretraining/`.""",
        features=f"pooler_output.flatten(1)  # (1, {config.hidden_sizes[-1]})",
        pretraining=False,
        licence="""\
Apache-2.0, as [google-research/simclr](https://github.com/google-research/simclr/blob/master/LICENSE) states.""",
        table=resnet_table(config),
        remarks="""\
Sizes and weights are the file's; the strides, which are not in it, are torchvision's.

- The model reads pixels in [0, 1], without normalisation by a mean and a standard deviation, as it was trained.
- Where the weights were trained in TensorFlow, its max-pool padded by (0, 1), PyTorch's pads by (1, 1): the windows lie
  one pixel further up and left here, so features differ slightly from the original's.""",
    )
