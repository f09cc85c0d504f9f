"""The only base classes: one config, one model, one output for every method.

Letters in shape comments, here and in every method:
N batch, V views, C H W channels height width, L tokens or time steps, D features, P projection, K classes or negatives.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


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
    the loop logs, averaged: scalars, or vectors, whose elements are numbered from 1.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    projections: torch.Tensor | None = None
    projections_2: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    metrics: dict | None = None


class SSLModel(PreTrainedModel):
    """A pretraining model. The loop calls `forward(**batch).loss`, then `after_step` once per optimizer step."""

    config: SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    encoder_class = AutoModel  # what reads the checkpoint that training begins from, for `load_encoder`

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

    def embed(self, *inputs):
        """Features for evaluation, (N, D), deterministic: nothing is masked, dropped or updated."""
        raise NotImplementedError(f"{type(self).__name__} does not define embed()")

    def export_encoder(self) -> PreTrainedModel:
        """The representation as a native transformers model that plain `AutoModel` loads (contract C1)."""
        raise NotImplementedError(f"{type(self).__name__} does not define export_encoder()")

    def load_encoder(self, encoder: PreTrainedModel):
        """Start from the weights of a native encoder, such as `export_encoder` gives or the Hub has."""
        weights = encoder.state_dict()
        self.base_model.load_state_dict({name: weights[name] for name in self.base_model.state_dict()})

    def check_batch(self, size: int, processes: int):
        """Raise ValueError, in one sentence, if the method cannot train on batches of `size` on each process."""

    def after_step(self, progress: float):
        """Called after each optimizer step with the finished fraction of the run: momentum encoders, schedules."""
