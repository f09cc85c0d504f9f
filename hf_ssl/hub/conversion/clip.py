"""CLIP: the files of https://github.com/openai/CLIP and https://github.com/mlfoundations/open_clip with ViT towers."""

import gzip
import math

from huggingface_hub import ModelCard, ModelCardData
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ...errors import InputError
from ...methods import CLIPForPreTraining, SSLCLIPConfig
from .release import Release, digests
from .torchscript import is_torchscript
from .weights import build_config, fill, listed, read_weights, shape_of

HEADS = {
    1280: 16,
    1408: 16,
    1664: 16,
}  # of image towers by width: open_clip's ViT-H, g, bigG; of all others width / 64
ACTIVATIONS = ("quick_gelu", "gelu")
OPENAI = {"input_resolution", "context_length", "vocab_size"}  # integers that only OpenAI's files hold
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def clip_flags(parser):
    activation = (
        "of the towers; default: quick_gelu for OpenAI's archives and files named so, else gelu, as open_clip's"
    )
    parser.add_argument("--activation", choices=ACTIVATIONS, help=activation)
    parser.add_argument("--tokenizer_name", help="folder or Hub id of CLIP's tokenizer, which the file does not hold")
    parser.add_argument("--vocabulary", help=f"or a file {VOCABULARY}, which openai/CLIP and open_clip bring")
    for tower in ("vision", "text"):
        parser.add_argument(f"--{tower}_num_attention_heads", type=int, help="if it is not as the authors have it")


def convert_clip(args):
    """CLIP of openai/CLIP (ViT-B-32.pt, also as the TorchScript archive) or open_clip (.bin, .pt, .safetensors), with ViTs."""
    path = args.file
    weights = read_weights(path)
    ours = OPENAI & weights.keys()
    weights = {key: value for key, value in weights.items() if key not in OPENAI}
    if "text.token_embedding.weight" in weights:  # open_clip's with a text tower of its own class
        weights = {key.removeprefix("text."): value for key, value in weights.items()}
    if "visual.conv1.weight" not in weights or "visual.attnpool.positional_embedding" in weights:
        raise InputError(
            f"{path} holds no ViT of CLIP, but {listed(weights, 3)}: expected visual.conv1 and a transformer."
        )
    config = clip_config(weights, _activation(args, bool(ours) or is_torchscript(path)), args)
    model = CLIPModel(config).eval()
    parameters = clip_parameters(model)
    for key in ("text_projection", "visual.proj"):  # the originals multiply from the right
        if key in weights:
            weights[key] = weights[key].T
    fill(parameters, weights, path)

    image_size = config.vision_config.image_size
    images = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    tokenizer, notes = _tokenizer(config.text_config, args), []
    if args.activation is None:
        other = next(name for name in ACTIVATIONS if name != config.text_config.hidden_act)
        notes.append(
            f"The activation is not in {path.name}: taken as {config.text_config.hidden_act}; else give --activation {other}."
        )
    if tokenizer is None:
        notes.append(
            f"The tokenizer is not in {path.name}, so the release has none: give --tokenizer_name, or a file {VOCABULARY} by "
            "--vocabulary."
        )
    return Release(
        encoder=model,
        processor=CLIPProcessor(images, tokenizer) if tokenizer else images,
        pretraining=_pretraining(model),
        card=clip_card(config, tokenizer is not None, args),
        notes=tuple(notes),
    )


def _pretraining(model):
    whole = CLIPForPreTraining(SSLCLIPConfig(backbone_config=model.config.to_dict())).eval()
    whole.clip.load_state_dict(model.state_dict())
    return whole


def _activation(args, is_openai):
    name = args.file.name.lower()
    quick = is_openai or "openai" in name or "quickgelu" in name  # open_clip's names of files say it
    return args.activation or ACTIVATIONS[0 if quick else 1]


