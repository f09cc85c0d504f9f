"""MAE: the files of https://github.com/facebookresearch/mae."""

import argparse
import math

from ...data import image_processor
from ...errors import InputError
from ...methods import MAEConfig, MAEForPreTraining
from .release import Release, image_card
from .timm_vit import vit_blocks, vit_parameters, weights_and_biases
from .weights import build_config, depth, fill, listed, read_weights, shape_of

HEADS = {768: 12, 1024: 16, 1280: 16}  # by width, models_mae.py: ViT-B, L and H
DECODER_HEADS = {512: 16}


def mae_flags(parser):
    for flag, known in (("--num_attention_heads", HEADS), ("--decoder_num_attention_heads", DECODER_HEADS)):
        parser.add_argument(flag, type=int, help=f"needed for widths other than the authors' {list(known)}")
    parser.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        help="the decoder predicts pixels normalised patch by patch; default: yes, but no for mae_visualize_* files",
    )


def convert_mae(args):
    """Masked autoencoder of facebookresearch/mae: mae_pretrain_vit_*.pth, *_full.pth or mae_visualize_vit_*.pth."""
    weights = read_weights(args.file)
    if tuned := [key for key in weights if key.startswith(("head.", "fc_norm."))]:
        raise InputError(
            f"{args.file} is a fine-tuned classifier (it has {listed(tuned)}): expected a pretrained checkpoint, "
            "such as mae_pretrain_vit_base.pth."
        )
    has_decoder = any(key.startswith(("decoder_", "mask_token")) for key in weights)
    config = mae_config(weights, has_decoder, args)
    model = MAEForPreTraining(config).eval()
    fill(mae_parameters(model, has_decoder), weights, args.file)

    if not has_decoder:
        notes = (f"{args.file.name} holds the encoder alone: no pretraining/ is written.",)
    elif args.norm_pix_loss is None:
        flag = "--no-norm_pix_loss" if config.norm_pix_loss else "--norm_pix_loss"
        notes = (f"norm_pix_loss is not in {args.file.name}: taken as {config.norm_pix_loss}; else give {flag}.",)
    else:
        notes = ()
    vit = config.backbone_config
    return Release(
        encoder=model.export_encoder(),
        processor=image_processor(vit.image_size, vit.num_channels),
        pretraining=model if has_decoder else None,
        card=mae_card(config, has_decoder, args),
        notes=notes,
    )


def mae_config(weights, has_decoder, args) -> MAEConfig:
    """All sizes from the tensors' shapes; the numbers of heads, which no shape tells, from the table or the flags."""
    path = args.file
    width, channels, patch_size, patch_width = shape_of(weights, "patch_embed.proj.weight", 4, path)
    patches = shape_of(weights, "pos_embed", 3, path)[1] - 1
    side = math.isqrt(max(patches, 0))
    if side < 1 or side**2 != patches or patch_size != patch_width:
        raise InputError(f"{path} is for {patches} patches of {patch_size} x {patch_width}: expected squares.")
    backbone = dict(
        model_type="vit",
        hidden_size=width,
        num_hidden_layers=depth(weights, "blocks"),
        num_attention_heads=_heads(width, HEADS, args.num_attention_heads, "--num_attention_heads", path),
        intermediate_size=shape_of(weights, "blocks.0.mlp.fc1.weight", 2, path)[0],
        image_size=side * patch_size,
        patch_size=patch_size,
        num_channels=channels,
        layer_norm_eps=1e-6,
    )
    decoder = {}
    if has_decoder:
        width = shape_of(weights, "decoder_embed.weight", 2, path)[0]
        given, flag = args.decoder_num_attention_heads, "--decoder_num_attention_heads"
        decoder = dict(
            decoder_hidden_size=width,
            decoder_num_hidden_layers=depth(weights, "decoder_blocks"),
            decoder_num_attention_heads=_heads(width, DECODER_HEADS, given, flag, path),
            decoder_intermediate_size=shape_of(weights, "decoder_blocks.0.mlp.fc1.weight", 2, path)[0],
        )
    # PRETRAIN.md and issue 8: the authors' models predict normalised pixels, except those made for pictures
    norm_pix_loss = "visualize" not in path.name if args.norm_pix_loss is None else args.norm_pix_loss
    return build_config(MAEConfig, path, backbone_config=backbone, norm_pix_loss=norm_pix_loss, **decoder)


def _heads(width, known, given, flag, path):
    heads = known.get(width) if given is None else given
    if heads is None:
        raise InputError(f"The number of heads at width {width} is not in {path} nor among {known}: give {flag}.")
    if heads < 1 or width % heads:
        raise InputError(f"{flag} must divide the width {width}, found {heads}.")
    return heads


def mae_parameters(model, has_decoder):
    """The original's keys -> our parameters: timm's names, and alike ones in the decoder."""
    parameters, decoder = vit_parameters(model.vit), model.decoder
    if has_decoder:
        modules = {name: [getattr(decoder, name)] for name in ("decoder_embed", "decoder_norm", "decoder_pred")}
        parameters |= weights_and_biases(modules | vit_blocks("decoder_blocks", decoder.decoder_layers))
        parameters |= {"mask_token": [decoder.mask_token], "decoder_pos_embed": [decoder.decoder_pos_embed]}
    return parameters


def mae_card(config, has_decoder, args):
    vit = config.backbone_config
    decoder = "encoder and decoder stand in" if has_decoder else "the file holds no decoder, so there is no"
    table = {
        "patches": f"{vit.image_size} px images of {vit.num_channels} channels, {vit.patch_size} px patches",
        "encoder": f"width {vit.hidden_size}, {vit.num_hidden_layers} layers, {vit.num_attention_heads} heads",
    }
    if has_decoder:
        table["decoder"] = (
            f"width {config.decoder_hidden_size}, {config.decoder_num_hidden_layers} layers, "
            f"{config.decoder_num_attention_heads} heads"
        )
        normalised = ", each patch normalised by its own mean and variance" if config.norm_pix_loss else " as they are"
        table["predicts"] = f"pixels{normalised}"
    of_decoder = f", the mask ratio ({config.mask_ratio}), whether pixels are normalised" if has_decoder else ""
    return image_card(
        args,
        license={"license": "cc-by-nc-4.0"},
        about=f"""\
A ViT pretrained without labels as a masked autoencoder ([He et al. 2021](https://arxiv.org/abs/2111.06377)): the weights
of `{args.file.name}`, converted value by value from the format of the official repository,
[facebookresearch/mae](https://github.com/facebookresearch/mae). The root is the encoder alone, a plain `ViTModel`;
{decoder} `pretraining/`.""",
        features=f"pooler_output  # the cls token, (1, {vit.hidden_size})",
        pretraining=has_decoder,
        licence="""\
The licence of the weights follows the original: CC BY-NC 4.0, no commercial use, as
[facebookresearch/mae](https://github.com/facebookresearch/mae/blob/main/LICENSE) states.""",
        table=table,
        remarks=f"""\
Sizes and weights are the file's. Not in the file, and taken from the official code or given at conversion: the number
of heads, the layer norm epsilon (1e-6){of_decoder}. The pooler is
the identity, so that `pooler_output` is the cls token after the last layer norm.""",
    )
