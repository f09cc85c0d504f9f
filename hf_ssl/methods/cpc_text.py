"""CPC for text: from the sentences so far, tell the next ones from others.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.3. The authors published no code. A sentence is
encoded by a convolution over its words and their mean, the document so far by a GRU over its sentences; for each of the next K
sentences a linear map of that context is compared with the encoded sentence, by InfoNCE.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._base import SSLConfig, SSLModel, SSLOutput
from ._cpc_text_model import CPCTextModel, SentenceEncoderConfig
from ._distributed import gather, gather_with_gradient, rank, world_size


@strict
class CPCTextConfig(SSLConfig):
    """Defaults: the paper's.

    backbone_config: of the sentence encoder, which is released. context_size: C, of the GRU. steps: K, how many sentences
    ahead are predicted.
    """

    model_type = "ssl_cpc_text"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_sentence_encoder")}

    backbone_config: dict | PreTrainedConfig | None = None
    context_size: int = 2400
    steps: int = 3

    def validate_sizes(self):
        if not isinstance(self.backbone_config, SentenceEncoderConfig):
            found = self.backbone_config.model_type
            raise ValueError(f"backbone_config must be of model_type 'ssl_sentence_encoder', found '{found}'.")
        for name in ("context_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")


class CPCTextForPreTraining(SSLModel):
    config: CPCTextConfig
    base_model_prefix = "sentence_encoder"
    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: CPCTextConfig):
        super().__init__(config)
        width = config.backbone_config.hidden_size
        self.sentence_encoder = CPCTextModel(config.backbone_config)
        self.context = nn.GRU(width, config.context_size, batch_first=True)
        self.predictor = nn.Linear(config.context_size, config.steps * width, bias=False)  # W_1 to W_K
        self.post_init()

    def forward(self, input_ids, **kwargs):
        """input_ids: (N, S, L), of S sentences of a document each, all 0 where it has fewer: these come last, predict nothing
        and are nobody's candidates.

        A prediction's candidates are the sentences of all documents of all processes, its own document's too.
        """
        sentences, contexts = self.encode(input_ids)  # (N, S, D), (N, S, C)
        losses, logits, candidates = self.predict(sentences, contexts, input_ids.ne(0).any(-1))
        metrics = {f"bound_{k}": candidates.log() - loss.detach() for k, loss in enumerate(losses, start=1)}
        return SSLOutput(loss=losses.mean(), logits=logits, features=sentences[:, 0].detach())

    def encode(self, input_ids):
        """Sentences (N, S, L) to their vectors (N, S, D), and the contexts of them and those before (N, S, C)."""
        sentences = self.embed(input_ids.flatten(0, 1)).unflatten(0, input_ids.shape[:2])
        return sentences, self.context(sentences)[0]

    def predict(self, sentences, contexts, present):
        """(K,) losses."""
        (rows, length, width), steps = sentences.shape, self.config.steps
        ahead = torch.arange(1, steps + 1, device=sentences.device)
        # all pairs of a sentence t and a step k that end inside of the window
        t, k = ((torch.arange(length, device=sentences.device)[:, None] + ahead) < length).nonzero(as_tuple=True)
        with torch.autocast(sentences.device.type, enabled=False):
            predictions = self.predictor(contexts).view(rows, length, steps, width)[:, t, k]  # (N, P, D)
            candidates = gather_with_gradient(sentences.flatten(0, 1))  # (W N S, D)
            exist = gather(present.flatten())
            logits = predictions @ candidates.T  # (N, P, W N S)
            logits = logits.masked_fill(~exist, -torch.inf)
            place = t + k + 1
            target = (rank() * rows + torch.arange(rows, device=t.device)[:, None]) * length + place  # (N, P)
            target = target.masked_fill(~present[:, place], -100)
            losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(rows, -1)
        sums = losses.new_zeros(steps).index_add(0, k, losses.sum(0))
        counts = losses.new_zeros(steps).index_add(0, k, present[:, place].sum(0).to(losses.dtype))
        counts = gather(counts[None]).sum(0).clamp(min=1)
        return sums * world_size() / counts, logits, exist.sum()

    def embed(self, input_ids, attention_mask=None):
        """The vectors of sentences, or of texts that are read as one, (N, D)."""
        return self.sentence_encoder(input_ids, attention_mask).pooler_output

    def export_encoder(self) -> CPCTextModel:
        encoder = CPCTextModel(SentenceEncoderConfig.from_dict(self.config.backbone_config.to_dict()))
        encoder.load_state_dict(self.sentence_encoder.state_dict())
        return encoder.float().eval()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                (init.zeros_ if "bias" in name else init.orthogonal_)(parameter)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            self.sentence_encoder._init_weights(module)


__all__ = ["CPCTextConfig", "CPCTextForPreTraining"]
