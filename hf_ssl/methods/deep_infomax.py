"""Deep InfoMax: a vector that says much about the image, and about each place of it, as a critic can tell.

Hjelm et al. 2018, https://arxiv.org/abs/1808.06670. Official code: https://github.com/rdevon/DIM. The critic scores pairs of
an image's vector and a place of a map, of the same image or of two; the better it can tell them, the more the vector says
of the map. An adversary makes the distribution of the vectors like the uniform one. Deviations: encoders are those of
transformers, and the representation is their pooled output, from which two layers make the vector; the global objective
sees the map averaged to a grid; an image's own places are no negatives of NCE, where the code gives them a score of -10;
one learning rate and one optimizer for encoder and adversary; batch statistics and negatives are those of all processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._detached import with_detached_weights
from ._information import information_bound
from ._initialization import draw_as_torch
from ._places import Scorer, as_map, critic_loss, map_channels, score_lines, score_places
from ._random import PRIOR_STREAM, fold_in, uniform

ESTIMATORS = ("jsd", "nce", "dv")


@strict
class DeepInfoMaxConfig(SSLConfig):
    """Defaults: the paper's DIM(L), with a ResNet-50; DIM(G) has global_weight=1, local_weight=0, prior_weight=1.

    backbone_config: of an image encoder of transformers with a pooler_output and hidden_states. map_stage: which of the
    hidden_states is the map. estimator: "jsd" (Jensen-Shannon), "nce" (InfoNCE) or "dv" (Donsker-Varadhan), section 3.1.
    global_weight, local_weight, prior_weight: alpha, beta and gamma of equation 8. vector_size: of E(x).
    head_hidden_size: of the layer before it. critic_size: U, in which vector and places are compared by dot products.
    global_grid: the map's sides for the global objective.
    """

    model_type = "ssl_deep_infomax"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    map_stage: int = -2
    estimator: str = "jsd"
    global_weight: float = 0.0
    local_weight: float = 1.0
    prior_weight: float = 0.1
    vector_size: int = 64
    head_hidden_size: int = 1024
    critic_size: int = 2048
    global_grid: int = 4

    def validate_ranges(self):
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, found '{self.estimator}'.")
        self.check_least(
            global_weight=0, local_weight=0, prior_weight=0, vector_size=1, head_hidden_size=1, critic_size=1, global_grid=1
        )  # fmt: skip
        if self.global_weight == self.local_weight == 0:
            raise ValueError("global_weight and local_weight must not both be 0: nothing would be learnt.")


class DeepInfoMaxForPreTraining(SSLModel):
    config: DeepInfoMaxConfig
    input_modalities = ("image",)
    compares_samples = True

    def __init__(self, config: DeepInfoMaxConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        hidden, size, units = config.head_hidden_size, config.vector_size, config.critic_size
        self.head = nn.Sequential(
            nn.Linear(width, hidden, bias=False), GlobalBatchNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size)
        )  # fmt: skip
        channels = map_channels(config.backbone_config, config.map_stage, "map_stage")
        if config.local_weight:
            self.local_critic = critic(place=channels, vector=size, units=units)
        if config.global_weight:
            flat = channels * config.global_grid**2
            self.global_critic = critic(map=flat, vector=size, units=units)
        if config.prior_weight:
            self.adversary = nn.Sequential(
                nn.Linear(size, 1000), nn.ReLU(inplace=True), nn.Linear(1000, 200), nn.ReLU(inplace=True), nn.Linear(200, 1)
            )  # fmt: skip
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, prior=None, **kwargs):
        """pixel_values: (N, C, H, W). prior: (N, vector_size), the adversary's examples, uniform in [0, 1); they follow
        from `sample_seeds`, (N,) int64, and without those are drawn afresh."""
        config = self.config
        features, places = self.features_and_map(pixel_values)
        vectors = self.head(features)  # (N, Y)

        loss, metrics = 0.0, {}
        if config.local_weight:
            local, measured = self.critic_loss(self.local_scores(vectors, places))
            loss = loss + config.local_weight * local
            metrics |= {f"local_{name}": value for name, value in measured.items()}
        if config.global_weight:
            whole = F.adaptive_avg_pool2d(places, config.global_grid).flatten(1)[:, None]  # (N, 1, C g g)
            scores = score_places(self.global_critic["vector"](vectors), self.global_critic["map"](whole))
            of_whole, measured = self.critic_loss(scores)
            loss = loss + config.global_weight * of_whole
            metrics |= {f"global_{name}": value for name, value in measured.items()}
        if config.prior_weight:
            matched, judged, accuracy = self.match_prior(vectors, sample_seeds, prior)
            loss = loss + config.prior_weight * matched + judged
            metrics |= {"prior_loss": matched, "adversary_loss": judged, "adversary_accuracy": accuracy}
        return SSLOutput(loss=loss, features=features, metrics=metrics)

    def features_and_map(self, pixel_values):
        """(N, D), the pooled output, and (N, C, h, w), the map."""
        output = self.backbone(pixel_values.to(self.backbone.dtype), output_hidden_states=True)
        hidden = output.hidden_states[self.config.map_stage]
        return output.pooler_output.flatten(1), as_map(hidden, pixel_values.shape, self.config.backbone_config)

    def local_scores(self, vectors, places):
        """(N, W N, h w), of vectors (N, Y) with each place of the maps, (N, C, h, w)."""
        cells = places.flatten(2).mT  # (N, h w, C)
        return score_places(self.local_critic["vector"](vectors), self.local_critic["place"](cells))

    def critic_loss(self, scores):
        """Of scores (N, W N, l); and what is logged of it, with "nce" and "dv" a lower bound of the mutual information."""
        loss = critic_loss(scores, self.config.estimator)
        match self.config.estimator:
            case "nce":
                return loss, information_bound(loss, (scores.shape[1] - 1) * scores.shape[2] + 1)
            case "dv":
                return loss, {"nats": -loss.detach()}
        return loss, {"loss": loss.detach()}

    def match_prior(self, vectors, sample_seeds=None, prior=None):
        """Of vectors (N, Y): the encoder's loss, by which they pass for draws from U(0, 1), the adversary's, and how often
        that is right. Each player's gradient is that of its own loss alone."""
        if prior is None:
            if sample_seeds is None:
                sample_seeds = torch.randint(2**62, (len(vectors),), device=vectors.device)
            prior = uniform(fold_in(sample_seeds, PRIOR_STREAM), vectors.shape[1])
        fake = vectors.sigmoid()
        with_gradient = with_detached_weights(self.adversary, fake).float()
        on_prior, on_fake = self.adversary(prior.to(fake.dtype)).float(), self.adversary(fake.detach()).float()
        matched = F.softplus(-with_gradient).mean()  # not saturating, as in the code
        judged = F.softplus(-on_prior).mean() + F.softplus(on_fake).mean()
        return matched, judged, ((on_prior > 0).float().mean() + (on_fake <= 0).float().mean()) / 2

    def check_batch(self, size, processes):
        if size * processes < 2:
            raise ValueError(
                f"Deep InfoMax compares images with each other: the batch of all processes is {size}, expected 2 or more."
            )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """The images, and how the critic scores their places with their own vector and with that of another image."""
        if not self.config.local_weight:
            return [PretextLine("image", pixel_values)]
        features, places = self.features_and_map(pixel_values)
        return score_lines(pixel_values, self.local_scores(self.head(features), places), places.shape[-2:])

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)
        if isinstance(module, Scorer):
            module.reset_shortcut()
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif self.config.prior_weight and module is self.adversary[-1]:
            init.zeros_(module.bias)


def critic(units, **inputs):
    """Two networks whose outputs, (..., units), are compared by dot products."""
    return nn.ModuleDict({name: Scorer(size, units, nn.LayerNorm(units)) for name, size in inputs.items()})


__all__ = ["DeepInfoMaxConfig", "DeepInfoMaxForPreTraining"]
