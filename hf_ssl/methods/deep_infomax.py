"""Deep InfoMax: a vector that says much about the image, and about each place of it, as a critic can tell.

Hjelm et al. 2018, https://arxiv.org/abs/1808.06670. Official code: https://github.com/rdevon/DIM. The critic scores pairs of
an image's vector and a place of a map, of the same image or of two; the better it can tell them, the more the vector says
of the map. An adversary makes the distribution of the vectors like the uniform one. Deviations: encoders are those of
transformers, and the representation is their pooled output, from which two layers make the vector; the global objective
sees the map averaged to a grid; an image's own places are no negatives of NCE, where the code gives them a score of -10;
one learning rate and one optimizer for encoder and adversary; batch statistics and negatives are those of all processes.
"""

import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._detached import with_detached_weights
from ._distributed import gather_with_gradient, rank, world_size
from ._initialization import draw_as_torch
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
        channels = map_channels(config)
        if config.local_weight:
            self.local_critic = nn.ModuleDict({"place": Scorer(channels, units), "vector": Scorer(size, units)})
        if config.global_weight:
            flat = channels * config.global_grid**2
            self.global_critic = nn.ModuleDict({"map": Scorer(flat, units), "vector": Scorer(size, units)})
        if config.prior_weight:
            self.adversary = nn.Sequential(
                nn.Linear(size, 1000), nn.ReLU(inplace=True), nn.Linear(1000, 200), nn.ReLU(inplace=True), nn.Linear(200, 1)
            )  # fmt: skip
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, prior=None, **kwargs):
        """pixel_values: (N, C, H, W). prior: (N, vector_size), the adversary's examples, uniform in [0, 1); they follow
        from `sample_seeds`, (N,) int64, and without those are drawn afresh."""
        config = self.config
        output = self.backbone(pixel_values.to(self.backbone.dtype), output_hidden_states=True)
        features = output.pooler_output.flatten(1)  # (N, D)
        places = as_map(
            output.hidden_states[config.map_stage], pixel_values.shape, config.backbone_config
        )  # (N, C, h, w)
        vectors = self.head(features)  # (N, Y)

        loss, metrics = 0.0, {}
        if config.local_weight:
            found = places.flatten(2).mT  # (N, h w, C)
            local, measured = self.between(self.local_critic["vector"](vectors), self.local_critic["place"](found))
            loss, metrics = loss + config.local_weight * local, {f"local_{k}": v for k, v in measured.items()}
        if config.global_weight:
            whole = F.adaptive_avg_pool2d(places, config.global_grid).flatten(1)[:, None]  # (N, 1, C g g)
            whole, measured = self.between(self.global_critic["vector"](vectors), self.global_critic["map"](whole))
            loss, metrics = (
                loss + config.global_weight * whole,
                metrics | {f"global_{k}": v for k, v in measured.items()},
            )
        if config.prior_weight:
            matched, judged, accuracy = self.match_prior(vectors, sample_seeds, prior)
            loss = loss + config.prior_weight * matched + judged
            metrics |= {"prior_loss": matched, "adversary_loss": judged, "adversary_accuracy": accuracy}
        return SSLOutput(loss=loss, features=features, metrics=metrics)

    def between(self, vectors, places):
        """The loss of the critic on vectors (N, U) and the places (N, l, U) of the same images; what is logged of it, which
        with "nce" and "dv" is a lower bound of the mutual information in nats, with "nce" beside its ceiling."""
        with torch.autocast(vectors.device.type, enabled=False):
            everyones = gather_with_gradient(places.float())  # (W N, l, U)
            scores = (vectors.float() @ everyones.flatten(0, 1).T).unflatten(1, everyones.shape[:2])  # (N, W N, l)
            loss = critic_loss(scores, self.config.estimator)
        if self.config.estimator == "jsd":
            return loss, {"loss": loss}
        if self.config.estimator == "dv":
            return loss, {"mutual_information": -loss}
        ceiling = math.log((len(everyones) - 1) * places.shape[1] + 1)  # of the number of candidates
        return loss, {"mutual_information": ceiling - loss, "mutual_information_ceiling": loss.new_tensor(ceiling)}

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
    def _init_weights(self, module):
        draw_as_torch(module)
        if isinstance(module, Scorer):
            init.uniform_(module.shortcut.weight, -0.01, 0.01)
            init.copy_(module.shortcut.weight, nearly_identity(module.shortcut.weight))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif self.config.prior_weight and module is self.adversary[-1]:
            init.zeros_(module.bias)


