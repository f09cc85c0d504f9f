"""Turn a published checkpoint of another repository into a release folder, which plain transformers loads.

    python scripts/convert_checkpoint.py mae mae_pretrain_vit_base.pth --output_dir mae-vit-base        # encoder alone
    python scripts/convert_checkpoint.py mae mae_pretrain_vit_base_full.pth --output_dir mae-base-full  # with decoder

A further kind of checkpoint is one function from the arguments to a Release, its flags, and one line in CONVERTERS.
"""

import argparse
import hashlib
import math
import os
import pickle
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.data import image_processor
from hf_ssl.errors import InputError, run_script


@dataclass
class Release:
    encoder: transformers.PreTrainedModel  # the root
    processor: object  # anything with save_pretrained: image processor, tokenizer
    pretraining: transformers.PreTrainedModel | None  # the whole model, where the file holds it
    card: ModelCard
    notes: tuple = ()  # lines for the user: what was not in the file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(CONVERTERS) + "}")
    for name, (convert, add_flags) in CONVERTERS.items():
        kind = kinds.add_parser(name, help=convert.__doc__.split("\n")[0], description=convert.__doc__)
        kind.add_argument("file", type=Path, help="the checkpoint: .pth or .safetensors")
        kind.add_argument("--output_dir", type=Path, required=True, help="a folder that is empty or does not exist")
        add_flags(kind)
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    folder = args.output_dir.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"output_dir '{args.output_dir}' is not an empty folder: expected a new one.")
    release = CONVERTERS[args.kind][0](args)
    write_release(release, folder)
    for note in release.notes:
        print(note)
    whole = " and the whole model in pretraining/" if release.pretraining else ""
    print(f"Wrote {args.output_dir}: {type(release.encoder).__name__}{whole}.")


def write_release(release, folder):
    """Write to the side and rename, so that the folder is whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        release.encoder.save_pretrained(partial)
        release.processor.save_pretrained(partial)
        if release.pretraining:
            release.pretraining.save_pretrained(partial / "pretraining")
        release.card.save(partial / "README.md")
        os.replace(partial, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"The release could not be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# -- reading -------------------------------------------------------------------------------------------------------


def read_weights(path):
    """The tensors of a file by name, from under its key `model` if it has one. Nothing but tensors is unpickled."""
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, on files that it then refuses
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"The checkpoint {path} could not be opened: {error.strerror or error}.") from error
    except Exception as error:  # for damaged files torch raises whatever its parser runs into, KeyError too
        if isinstance(error, pickle.UnpicklingError) and (refused := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise InputError(
                f"{path} holds more than tensors ({refused[1]}), as checkpoints of a training run do, and only tensors"
                " are unpickled: if you trust its origin, save its weights alone, torch.save({'model': "
                f"torch.load('{path}', weights_only=False)['model']}}, 'weights.pth'), and convert that file."
            ) from error
        raise InputError(f"{path} is damaged or no checkpoint: expected a whole .pth or .safetensors file.") from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path} holds no weights: expected tensors by name, or such a dictionary under 'model'.")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise InputError(f"{path} holds something else than weights under '{key}': expected only tensors by name.")
    return weights


def shape_of(weights, key, dimensions, path):
    if key not in weights:
        raise InputError(f"{path} lacks the key {key}.")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions:
        raise InputError(f"{path}: {key} has shape {shape}, expected {dimensions} dimensions.")
    return shape


@torch.no_grad()
def fill(parameters, weights, path):
    """Copy each tensor to its parameters: key -> those whose rows the tensor holds, one after the other."""
    missing, unexpected = parameters.keys() - weights.keys(), weights.keys() - parameters.keys()
    if missing or unexpected:
        lacks = f"lacks the keys {_listed(missing)}" if missing else ""
        has = f"has the unexpected keys {_listed(unexpected)}" if unexpected else ""
        raise InputError(
            f"{path} {' and '.join(filter(None, (lacks, has)))}: expected a checkpoint as it was published."
        )
    for key, parts in parameters.items():
        expected = (sum(len(part) for part in parts), *parts[0].shape[1:])
        if weights[key].shape != expected:
            raise InputError(f"{path}: {key} has shape {tuple(weights[key].shape)}, expected {expected}.")
        for part, value in zip(parts, weights[key].split([len(part) for part in parts]), strict=True):
            part.copy_(value)


def _listed(keys, most=6):
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


# -- MAE, https://github.com/facebookresearch/mae ------------------------------------------------------------------

MAE_HEADS = {768: 12, 1024: 16, 1280: 16}  # by width, models_mae.py: ViT-B, L and H
MAE_DECODER_HEADS = {512: 16}


def mae_flags(parser):
    for flag, known in (("--num_attention_heads", MAE_HEADS), ("--decoder_num_attention_heads", MAE_DECODER_HEADS)):
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
            f"{args.file} is a fine-tuned classifier (it has {_listed(tuned)}): expected a pretrained checkpoint, "
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
        num_hidden_layers=_depth(weights, "blocks"),
        num_attention_heads=_heads(width, MAE_HEADS, args.num_attention_heads, "--num_attention_heads", path),
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
            decoder_num_hidden_layers=_depth(weights, "decoder_blocks"),
            decoder_num_attention_heads=_heads(width, MAE_DECODER_HEADS, given, flag, path),
            decoder_intermediate_size=shape_of(weights, "decoder_blocks.0.mlp.fc1.weight", 2, path)[0],
        )
    # PRETRAIN.md and issue 8: the authors' models predict normalised pixels, except those made for pictures
    norm_pix_loss = "visualize" not in path.name if args.norm_pix_loss is None else args.norm_pix_loss
    try:
        return MAEConfig(backbone_config=backbone, norm_pix_loss=norm_pix_loss, **decoder)
    except StrictDataclassError as error:
        raise InputError(f"{path}: {str(error).strip().splitlines()[-1].strip()}") from error


def _depth(weights, stack):
    return len({key.split(".")[1] for key in weights if key.startswith(f"{stack}.")})


def _heads(width, known, given, flag, path):
    heads = known.get(width) if given is None else given
    if heads is None:
        raise InputError(f"The number of heads at width {width} is not in {path} nor among {known}: give {flag}.")
    if heads < 1 or width % heads:
        raise InputError(f"{flag} must divide the width {width}, found {heads}.")
    return heads


def mae_parameters(model, has_decoder):
    """The original's keys -> our parameters. A fused `qkv` holds the rows of query, key and value in this order."""
    vit, decoder = model.vit, model.decoder
    tokens = {"cls_token": vit.embeddings.cls_token, "pos_embed": vit.embeddings.position_embeddings}
    modules = {"patch_embed.proj": [vit.embeddings.patch_embeddings.projection], "norm": [vit.layernorm]}
    stacks = {"blocks": vit.layers}
    if has_decoder:
        tokens |= {"mask_token": decoder.mask_token, "decoder_pos_embed": decoder.decoder_pos_embed}
        modules |= {name: [getattr(decoder, name)] for name in ("decoder_embed", "decoder_norm", "decoder_pred")}
        stacks["decoder_blocks"] = decoder.decoder_layers
    for stack, layers in stacks.items():
        for i, layer in enumerate(layers):
            attention = layer.attention
            block = {
                "norm1": [layer.layernorm_before],
                "attn.qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
                "attn.proj": [attention.o_proj],
                "norm2": [layer.layernorm_after],
                "mlp.fc1": [layer.mlp.fc1],
                "mlp.fc2": [layer.mlp.fc2],
            }
            modules |= {f"{stack}.{i}.{name}": parts for name, parts in block.items()}
    parameters = {key: [token] for key, token in tokens.items()}
    for name, parts in modules.items():
        parameters |= {f"{name}.{kind}": [getattr(part, kind) for part in parts] for kind in ("weight", "bias")}
    return parameters


