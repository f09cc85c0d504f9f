"""The only base classes: one config, one model, one output for every method.

Letters in shape comments, here and in every method:
N batch, V views, C H W channels height width, L tokens or time steps, D features, P projection, K classes or negatives.
"""

import math
from dataclasses import dataclass
from functools import wraps
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ._backbone import has_blocks, leave_out_stems, load_parts, native_copy, pooled, prepare_blocks

LOGGED_BY_THE_LOOP = (  # names that no metric of a method can have
    "loss", "learning_rate", "step", "epoch", "samples_per_second", "feature_std", "effective_rank", "projection_std",
    "alignment", "uniformity",
)  # fmt: skip


class SSLConfig(PreTrainedConfig):
    """What a model *is*. How it is trained stands in `hf_ssl.training.TrainingArguments`.

    A method adds its own typed fields, and a `backbone_config` where the encoder is a native architecture.
    """

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        """As transformers'; of a network without a method, such as a release has at its root, it is the backbone of a config
        with the method's defaults."""
        found, kwargs = super().get_config_dict(*args, **kwargs)
        if found.get("model_type", cls.model_type) != cls.model_type and "backbone_config" in cls.sub_configs_defaults:
            found = {"model_type": cls.model_type, "backbone_config": found.get("backbone_config", found)}
        return found, kwargs

    def get_text_config(self, *args, **kwargs):
        """Where transformers finds, and changes, the size of the vocabulary: the backbone's."""
        backbone = getattr(self, "backbone_config", None)
        return (super() if backbone is None else backbone).get_text_config(*args, **kwargs)

    @property
    def vocab_size(self):
        """The backbone's, where it reads tokens."""
        return self.backbone_config.get_text_config().vocab_size

    @vocab_size.setter
    def vocab_size(self, value):
        self.backbone_config.get_text_config().vocab_size = value

    def check_least(self, **least):
        """Refuse fields that are smaller than the numbers given for them."""
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, found {getattr(self, name)}.")

    def check_positive(self, *names, most=math.inf):
        """Refuse fields that are not above 0, or that are above `most`."""
        for name in names:
            value = getattr(self, name)
            if not 0 < value <= most:
                expected = "positive" if most == math.inf else f"above 0 and at most {most}"
                raise ValueError(f"{name} must be {expected}, found {value}.")

    def check_below_one(self, *names):
        """Refuse fields that are not at least 0 and below 1."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}.")


@dataclass
class SSLOutput(ModelOutput):
    """What every method's `forward` returns.

    loss: scalar, the mean over the batch. logits: the pretext task's prediction. features: (N, D), the representation
    of the batch as training sees it. projections, projections_2: (N, P), what the loss compares of two views, for
    contrastive methods. mask: (N, L), 1 where the input was hidden, for masked methods. metrics: what else of the batch
    the loop logs, averaged: scalars, or vectors, whose elements are numbered from 1; by other names than the loop's own.
    hidden_states, attentions: of the encoder, a tensor a layer, if asked for; of views that it reads one after the other,
    those of the first above those of the second, but for views of another size than the first.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    projections: torch.Tensor | None = None
    projections_2: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    metrics: dict | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None

    def __post_init__(self):
        super().__post_init__()
        taken = [name for name in LOGGED_BY_THE_LOOP if name in (self.metrics or ())]
        if taken:
            raise ValueError(
                f"metrics must not be called {', '.join(LOGGED_BY_THE_LOOP)}, which the loop logs itself; "
                f"found {', '.join(taken)}."
            )


class PretextLine(NamedTuple):
    """A line of pictures that show a method's task.

    images: (N, C, h, w), normalised as pixel_values are. right: (N,) bool, what the model got right. captions: N texts.
    """

    name: str
    images: torch.Tensor
    right: torch.Tensor | None = None
    captions: list[str] | None = None


def _with_arguments_of_transformers(forward):
    """`forward`, which may be given return_dict, output_hidden_states and output_attentions too, or have them of the config."""

    @wraps(forward)
    def wrapped(self, *args, return_dict=None, output_hidden_states=None, output_attentions=None, **kwargs):
        given = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in given.items()}
        wanted = {name: value for name, value in wanted.items() if value is not None and value is not False}
        if wanted:
            output = _record(self.observed_module, wanted, lambda: forward(self, *args, **kwargs))
        else:
            output = forward(self, *args, **kwargs)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    return wrapped


