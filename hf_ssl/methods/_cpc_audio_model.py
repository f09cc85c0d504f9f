"""The speech encoder of contrastive predictive coding: strided convolutions, then a recurrent network over their frames.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1; the channel norm is that of
https://github.com/facebookresearch/CPC_audio. transformers has no such architecture. This file imports nothing of hf_ssl
and is saved beside the weights, so that where hf_ssl is not installed, `AutoModel.from_pretrained(folder,
trust_remote_code=True)` loads both.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

RECURRENT = {"gru": nn.GRU, "lstm": nn.LSTM}
_AUTO_MAP = {"AutoConfig": "CPCAudioModelConfig", "AutoModel": "CPCAudioModel"}


@strict
class CPCAudioModelConfig(PreTrainedConfig):
    """Defaults: the paper's sizes, with padding and norm of CPC_audio, for 16 kHz; a frame every 160 samples, 10 ms.

    conv_size: channels of each convolution. kernel_sizes, strides, paddings: of the convolutions. hidden_size: of the
    context. recurrent: gru or lstm, of `num_layers`. channel_norm: of each frame over its channels, which leaks nothing over
    time or batch. norm_eps: added to the variance.
    """

    model_type = "ssl_cpc_audio_model"
    _auto_class = "AutoConfig"  # this file is saved beside the config

    conv_size: int = 512
    kernel_sizes: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    strides: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    paddings: list[int] | tuple[int, ...] = (3, 2, 1, 1, 1)
    hidden_size: int = 256
    recurrent: str = "gru"
    num_layers: int = 1
    channel_norm: bool = True
    norm_eps: float = 1e-5
    sampling_rate: int = 16_000

    @property
    def inputs_to_logits_ratio(self):
        """Samples a frame, by the name that wav2vec 2.0 has for it."""
        return math.prod(self.strides)

    def validate_sizes(self):
        for name in ("conv_size", "hidden_size", "num_layers", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if not len(self.kernel_sizes) == len(self.strides) == len(self.paddings) > 0:
            raise ValueError(
                "kernel_sizes, strides and paddings need a value for each convolution, "
                f"found {len(self.kernel_sizes)}, {len(self.strides)} and {len(self.paddings)}."
            )
        if self.recurrent not in RECURRENT:
            raise ValueError(f"recurrent must be one of {', '.join(RECURRENT)}, found '{self.recurrent}'.")

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


@dataclass
class CPCAudioModelOutput(ModelOutput):
    """last_hidden_state: (N, L, hidden_size), the context after each frame. pooler_output: (N, hidden_size), its mean over
    time. extract_features: (N, L, conv_size), the frames by themselves. state: of the recurrent network after the last.
    hidden_states: what each convolution gives, and the context, if asked for."""

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    extract_features: torch.Tensor | None = None
    state: torch.Tensor | tuple | None = None
    hidden_states: tuple | None = None


class CPCAudioModel(PreTrainedModel):
    """input_values: (N, samples), scaled to mean 0 and variance 1 as its feature extractor does: at natural amplitude the
    first layer's norm would amplify what its bias leaves of the signal, and nothing is learnt.

    attention_mask: (N, samples), 0 behind the end of shorter waveforms, whose frames are then as if they were alone.
    state: of an earlier call, to go on from where it ended.
    """

    config: CPCAudioModelConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)

    def __init__(self, config):
        super().__init__(config)
        sizes = [1] + [config.conv_size] * (len(config.strides) - 1)
        shapes = zip(sizes, config.kernel_sizes, config.strides, config.paddings, strict=True)
        self.convolutions = nn.ModuleList(FrameConv1d(size, config.conv_size, *shape) for size, *shape in shapes)
        norm = nn.LayerNorm if config.channel_norm else lambda *_: nn.Identity()
        self.norms = nn.ModuleList(norm(config.conv_size, config.norm_eps) for _ in config.strides)
        recurrent = RECURRENT[config.recurrent]
        self.recurrent = recurrent(config.conv_size, config.hidden_size, config.num_layers, batch_first=True)
        self.post_init()

    @can_return_tuple
    def forward(self, input_values, attention_mask=None, state=None, output_hidden_states=None, **kwargs):
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = ()
        frames = input_values[..., None].to(self.dtype)  # (N, samples, 1)
        lengths = None if attention_mask is None else attention_mask.sum(1)  # (N,)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if lengths is not None:
                frames = frames * _before_end(frames, lengths)
                lengths = convolution.output_lengths(lengths)
            frames = F.relu(norm(convolution(frames)), inplace=True)  # (N, L, conv_size)
            hidden_states += (frames,) if output_hidden_states else ()
        contexts, state = self.recurrent(frames, state)
        if lengths is None:
            pooled = contexts.mean(1)
        else:
            present = _before_end(contexts, lengths)
            pooled = (contexts * present).sum(1) / present.sum(1).clamp(min=1)
        hidden_states += (contexts,) if output_hidden_states else ()
        return CPCAudioModelOutput(contexts, pooled, frames, state, hidden_states or None)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)


class FrameConv1d(nn.Conv1d):
    """A convolution over (N, L, C), channels last. On CPUs in bfloat16 it is one matrix product, where the kernel is two
    strides wide, as all of the paper's are: 1.6 times as fast, forward and backward."""

    def forward(self, frames):
        (kernel,), (stride,), (padding,) = self.kernel_size, self.stride, self.padding
        device = frames.device.type
        brief = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        if not (device == "cpu" and brief and kernel == 2 * stride and padding < stride):
            return super().forward(frames.transpose(1, 2)).transpose(1, 2)
        outputs = int(self.output_lengths(frames.shape[1]))
        end = (outputs + 1) * stride - padding - frames.shape[1]  # what the last window lacks, or what none reaches
        blocks = F.pad(frames, (0, 0, padding, end)).reshape(len(frames), outputs + 1, -1)  # (N, L + 1, stride C)
        windows = torch.cat([blocks[:, :-1], blocks[:, 1:]], 2)  # (N, L, kernel C)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)

    def output_lengths(self, lengths):
        """How many frames come out of so many."""
        return (lengths + 2 * self.padding[0] - self.kernel_size[0]) // self.stride[0] + 1


def _before_end(frames, lengths):
    """(N, L, 1): 1 for the frames within each length, 0 for those behind it."""
    return (torch.arange(frames.shape[1], device=frames.device) < lengths[:, None])[..., None].to(frames.dtype)


__all__ = ["CPCAudioModel", "CPCAudioModelConfig", "CPCAudioModelOutput"]
