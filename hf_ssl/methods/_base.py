"""The only base classes: one config, one model, one output for every method.

Letters in shape comments, here and in every method:
N batch, V views, C H W channels height width, L tokens or time steps, D features, P projection, K classes or negatives.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ._backbone import native_copy, pooled

LOGGED_BY_THE_LOOP = (  # names that no metric of a method can have
    "loss", "learning_rate", "step", "epoch", "samples_per_second", "feature_std", "effective_rank", "projection_std",
    "alignment", "uniformity",
)  # fmt: skip


class SSLConfig(PreTrainedConfig):
    """What a model *is*. How it is trained stands in `hf_ssl.training.TrainingArguments`.

    A method adds its own typed fields, and a `backbone_config` where the encoder is a native architecture.
    """

    def check_least(self, **least):
        """Refuse fields that are smaller than the numbers given for them."""
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, found {getattr(self, name)}.")


@dataclass
class SSLOutput(ModelOutput):
    """What every method's `forward` returns.

    loss: scalar, the mean over the batch. logits: the pretext task's prediction. features: (N, D), the representation
    of the batch as training sees it. projections, projections_2: (N, P), what the loss compares of two views, for
    contrastive methods. mask: (N, L), 1 where the input was hidden, for masked methods. metrics: what else of the batch
    the loop logs, averaged: scalars, or vectors, whose elements are numbered from 1; by other names than the loop's own.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    projections: torch.Tensor | None = None
    projections_2: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    metrics: dict | None = None

    def __post_init__(self):
        super().__post_init__()
        taken = [name for name in LOGGED_BY_THE_LOOP if name in (self.metrics or ())]
        if taken:
            raise ValueError(
                f"metrics must not be called {', '.join(LOGGED_BY_THE_LOOP)}, which the loop logs itself; "
                f"found {', '.join(taken)}."
            )


class SSLModel(PreTrainedModel):
    """A pretraining model. The loop calls `forward(**batch).loss`, then `after_step` once per optimizer step.

    A method that remembers something of each sample sets `uses_sample_indices`. Its config then has a field
    `num_samples: int`, the rows of the data, which the command line fills in before the model is built; its buffers are
    as long, and its forward takes `sample_indices`, (N,) int64, the rows' numbers in the data.

    A method that looks at all the data once an epoch defines `before_epoch(self, epoch, features)`, which the loop calls
    where there is one, at the start of each epoch, counted from 0. `features()` gives (num_rows, D) of all rows, in their
    order, on every process. What it finds is kept in buffers, so that a run that is taken up again has it too.
    """

    config: SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ()  # what a method reads, which decides how its runs are evaluated: ("image",), ("image", "text") ...
    supports_gradient_checkpointing = True
    encoder_class = AutoModel  # what reads the checkpoint that training begins from, for `load_encoder`
    uses_sample_indices = False
    learning_rate_factors: dict[str, float] = {}  # by prefix of a module's name: {"discriminator": 0.1}

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

    def load_encoder(self, encoder: PreTrainedModel):
        """Start from the weights of a native encoder, such as `export_encoder` gives or the Hub has."""
        weights = encoder.state_dict()
        self.base_model.load_state_dict({name: weights[name] for name in self.base_model.state_dict()})

    def check_batch(self, size: int, processes: int):
        """Raise ValueError, in one sentence, if the method cannot train on batches of `size` on each process."""

    def after_step(self, progress: float):
        """Called after each optimizer step with the finished fraction of the run: momentum encoders, schedules."""
