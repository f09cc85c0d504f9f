"""CPC for text: from the sentences so far, tell the next ones from others.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.3; the authors published no code. A sentence is encoded
by a convolution over its words and their mean, the document so far by a GRU over its sentences. For each of the next K
sentences a linear map of that context is compared with the sentences of all documents, by InfoNCE.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import native_copy
from ._base import SSLConfig, SSLModel, SSLOutput
from ._cpc_text_model import CPCTextModel, CPCTextModelConfig
from ._distributed import gather, gather_with_gradient, rank, world_size
from ._futures import FuturePredictor, futures
from ._information import information_bound


@strict
class CPCTextConfig(SSLConfig):
    """Defaults: the paper's.

    backbone_config: of a CPCTextModel. context_size: C, of the GRU. prediction_steps: K, sentences.
    """

    model_type = "ssl_cpc_text"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_cpc_text_model")}

    backbone_config: dict | PreTrainedConfig | None = None
    context_size: int = 2400
    prediction_steps: int = 3

    def validate_sizes(self):
        if not isinstance(self.backbone_config, CPCTextModelConfig):
            found = self.backbone_config.model_type
            raise ValueError(f"backbone_config must be of model_type 'ssl_cpc_text_model', found '{found}'.")
        self.check_least(context_size=1, prediction_steps=1)


class CPCTextForPreTraining(SSLModel):
    config: CPCTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    compares_samples = True
    supports_gradient_checkpointing = False

    def __init__(self, config: CPCTextConfig):
        super().__init__(config)
        width = config.backbone_config.hidden_size
        self.backbone = CPCTextModel(config.backbone_config)
        self.context = nn.GRU(width, config.context_size, batch_first=True)
        self.predictor = FuturePredictor(config.context_size, width, config.prediction_steps)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        """input_ids: (N, S, L), windows of S sentences that follow each other. Where a document has fewer, the last ones are
        all 0: they are no candidates, and nothing is lost that should predict them.

        The candidates of every prediction are the sentences of all windows of all processes, its own window's too. The loss
        is the mean over the K steps of each step's mean over its predictions.
        """
        steps = self.config.prediction_steps
        if input_ids.shape[1] <= steps:
            raise ValueError(f"prediction_steps {steps} needs windows of more sentences, found {input_ids.shape[1]}.")
        sentences, contexts = self.encode(input_ids)  # (N, S, D), (N, S, C)
        present = input_ids.ne(0).any(-1)  # (N, S)
        with torch.autocast(sentences.device.type, enabled=False):
            predictions = self.predictor(contexts.to(self.dtype)).float()  # (N, S - K, K, D)
            candidates = gather_with_gradient(sentences.flatten(0, 1)).float()  # (A S, D), A windows in all
            logits = predictions @ candidates.T  # (N, S - K, K, A S)
        exist = gather(present.flatten())
        logits = logits.masked_fill(~exist, -torch.inf)
        targets = self.targets(present)
        losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
        # of the predictions of all processes, which need not have as many
        everyones = gather(targets.ge(0).sum((0, 1))[None]).sum(0).clamp(min=1)  # (K,)
        losses = losses.sum((0, 1)) * world_size() / everyones
        metrics = information_bound(losses, exist.sum())
        return SSLOutput(losses.mean(), logits, features=sentences[:, 0].detach(), metrics=metrics)

    def encode(self, input_ids):
        """Windows (N, S, L) to the vectors of their sentences, (N, S, D), and the contexts up to each of them, (N, S, C)."""
        sentences = self.backbone.mean(*self.backbone.convolve(input_ids.flatten(0, 1)))
        sentences = sentences.unflatten(0, input_ids.shape[:2])
        return sentences, self.context(sentences)[0]

    def targets(self, present):
        """(N, S) to (N, S - K, K): where among the candidates the sentence k steps on stands, -100 if there is none."""
        place = torch.arange(present.numel(), device=present.device).view_as(present) + rank() * present.numel()
        place = place.masked_fill(~present, -100)
        return futures(place[..., None], self.config.prediction_steps)[..., 0]

    def embed(self, input_ids, attention_mask=None):
        """The vectors of sentences, or of texts that are read as one, (N, D)."""
        return self.backbone(input_ids, attention_mask).pooler_output

    def export_encoder(self):
        return native_copy(self.backbone)

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self.predictor.linear:
            self.predictor.draw_weights()
        elif isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                (init.zeros_ if "bias" in name else init.orthogonal_)(parameter)
        else:
            self.backbone._init_weights(module)


__all__ = ["CPCTextConfig", "CPCTextForPreTraining"]
