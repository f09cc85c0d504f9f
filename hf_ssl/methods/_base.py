"""The only base classes: one config, one model, one output for every method.

Letters in shape comments, here and in every method:
N batch, V views, C H W channels height width, L tokens or time steps, D features, P projection, K classes or negatives.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class SSLConfig(PreTrainedConfig):
    """What a model *is*. How it is trained stands in `hf_ssl.training.TrainingArguments`.

    A method adds its own typed fields, and a `backbone_config` where the encoder is a native architecture.
    """


@dataclass
class SSLOutput(ModelOutput):
    """What every method's `forward` returns.

    loss: scalar, the mean over the batch. logits: the pretext task's prediction. features: (N, D), the representation
    of the batch as training sees it. features_2: (N, D), that of the second view where a method has one. mask: (N, L),
    1 where the input was hidden, for masked methods.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    features_2: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class SSLModel(PreTrainedModel):
    """A pretraining model. The loop calls `forward(**batch).loss`, then `after_step` once per optimizer step."""

    config: SSLConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def embed(self, pixel_values):
        """Features for evaluation, (N, D), deterministic: nothing is masked, dropped or updated."""
        raise NotImplementedError(f"{type(self).__name__} does not define embed()")

    def export_encoder(self) -> PreTrainedModel:
        """The representation as a native transformers model that plain `AutoModel` loads (contract C1)."""
        raise NotImplementedError(f"{type(self).__name__} does not define export_encoder()")

    def after_step(self, progress: float):
        """Called after each optimizer step with the finished fraction of the run: momentum encoders, schedules."""
