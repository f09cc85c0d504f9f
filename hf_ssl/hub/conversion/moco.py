"""MoCo v1 and v2: the files of https://github.com/facebookresearch/moco."""

from transformers import ResNetModel

from ...data import image_processor
from ...errors import InputError
from ...methods import MoCoConfig, MoCoForPreTraining
from .release import Release, image_card
from .torchvision_resnet import resnet_config, resnet_name, resnet_parameters, resnet_table
from .weights import build_config, fill, read_weights, shape_of

REPOSITORY = "https://github.com/facebookresearch/moco"
STATED = f"{REPOSITORY}/blob/132aea9da9bb995a411c915c0420be3db62052f3"  # the last state of it that has files
QUERY, KEY, QUEUE = "encoder_q.", "encoder_k.", "queue"
HEADS = {1: {"fc": 0}, 2: {"fc.0": 0, "fc.2": 2}}  # number of layers -> the original's names -> places in our head
TEMPERATURES = {1: 0.07, 2: 0.2}  # v1 and v2, by the official README


def moco_flags(parser):
    default = f"default: {TEMPERATURES[1]} for v1, {TEMPERATURES[2]} for v2"
    parser.add_argument("--temperature", type=float, help=f"of the loss, which is not in the file; {default}")


def convert_moco(args):
    """Momentum contrast of facebookresearch/moco: moco_v*_pretrain.pth.tar, or its query encoder alone."""
    path = args.file
    weights = read_weights(path)
    encoder = {key.removeprefix(QUERY): value for key, value in weights.items() if key.startswith(QUERY)} or weights
    if encoder is weights and "fc.weight" in weights:
        raise InputError(
            f"{path} is a classifier (its fc.weight has shape {tuple(weights['fc.weight'].shape)}): expected a "
            "pretrained checkpoint, such as moco_v2_200ep_pretrain.pth.tar."
        )
    backbone = resnet_config(encoder, path)
    if all(any(key.startswith(part) for key in weights) for part in (QUERY, KEY, QUEUE)):
        model = MoCoForPreTraining(moco_config(backbone, weights, args)).eval()
        fill(moco_parameters(model), weights, path)
        exported, taken = model.export_encoder(), f"taken as {model.config.temperature}; else give --temperature"
        notes = (f"temperature is not in {path.name}: {taken}.",) if args.temperature is None else ()
    else:
        model, exported = None, ResNetModel(backbone).eval()
        fill(resnet_parameters(exported), {k: v for k, v in encoder.items() if not k.startswith("fc.")}, path)
        notes = (f"{path.name} holds no key encoder with its queue: no pretraining/ is written.",)
    return Release(
        encoder=exported,
        processor=image_processor(224, backbone.num_channels),
        pretraining=model,
        card=moco_card(backbone, model.config if model else None, args),
        notes=notes,
    )


def moco_config(backbone, weights, args) -> MoCoConfig:
    """Sizes from the tensors' shapes; the momentum and the size of a batch norm's group stay the official ones."""
    layers = 2 if f"{QUERY}fc.0.weight" in weights else 1
    widths = [shape_of(weights, f"{QUERY}{name}.weight", 2, args.file)[0] for name in HEADS[layers]]
    return build_config(
        MoCoConfig,
        args.file,
        backbone_config=backbone,
        projector_layers=layers,
        projector_hidden_size=widths[0] if layers == 2 else 0,
        projection_size=widths[-1],
        queue_size=shape_of(weights, QUEUE, 2, args.file)[1],
        temperature=TEMPERATURES[layers] if args.temperature is None else args.temperature,
    )


def moco_parameters(model):
    """The original's keys -> our parameters and buffers. Its queue has a column for each key, ours a row."""
    parameters = {"queue": [model.queue.T], "queue_ptr": [model.queue_position.view(1)]}
    for prefix, backbone, head in (
        (QUERY, model.backbone, model.projector),
        (KEY, model.key_backbone, model.key_projector),
    ):
        parameters |= resnet_parameters(backbone, prefix)
        for name, place in HEADS[model.config.projector_layers].items():
            parameters |= {f"{prefix}{name}.{kind}": [getattr(head[place], kind)] for kind in ("weight", "bias")}
    return parameters


def moco_card(backbone, config, args):
    """config: of the whole model, or None."""
    table = resnet_table(backbone)
    if config:
        hidden = f"{config.projector_hidden_size} and " if config.projector_layers == 2 else ""
        table["head"] = f"{config.projector_layers} linear, {hidden}{config.projection_size} units"
        table["queue"] = f"{config.queue_size} keys"
        rest = "both encoders, their heads and the queue stand in"
        taken = f"""\
the temperature ({config.temperature}),
the momentum of the key encoder ({config.momentum}), the samples that share batch statistics \
({config.batch_norm_group_size}), the strides"""
    else:
        rest = "the file holds no key encoder with its queue, so there is no"
        taken = "the strides"
    return image_card(
        args,
        license={
            "license": "other",
            "license_name": "facebookresearch-moco",
            "license_link": f"{STATED}/README.md#license",
        },
        about=f"""\
A {resnet_name(backbone)} pretrained without labels by momentum contrast, MoCo ([He et al.
2019](https://arxiv.org/abs/1911.05722); v2: [Chen et al. 2020](https://arxiv.org/abs/2003.04297)): the weights of
`{args.file.name}`, converted value by value from the format of the official repository,
[facebookresearch/moco]({REPOSITORY}). The root is the query encoder alone, a plain
`ResNetModel`; {rest} `pretraining/`.""",
        features=f"pooler_output.flatten(1)  # (1, {backbone.hidden_sizes[-1]})",
        pretraining=config is not None,
        licence=f"""\
The official repository says two things. Its [README]({STATED}/README.md#license):
"This project is under the CC-BY-NC 4.0 license", which excludes commercial use. Its
[LICENSE]({STATED}/LICENSE), since January 2023:
MIT. Neither speaks of the weights apart from the code.""",
        table=table,
        remarks=f"""\
Sizes and weights are the file's. Not in the file, and taken from the official code or given at conversion: {taken}.
Images are normalised by ImageNet's mean and standard deviation, as the official code does.""",
    )
