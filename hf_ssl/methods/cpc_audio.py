"""CPC for audio: from the speech so far, tell what comes next from other pieces of speech.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1. Closest to its architecture:
https://github.com/loeweX/Greedy_InfoMax; the authors of https://github.com/facebookresearch/CPC_audio share
negatives between steps, as here (there each time draws its own, here all times of a window share them).
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import native_copy
from ._base import SSLConfig, SSLModel, SSLOutput
from ._cpc_audio_model import CPCAudioModel, CPCAudioModelConfig
from ._distributed import gather, rank, world_size
from ._futures import FuturePredictor, draw_negatives, future_info_nce
from ._information import information_bound

# where the negatives of a window come from: windows of (any or the same speaker), with or without the window itself
POLICIES = ("mixed", "same_speaker", "mixed_excluding_current", "same_speaker_excluding_current", "current")


@strict
class CPCAudioConfig(SSLConfig):
    """Defaults: the paper's.

    backbone_config: of a CPCAudioModel. prediction_steps: K, of 10 ms each. negatives: for each window, drawn afresh; all of its
    predictions share them. negative_policy: mixed, same_speaker, either also as `..._excluding_current`, or current (the
    window itself only); same_speaker wants batches with several windows of a speaker (`--windows_per_speaker`). A window whose
    speaker has no other takes its own frames, or everybody's where these are excluded, or where nobody knows the speaker.
    """

    model_type = "ssl_cpc_audio"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_cpc_audio_model")}

    backbone_config: dict | PreTrainedConfig | None = None
    prediction_steps: int = 12
    negatives: int = 128
    negative_policy: str = "mixed"

    def validate_choices(self):
        if not isinstance(self.backbone_config, CPCAudioModelConfig):
            found = self.backbone_config.model_type
            raise ValueError(f"backbone_config must be of model_type 'ssl_cpc_audio_model', found '{found}'.")
        if self.negative_policy not in POLICIES:
            raise ValueError(f"negative_policy must be one of {', '.join(POLICIES)}, found '{self.negative_policy}'.")
        self.check_least(prediction_steps=1, negatives=1)


class CPCAudioForPreTraining(SSLModel):
    config: CPCAudioConfig
    main_input_name = "input_values"
    input_modalities = ("audio",)
    compares_samples = True
    supports_gradient_checkpointing = False

    def __init__(self, config: CPCAudioConfig):
        super().__init__(config)
        encoder = config.backbone_config
        self.backbone = CPCAudioModel(encoder)
        self.predictor = FuturePredictor(encoder.hidden_size, encoder.conv_size, config.prediction_steps)
        self.post_init()

    def forward(self, input_values, speaker_ids=None, sample_seeds=None, negatives=None, **kwargs):
        """input_values: (N, samples), scaled windows. speaker_ids: (N,), for the policies of the same speaker.

        negatives: (N, M), places among the frames of all processes; they follow from `sample_seeds`, (N,) int64, if not
        given, and are drawn afresh without those.
        """
        output = self.backbone(input_values)
        frames, contexts = output.extract_features, output.last_hidden_state  # (N, L, D), (N, L, C)
        if frames.shape[1] <= self.config.prediction_steps:
            raise ValueError(
                f"prediction_steps {self.config.prediction_steps} needs windows of more frames, found {frames.shape[1]}."
            )
        if negatives is None:
            if sample_seeds is None:
                sample_seeds = torch.randint(2**62, (len(frames),), device=frames.device)
            allowed = self._allowed(len(frames), speaker_ids, frames.device)
            negatives = draw_negatives(allowed, frames.shape[1], self.config.negatives, sample_seeds)
        losses, hits, logits = future_info_nce(self.predictor(contexts), frames, negatives)
        metrics = information_bound(losses, 1 + negatives.shape[1]) | {"hits": hits.mean()}
        return SSLOutput(loss=losses.mean(), logits=logits, features=output.pooler_output, metrics=metrics)

    def _allowed(self, count, speaker_ids, device):
        """(N, A): which windows of all processes a window's negatives come from."""
        places = torch.arange(count * world_size(), device=device)
        current = places == (rank() * count + places[:count])[:, None]
        policy = self.config.negative_policy
        if policy == "current":
            return current
        others = ~current if policy.endswith("excluding_current") else torch.ones_like(current)
        if policy.startswith("mixed"):
            return others
        if speaker_ids is None:
            raise ValueError(f"negative_policy '{policy}' needs speaker_ids: the data have no column of speakers.")
        same = (gather(speaker_ids) == speaker_ids[:, None]) & (speaker_ids[:, None] >= 0) & others  # -1: nobody knows
        return torch.where(same.any(1, keepdim=True), same, others)

    def check_batch(self, size, processes):
        if self.config.negative_policy.endswith("excluding_current") and size * processes < 2:
            raise ValueError(
                f"negative_policy '{self.config.negative_policy}' needs other windows: the batch of all processes is {size}."
            )

    def embed(self, input_values, attention_mask=None):
        """The context's mean over time, (N, D)."""
        return self.backbone(input_values, attention_mask).pooler_output

    def export_encoder(self):
        return native_copy(self.backbone)

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self.predictor.linear:
            self.predictor.draw_weights()
        else:
            self.backbone._init_weights(module)


__all__ = ["POLICIES", "CPCAudioConfig", "CPCAudioForPreTraining"]
