"""Word vectors as a model: a table, looked up, and its mean over a text.

transformers has no such architecture. This file imports nothing of hf_ssl and is saved beside the weights, so that where
hf_ssl is not installed, `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads both.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

_AUTO_MAP = {"AutoConfig": "WordVectorsConfig", "AutoModel": "Word2VecModel"}


@strict
class WordVectorsConfig(PreTrainedConfig):
    """vocab_size: V, with row 0, which is for padding and unknown words. hidden_size: D."""

    model_type = "ssl_word_vectors"
    _auto_class = "AutoConfig"  # this file is saved beside the config

    vocab_size: int = 2
    hidden_size: int = 100
    pad_token_id: int | None = 0

    def validate_sizes(self):
        for name, least in (("vocab_size", 2), ("hidden_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}.")

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class Word2VecModel(PreTrainedModel):
    """input_ids (N, L) to last_hidden_state (N, L, D), a vector a word, and pooler_output (N, D), their mean.

    Unknown words and padding, id 0, have the vector 0 and do not count; nor does what attention_mask, (N, L), hides.
    """

    config: WordVectorsConfig
    base_model_prefix = "words"
    main_input_name = "input_ids"
    _input_embed_layer = "embeddings"
    input_modalities = ("text",)

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids, attention_mask=None, output_hidden_states=None, **kwargs):
        vectors = self.embeddings(input_ids)  # (N, L, D)
        known = input_ids != 0
        if attention_mask is not None:
            known = known & (attention_mask != 0)
        known = known[..., None].to(vectors.dtype)  # (N, L, 1)
        mean = (vectors * known).sum(1) / known.sum(1).clamp(min=1)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = (vectors,) if output_hidden_states else None
        return BaseModelOutputWithPooling(last_hidden_state=vectors, pooler_output=mean, hidden_states=hidden_states)

    @torch.no_grad()
    def _init_weights(self, module):
        """word2vec.c: uniform in (-0.5 / D, 0.5 / D)."""
        if isinstance(module, nn.Embedding):
            bound = 0.5 / self.config.hidden_size
            init.uniform_(module.weight, -bound, bound)
            if not getattr(module.weight, "_is_hf_initialized", False):  # a row by itself would not tell
                init.zeros_(module.weight[0])


__all__ = ["Word2VecModel", "WordVectorsConfig"]