class Scorer(nn.Module):
    """(..., inputs) to (..., units), at first nearly a copy: the code's MI1x1ConvNet."""

    def __init__(self, inputs, units):
        super().__init__()
        self.hidden = nn.Linear(inputs, units, bias=False)
        self.batch_norm = GlobalBatchNorm(units)
        self.output = nn.Linear(units, units)
        self.shortcut = nn.Linear(inputs, units, bias=False)
        self.norm = nn.LayerNorm(units)

    def forward(self, x):
        hidden = self.hidden(x)
        hidden = self.batch_norm(hidden.flatten(0, -2)).view_as(hidden).relu()
        return self.norm(self.output(hidden) + self.shortcut(x))


def nearly_identity(weight):
    """A matrix with 1 on its diagonal."""
    eye = torch.eye(*weight.shape, dtype=torch.bool, device=weight.device)
    return torch.where(eye, torch.ones_like(weight), weight)


def critic_loss(scores, estimator):
    """scores: (N, W N, l), of this process's vectors with the l places of each image of all processes. The negatives are
    all pairs of two images. Sections 3.1 and 3.2 of the paper, to be minimised; 0, or with "nce" the log of the number of
    candidates, of a critic that knows nothing."""
    count, everyone, places = scores.shape
    own = torch.arange(count, device=scores.device)
    positive = scores[own, rank() * count + own]  # (N, l)
    is_own = torch.zeros(count, everyone, 1, dtype=torch.bool, device=scores.device)
    is_own[own, rank() * count + own] = True
    if estimator == "jsd":
        negative = (F.softplus(scores) - math.log(2)).masked_fill(is_own, 0)
        pairs = count * (everyone - 1) * places
        return negative.sum() / pairs - (math.log(2) - F.softplus(-positive)).mean()
    negative = scores.masked_fill(is_own, -torch.inf).flatten(1).logsumexp(1)  # (N,)
    if estimator == "nce":
        return (torch.logaddexp(positive, negative[:, None]) - positive).mean()
    pairs = count * world_size() * (everyone - 1) * places
    return gather_with_gradient(negative).logsumexp(0) - math.log(pairs) - positive.mean()


def map_channels(config):
    """C of the map. Raises ValueError if the backbone gives none."""
    backbone = config.backbone_config
    size = getattr(backbone, "image_size", None) or 224
    size = size if isinstance(size, list | tuple) else (size, size)
    with torch.device("meta"):  # shapes only
        pixels = torch.zeros(1, backbone.num_channels, *size)
        hidden = AutoModel.from_config(backbone).eval()(pixels, output_hidden_states=True).get("hidden_states") or ()
        if not -len(hidden) <= config.map_stage < len(hidden):
            raise ValueError(
                f"map_stage={config.map_stage} is none of the {len(hidden)} hidden_states of backbone_config of "
                f"model_type '{backbone.model_type}'."
            )
        return as_map(hidden[config.map_stage], pixels.shape, backbone).shape[1]


def as_map(hidden, shape, backbone):
    """A hidden state as (N, C, h, w): of tokens, (N, L, C), the last ones, which are the patches'."""
    if hidden.ndim == 4:
        return hidden
    patch = getattr(backbone, "patch_size", None)
    if hidden.ndim != 3 or not isinstance(patch, int):
        raise ValueError(f"backbone_config of model_type '{backbone.model_type}' gives no maps: choose another.")
    rows, columns = shape[2] // patch, shape[3] // patch
    return hidden[:, -rows * columns :].mT.unflatten(2, (rows, columns))


__all__ = ["DeepInfoMaxConfig", "DeepInfoMaxForPreTraining"]