def _record(encoder, wanted, forward):
    """The output of `forward`, with what it asked the encoder for on the way."""
    calls = []
    hooks = (
        encoder.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | wanted), with_kwargs=True),
        encoder.register_forward_hook(lambda _, args, output: calls.append(output)),
    )
    try:
        output = forward()
    finally:
        for hook in hooks:
            hook.remove()
    for name in (name.removeprefix("output_") for name in wanted):
        if calls and all(call.get(name) is not None for call in calls):
            shapes = [[layer.shape[1:] for layer in call[name]] for call in calls]
            layers = zip(
                *(call[name] for call, own in zip(calls, shapes, strict=True) if own == shapes[0]), strict=True
            )
            output[name] = tuple(torch.cat(layer) if len(layer) > 1 else layer[0] for layer in layers)
    return output


class SSLModel(PreTrainedModel):
    """A pretraining model. The loop calls `forward(**batch).loss`, then `after_step` once per optimizer step.

    A method that remembers something of each sample sets `uses_sample_indices`. Its config then has a field
    `num_samples: int`, the rows of the data, which the command line fills in before the model is built; its buffers are
    as long, and its forward takes `sample_indices`, (N,) int64, the rows' numbers in the data.

    A method whose task can be seen defines `pretext_lines(self, pixel_values, sample_indices, sample_seeds)`, a list of
    `PretextLine`: what it makes of N images, and how it solves that, in eval mode. Its card has the picture.

    A method that looks at all the data once an epoch defines `before_epoch(self, epoch, features)`, which the loop calls
    where there is one, at the start of each epoch, counted from 0. `features()` gives (num_rows, D) of all rows, in their
    order, on every process. What it finds is kept in buffers, so that a run that is taken up again has it too. It may
    return parameters that it has drawn anew, such as a new head's: the optimizer then forgets their momentum.
    """

    config: SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ()  # what a method reads, which decides how its runs are evaluated: ("image",), ("image", "text") ...
    supports_gradient_checkpointing = True  # of an instance: whether its network has blocks for it
    # each network refuses what it does not support
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    encoder_class = AutoModel  # what reads the checkpoint that training begins from, for `load_encoder`
    uses_sample_indices = False
    learns_from_labels = (
        False  # which come with `labelled_pixel_values` beside each batch; then the release is a classifier
    )
    needs_colours = False  # of images: without them there is no task
    compares_samples = False  # with each other, in the loss: then accumulated passes are not one large batch
    learning_rate_factors: dict[str, float] = {}  # by prefix of a module's name: {"discriminator": 0.1}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = _with_arguments_of_transformers(cls.forward)

    def post_init(self):
        super().post_init()
        self.supports_gradient_checkpointing = has_blocks(self)

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs):
        prepare_blocks(self)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant", True):
            leave_out_stems(self)

    @classmethod
    def is_custom_code(cls):
        """Of others' code transformers draws no module anew that has no weights of its own, although its `_init_weights` may
        draw those of its parts, as with an attention."""
        return False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers', which makes every loaded weight a trained one; here what is not trained stays so."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        with torch.device("meta"):
            new = cls(model.config)
        for parameter, fresh in zip(model.parameters(), new.parameters(), strict=True):
            parameter.requires_grad_(fresh.requires_grad)
        return loaded

    def embed(self, pixel_values):
        """Features for evaluation, (N, D), deterministic: nothing is masked, dropped or updated. Of a method with one
        `backbone`, its pooled features; others define their own."""
        return pooled(self._own_backbone("embed"), pixel_values)

    def export_encoder(self) -> PreTrainedModel:
        """The representation as a native transformers model that plain `AutoModel` loads (contract C1). Of a method with
        one `backbone`, a copy of it; others define their own."""
        return native_copy(self._own_backbone("export_encoder"))

    def _own_backbone(self, method):
        if not hasattr(self, "backbone"):
            raise NotImplementedError(
                f"{type(self).__name__} has no module `backbone` and does not define {method}()."
            )
        return self.backbone

    @property
    def observed_module(self) -> PreTrainedModel:
        """Whose hidden states and attentions `forward` returns if asked to."""
        return self.base_model

    def load_encoder(self, encoder: PreTrainedModel, missing=()):
        """Start from the weights of a native encoder, such as `export_encoder` gives or the Hub has. missing: names of those
        that its file lacked; they stay as they were drawn here."""
        load_parts(self.base_model, encoder, missing)

    def check_batch(self, size: int, processes: int):
        """Raise ValueError, in one sentence, if the method cannot train on batches of `size` on each process."""

    def check_images(self, height: int, width: int):
        """Raise ValueError, in one sentence, if the method's task cannot be made of images of this size in pixels."""

    def check_labels(self, unlabelled_per_label: int):
        """Raise ValueError, in one sentence, if the method cannot train on so many unlabelled images for each labelled one."""

    def after_step(self, progress: float):
        """Called after each optimizer step with the finished fraction of the run: momentum encoders, schedules."""