def clip_config(weights, activation, args) -> CLIPConfig:
    """All sizes from the tensors' shapes; the numbers of heads, which no shape tells, by the authors' rules or the flags."""
    path = args.file
    width, channels, patch_size, patch_width = shape_of(weights, "visual.conv1.weight", 4, path)
    positions, _ = shape_of(weights, "visual.positional_embedding", 2, path)
    side = math.isqrt(max(positions - 1, 0))
    if side < 1 or side**2 != positions - 1 or patch_size != patch_width:
        raise InputError(f"{path} is for {positions - 1} patches of {patch_size} x {patch_width}: expected squares.")
    context_length, text_width = shape_of(weights, "positional_embedding", 2, path)
    vocab_size, _ = shape_of(weights, "token_embedding.weight", 2, path)
    _, projection = shape_of(weights, "text_projection", 2, path)
    end = vocab_size - 1  # the original takes the feature at the largest number of a text, which is its end
    both = {"hidden_act": activation, "projection_dim": projection}
    text = dict(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=shape_of(weights, "transformer.resblocks.0.mlp.c_fc.weight", 2, path)[0],
        num_hidden_layers=_depth(weights, "transformer"),
        num_attention_heads=_heads(text_width, {}, "text", args),
        max_position_embeddings=context_length,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    vision = dict(
        hidden_size=width,
        intermediate_size=shape_of(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2, path)[0],
        num_hidden_layers=_depth(weights, "visual.transformer"),
        num_attention_heads=_heads(width, HEADS, "vision", args),
        num_channels=channels,
        image_size=side * patch_size,
        patch_size=patch_size,
    )
    return build_config(
        CLIPConfig, path, projection_dim=projection, text_config=text | both, vision_config=vision | both
    )


def _depth(weights, stack):
    start = f"{stack}.resblocks."
    return len({key.removeprefix(start).split(".")[0] for key in weights if key.startswith(start)})


def _heads(width, known, tower, args):
    flag = f"{tower}_num_attention_heads"
    heads = getattr(args, flag)
    if heads is None:
        heads = known.get(width, width // 64)
    if heads < 1 or width % heads:
        raise InputError(f"The heads of {args.file} must divide the {tower} tower's width {width}: give --{flag}.")
    return heads


def clip_parameters(model):
    """The original's keys -> our parameters. A fused `in_proj` holds the rows of query, key and value in this order."""
    vision, text = model.vision_model, model.text_model
    parameters = {
        "logit_scale": [model.logit_scale],
        "text_projection": [model.text_projection.weight],
        "visual.proj": [model.visual_projection.weight],
        "token_embedding.weight": [text.embeddings.token_embedding.weight],
        "positional_embedding": [text.embeddings.position_embedding.weight],
        "visual.class_embedding": [vision.embeddings.class_embedding],
        "visual.positional_embedding": [vision.embeddings.position_embedding.weight],
        "visual.conv1.weight": [vision.embeddings.patch_embedding.weight],
    }
    modules = {
        "ln_final": text.final_layer_norm,
        "visual.ln_pre": vision.pre_layrnorm,
        "visual.ln_post": vision.post_layernorm,
    }
    for stack, tower in (("transformer", text), ("visual.transformer", vision)):
        for i, layer in enumerate(tower.encoder.layers):
            block, attention = f"{stack}.resblocks.{i}", layer.self_attn
            modules |= {
                f"{block}.ln_1": layer.layer_norm1,
                f"{block}.attn.out_proj": attention.out_proj,
                f"{block}.ln_2": layer.layer_norm2,
                f"{block}.mlp.c_fc": layer.mlp.fc1,
                f"{block}.mlp.c_proj": layer.mlp.fc2,
            }
            fused = (attention.q_proj, attention.k_proj, attention.v_proj)
            for kind in ("weight", "bias"):
                parameters[f"{block}.attn.in_proj_{kind}"] = [getattr(part, kind) for part in fused]
    for name, module in modules.items():
        parameters |= {f"{name}.{kind}": [getattr(module, kind)] for kind in ("weight", "bias")}
    return parameters


def _tokenizer(config, args):
    """The tokenizer that a flag names, None without; with as many entries as the model."""
    if args.tokenizer_name:
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"tokenizer_name '{args.tokenizer_name}' is not a folder or Hub id of a tokenizer."
            ) from error
    elif args.vocabulary:
        tokenizer = read_vocabulary(args.vocabulary, config.vocab_size, config.max_position_embeddings)
    else:
        return None
    if len(tokenizer) != config.vocab_size or tokenizer.eos_token_id != config.eos_token_id:
        found = f"{len(tokenizer)} entries, of which {tokenizer.eos_token_id} ends a text"
        expected = f"{config.vocab_size}, of which the last does"
        raise InputError(f"tokenizer_name '{args.tokenizer_name}' has {found}: expected {expected}.")
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


def read_vocabulary(path, vocab_size=49408, max_length=77):
    """The tokenizer of a file of merges, one pair a line after the first, by size: the bytes, the bytes that end a word, a
    piece for each of as many merges as there is room for, and the two special tokens."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1:]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"vocabulary '{path}' could not be read: expected {VOCABULARY}.") from error
    letters = sorted(ByteLevel.alphabet(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    pieces = letters + [letter + "</w>" for letter in letters]
    merges = [tuple(line.split()) for line in lines[: vocab_size - len(pieces) - len(SPECIAL)]]
    if len(merges) + len(pieces) + len(SPECIAL) != vocab_size or any(len(merge) != 2 for merge in merges):
        raise InputError(f"vocabulary '{path}' does not give {vocab_size} entries: expected {VOCABULARY}.")
    pieces += ["".join(merge) for merge in merges] + SPECIAL
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=max_length
    )


CARD = """\
---
{{ card_data }}
---

# {{ name }}

An image encoder and a text encoder trained on pairs by [CLIP](https://arxiv.org/abs/2103.00020): the weights of `{{ file }}`,
converted value by value from the format of [openai/CLIP](https://github.com/openai/CLIP) and
[open_clip](https://github.com/mlfoundations/open_clip) to a plain `CLIPModel`.

```python
from PIL import Image, ImageOps
from transformers import {{ "pipeline" if tokenizer else "AutoImageProcessor, AutoModel" }}

image = Image.new("RGB", (300, 200))  # yours: ImageOps.exif_transpose(Image.open("photo.jpg"))
{%- if tokenizer %}
classify = pipeline("zero-shot-image-classification", model="{{ name }}")
classify(image, candidate_labels=["a cat", "a dog"], hypothesis_template="a photo of {}.")
{%- else %}
processor = AutoImageProcessor.from_pretrained("{{ name }}")
features = AutoModel.from_pretrained("{{ name }}").get_image_features(**processor(image, return_tensors="pt")).pooler_output
{%- endif %}
```
{% if not tokenizer %}
The tokenizer, which is not in the file, was not given at conversion.
{% endif %}
## Licence

The code of both is MIT; open_clip's weights have the licence that their own card states. OpenAI's model card asks for study
before any deployment.

## Model

| | |
|---|---|
| images | {{ vision.image_size }} px, patches of {{ vision.patch_size }} px |
| image tower | width {{ vision.hidden_size }}, {{ vision.num_hidden_layers }} layers, {{ vision.num_attention_heads }} heads |
| text tower | width {{ text.hidden_size }}, {{ text.num_hidden_layers }} layers, {{ text.num_attention_heads }} heads |
| texts | {{ text.max_position_embeddings }} tokens of {{ text.vocab_size }} |
| activation | {{ text.hidden_act }} |
| source file | SHA-256 `{{ sha256 }}` |

Sizes and weights are the file's. Not in the file, and taken from the authors' code or given at conversion: the numbers of heads,
the activation, the layer norm epsilon (1e-5), and OpenAI's image transform (bicubic resize, centre crop, mean and deviation).

Converted with hf_ssl.
"""


def clip_card(config, tokenizer, args):
    name = args.output_dir.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["self-supervised-learning", "hf_ssl", "clip"],
        model_name=name,
    )
    sizes = {
        "vision": config.vision_config,
        "text": config.text_config,
        "tokenizer": tokenizer,
        "file": args.file.name,
    }
    return ModelCard.from_template(data, template_str=CARD, name=name, sha256=digests(args.file)["sha256"], **sizes)


__all__ = ["clip_config", "clip_flags", "clip_parameters", "convert_clip", "read_vocabulary"]
