"""The sentence encoder of contrastive predictive coding: word vectors, one convolution, and its mean over the words.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.3. transformers has no such architecture. This file
imports nothing of hf_ssl and is saved beside the weights, so that where hf_ssl is not installed,
`AutoModel.from_pretrained(folder, trust_remote_code=True)` loads both.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

_AUTO_MAP = {"AutoConfig": "CPCTextModelConfig", "AutoModel": "CPCTextModel"}


@strict
class CPCTextModelConfig(PreTrainedConfig):
    """hidden_size: D, of a sentence's vector, the paper's. It does not tell the others: vocab_size, with row 0, which is for
    padding and unknown words, and embedding_size, of a word's vector, are those of skip-thought vectors (Kiros et al. 2015,
    https://arxiv.org/abs/1506.06726), which it compares itself with. kernel_size: words that the convolution sees at once, an
    odd number. initializer_range: standard deviation of the word vectors at the start."""

    model_type = "ssl_cpc_text_model"
    _auto_class = "AutoConfig"  # this file is saved beside the config

    vocab_size: int = 20_000
    embedding_size: int = 620
    hidden_size: int = 2400
    kernel_size: int = 3
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def validate_sizes(self):
        for name, least in (("vocab_size", 2), ("embedding_size", 1), ("hidden_size", 1), ("kernel_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, found {self.kernel_size}.")

    def save_pretrained(self, save_directory, **kwargs):
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.auto_map = {auto_class: f"{module}.{name}" for auto_class, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, **kwargs)


class CPCTextModel(PreTrainedModel):
    """input_ids (N, L) to last_hidden_state (N, L, D), a vector a word that has seen its neighbours, and pooler_output
    (N, D), their mean: the vector of the sentence, or of a text of several, which is read as one.

    Unknown words and padding, id 0, are 0 to their neighbours and do not count; nor does what attention_mask, (N, L), hides.
    """

    config: CPCTextModelConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _input_embed_layer = "embeddings"
    input_modalities = ("text",)

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        # of the words around each word, side by side: so nothing is computed for padding
        self.convolution = nn.Linear(config.kernel_size * config.embedding_size, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids, attention_mask=None, output_hidden_states=None, **kwargs):
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask == 0, 0)
        # padding is computed too, unlike in `convolve`: the shapes follow from the input's, as torch.export and ONNX want it
        known, kernel_size, length = input_ids.ne(0), self.config.kernel_size, input_ids.shape[1]
        vectors = F.pad(self.embeddings(input_ids.long()), (0, 0, kernel_size // 2, kernel_size // 2))
        around = torch.cat(
            [vectors[:, i : i + length] for i in range(kernel_size)], 2
        )  # (N, L, kernel_size embedding_size)
        hidden = self.convolution(around).relu() * known[..., None]
        mean = hidden.sum(1) / known.sum(1).clamp(min=1)[:, None]
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = (self.embeddings(input_ids), hidden) if output_hidden_states else None
        return BaseModelOutputWithPooling(hidden, mean, hidden_states)

    def convolve(self, input_ids):
        """(N, L) to the vectors of the known words of all texts, one after the other, (M, D), and which these are, (N, L)."""
        known, reach = input_ids.ne(0), self.config.kernel_size // 2
        # texts without words make a tensor without columns, or of floats: one column more, for unfold, and whole numbers
        around = F.pad(input_ids.long(), (reach, reach + 1)).unfold(1, self.config.kernel_size, 1)[:, :-1][known]
        return self.convolution(self.embeddings(around).flatten(1)).relu(), known  # around: (M, kernel_size)

    def mean(self, words, known):
        """What `convolve` gives to (N, D); a text without known words has the vector 0."""
        counts = known.sum(1)
        means = torch.segment_reduce(words.float(), "sum", lengths=counts) / counts.clamp(min=1)[:, None]
        return means.to(self.dtype)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if not getattr(module.weight, "_is_hf_initialized", False):  # a row by itself would not tell
                init.zeros_(module.weight[0])
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)


__all__ = ["CPCTextModel", "CPCTextModelConfig"]