MAE_CARD = """\
---
{{ card_data }}
---

# {{ name }}

A ViT pretrained without labels as a masked autoencoder ([He et al. 2021](https://arxiv.org/abs/2111.06377)): the weights
of `{{ file }}`, converted value by value from the format of the official repository,
[facebookresearch/mae](https://github.com/facebookresearch/mae). The root is the encoder alone, a plain `ViTModel`
{%- if has_decoder %}; encoder and decoder stand in `pretraining/`
{%- else %}; the file holds no decoder, so there is no `pretraining/`
{%- endif %}.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{{ name }}")
model = AutoModel.from_pretrained("{{ name }}")
features = model(**processor(image, return_tensors="pt")).pooler_output  # the cls token, (1, {{ vit.hidden_size }})
```

To fine-tune: `AutoModelForImageClassification.from_pretrained("{{ name }}", num_labels=10)`.
{%- if has_decoder %} To pretrain further: `import hf_ssl`, then
`AutoModelForPreTraining.from_pretrained("{{ name }}", subfolder="pretraining")`.{% endif %}

## Licence

The licence of the weights follows the original: CC BY-NC 4.0, no commercial use, as
[facebookresearch/mae](https://github.com/facebookresearch/mae/blob/main/LICENSE) states. Please cite the paper's authors.

## Model

| | |
|---|---|
| patches | {{ vit.image_size }} px images of {{ vit.num_channels }} channels, {{ vit.patch_size }} px patches |
| encoder | width {{ vit.hidden_size }}, {{ vit.num_hidden_layers }} layers, {{ vit.num_attention_heads }} heads |
{%- if has_decoder %}
| decoder | width {{ config.decoder_hidden_size }}, {{ config.decoder_num_hidden_layers }} layers, {{ config.decoder_num_attention_heads }} heads |
| predicts | pixels{{ ", each patch normalised by its own mean and variance" if config.norm_pix_loss else " as they are" }} |
{%- endif %}
| source file | SHA-256 `{{ sha256 }}`, MD5 `{{ md5 }}` |

Sizes and weights are the file's. Not in the file, and taken from the official code or given at conversion: the number
of heads, the layer norm epsilon (1e-6)
{%- if has_decoder %}, the mask ratio ({{ config.mask_ratio }}), whether pixels are normalised{% endif %}. The pooler is
the identity, so that `pooler_output` is the cls token after the last layer norm.

Converted with hf_ssl.
"""  # noqa: E501


def mae_card(config, has_decoder, args):
    sha256, md5 = (
        hashlib.sha256(),
        hashlib.md5(usedforsecurity=False),
    )  # the official README lists the beginnings of MD5
    with open(args.file, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    name = args.output_dir.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license="cc-by-nc-4.0",
        tags=["self-supervised-learning", "hf_ssl", "mae"],
        model_name=name,
    )
    return ModelCard.from_template(
        data,
        template_str=MAE_CARD,
        name=name,
        file=args.file.name,
        has_decoder=has_decoder,
        config=config,
        vit=config.backbone_config,
        sha256=sha256.hexdigest(),
        md5=md5.hexdigest(),
    )


CONVERTERS = {"mae": (convert_mae, mae_flags)}  # kind of checkpoint -> (arguments -> Release, its own flags)


if __name__ == "__main__":
    run_script(main)
