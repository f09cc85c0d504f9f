"""CPC for audio: the files of https://github.com/facebookresearch/CPC_audio."""

import re

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import Wav2Vec2FeatureExtractor

from ...errors import InputError
from ...methods import CPCAudioConfig, CPCAudioForPreTraining, CPCAudioModel, CPCAudioModelConfig
from .release import Release, digests
from .weights import build_config, fill, listed, read_content, read_weights, shape_of

REPOSITORY = "https://github.com/facebookresearch/CPC_audio"
GATES = {3: "gru", 4: "lstm"}  # rows of a recurrent matrix, in hidden sizes
HEAD = "wPrediction.predictors."

CARD = """\
---
{{ card_data }}
---

# {{ name }}

A speech encoder pretrained without labels by contrastive predictive coding ([van den Oord et al.
2018](https://arxiv.org/abs/1807.03748), [Riviere et al. 2020](https://arxiv.org/abs/2002.02848)): the weights of
`{{ file }}`, converted from the format of the official repository,
[facebookresearch/CPC_audio]({{ repository }}).{% if pretraining %} The whole model stands in `pretraining/`.{% endif %}

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

waveform = torch.randn(16_000).numpy()  # yours, mono at 16 kHz
extractor = AutoFeatureExtractor.from_pretrained("{{ name }}")
model = AutoModel.from_pretrained("{{ name }}", trust_remote_code=True)
output = model(**extractor(waveform, sampling_rate=16_000, return_tensors="pt"))
frames = output.last_hidden_state  # (1, 100, {{ config.hidden_size }}): one each 10 ms
```

With `import hf_ssl` nothing needs `trust_remote_code`: transformers has no such architecture, and the file beside the
weights brings it.

## Licence

MIT, as [the official repository]({{ repository }}/blob/main/LICENSE) states for its code. Please cite the papers' authors.

## Model

| | |
|---|---|
| encoder | 5 convolutions of {{ config.conv_size }} channels |
| context | {{ config.recurrent | upper }}, {{ config.num_layers }} of {{ config.hidden_size }} |
| source file | SHA-256 `{{ sha256 }}`, MD5 `{{ md5 }}` |

Sizes and weights are the file's; kernels' strides and paddings, which are not in it, are the official code's. Waveforms are
not scaled, as it was trained. The official norm divides by the unbiased variance over the channels, PyTorch's layer norm by the
biased one: scales and epsilon are converted so that both give the same. {% if pretraining %}The official score is the mean over
channels of prediction times encoding, here it is their sum: the predictors are divided by the number of channels.{% endif %}

Converted with hf_ssl.
"""


def convert_cpc_audio(args):
    """CPC of facebookresearch/CPC_audio: 60k_epoch4-d0f474de.pt of torch.hub, or a checkpoint_N.pt of its training."""
    path = args.file
    weights = read_weights(path, ("weights", "gEncoder"))
    encoder = {key: value for key, value in weights.items() if key.startswith(("gEncoder.", "gAR."))}
    config = encoder_config(encoder, path)
    predictors = read_predictors(path, config)
    pretraining = None
    if predictors:
        settings = dict(backbone_config=config, prediction_steps=len(predictors))
        pretraining = CPCAudioForPreTraining(build_config(CPCAudioConfig, path, **settings)).eval()
        with torch.no_grad():
            pretraining.predictor.linear.weight.copy_(torch.cat(predictors) / config.conv_size)
    model = pretraining.backbone if pretraining else CPCAudioModel(config).eval()
    fill(encoder_parameters(model), scaled(encoder, config.conv_size), path)
    name = args.output_dir.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",
        license="mit",
        tags=["self-supervised-learning", "hf_ssl", "cpc_audio"],
        model_name=name,
    )
    facts = dict(name=name, file=path.name, config=config, repository=REPOSITORY, pretraining=bool(predictors))
    without = f"{path.name} holds no linear predictors: no pretraining/ is written."
    return Release(
        encoder=pretraining.export_encoder() if pretraining else model,
        processor=Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
        pretraining=pretraining,
        card=ModelCard.from_template(data, template_str=CARD, **facts, **digests(path)),
        notes=() if pretraining else (without,),
    )


def encoder_config(weights, path) -> CPCAudioModelConfig:
    """Sizes and kind of the recurrent network from the tensors' shapes."""
    if "gEncoder.batchNorm0.running_mean" in weights or "gEncoder.batchNorm0.weight" not in weights:
        raise InputError(f"{path} was trained with another norm than over channels: expected normMode layerNorm.")
    channels, hidden = shape_of(weights, "gEncoder.conv0.weight", 3, path)[0], "gAR.baseNet.weight_hh_l0"
    rows, size = shape_of(weights, hidden, 2, path)
    if rows // size not in GATES:
        raise InputError(f"{path}: {hidden} has shape {(rows, size)}, neither a GRU's nor an LSTM's.")
    layers = sum(bool(re.fullmatch(r"gAR\.baseNet\.weight_hh_l\d+", key)) for key in weights)
    return build_config(
        CPCAudioModelConfig,
        path,
        conv_size=channels,
        kernel_sizes=[weights[f"gEncoder.conv{i}.weight"].shape[2] for i in range(5)],
        hidden_size=size,
        recurrent=GATES[rows // size],
        num_layers=layers,
        norm_eps=1e-5 * (channels - 1) / channels,
    )


def encoder_parameters(model):
    """The original's keys -> our parameters."""
    parameters = {f"gAR.baseNet.{name}": [value] for name, value in model.recurrent.named_parameters()}
    for i, (convolution, norm) in enumerate(zip(model.convolutions, model.norms, strict=True)):
        for kind in ("weight", "bias"):
            parameters[f"gEncoder.conv{i}.{kind}"] = [getattr(convolution, kind)]
            parameters[f"gEncoder.batchNorm{i}.{kind}"] = [getattr(norm, kind)]
    return parameters


def scaled(weights, channels):
    """With the norms' weights and biases as vectors, and their weights for the biased variance."""
    weights = dict(weights)
    for key in [key for key in weights if "batchNorm" in key]:
        weights[key] = weights[key].flatten() * ((channels - 1) / channels) ** (0.5 * key.endswith("weight"))
    return weights


def read_predictors(path, config):
    """W_1, W_2 ... of a training checkpoint; nothing if it has none, or others than matrices."""
    if "cpcCriterion" not in read_content(path):
        return []
    weights = read_weights(path, ("cpcCriterion",))
    heads = {key: value for key, value in weights.items() if key.startswith(HEAD)}
    names = [f"{HEAD}{k}.weight" for k in range(len(heads))]
    if set(names) != set(heads):
        return []
    if wrong := [key for key, w in heads.items() if tuple(w.shape) != (config.conv_size, config.hidden_size)]:
        expected = f"{config.conv_size} x {config.hidden_size}"
        raise InputError(
            f"{path}: {listed(wrong)} should be {expected} matrices, found {tuple(heads[wrong[0]].shape)}."
        )
    return [heads[name] for name in names]
