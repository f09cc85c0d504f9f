"""AMDIM: what one view of an image says of the whole is to be recognised in each place of another view, at several scales.

Bachman et al. 2019, https://arxiv.org/abs/1906.00910. Official code: https://github.com/Philip-Bachman/amdim-public. Deep
InfoMax between two augmented views: the vector of one view must find a coarse and a fine map of the other among the maps of
all other images, and a place of the coarse map the places of the other view's. Deviations: encoders are those of
transformers, whose padding lets a place see the border, and their maps are averaged to the grids of the paper; the released
representation is the pooled output, from which the vector is made; batch statistics and negatives are those of all processes.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._information import information_bound
from ._initialization import draw_as_torch
from ._places import Scorer, as_map, critic_loss, map_channels, score_lines, score_places
from ._random import SOURCE_PLACE_STREAM, fold_in, uniform


@strict
class AMDIMConfig(SSLConfig):
    """Defaults: the code's, with a ResNet-50.

    backbone_config: of an image encoder of transformers with a pooler_output and hidden_states. coarse_stage, fine_stage:
    which of the hidden_states are the two maps. coarse_grid, fine_grid: sides to which they are averaged, 5 and 7 in the
    paper. projection_size: of what is compared, the code's n_rkhs. score_clip: c of the scores' c tanh(score / c).
    score_penalty: of the mean square of the scores before that.
    """

    model_type = "ssl_amdim"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    coarse_stage: int = -2
    fine_stage: int = -3
    coarse_grid: int = 5
    fine_grid: int = 7
    projection_size: int = 1024
    score_clip: float = 20.0
    score_penalty: float = 0.05

    def validate_ranges(self):
        self.check_least(coarse_grid=1, fine_grid=1, projection_size=1, score_penalty=0)
        self.check_positive("score_clip")


class AMDIMForPreTraining(SSLModel):
    config: AMDIMConfig
    input_modalities = ("image",)
    compares_samples = True

    def __init__(self, config: AMDIMConfig):
        super().__init__(config)
        width = check_backbone(config.backbone_config)
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        coarse = map_channels(config.backbone_config, config.coarse_stage, "coarse_stage")
        fine = map_channels(config.backbone_config, config.fine_stage, "fine_stage")
        self.vector_projector = self.projector(width)
        self.coarse_projector = self.projector(coarse)
        self.fine_projector = self.projector(fine)
        self.post_init()

    def projector(self, inputs):
        size = self.config.projection_size
        return Scorer(inputs, size, GlobalBatchNorm(size))

    def forward(self, pixel_values, pixel_values_2, sample_seeds=None, source_places=None, **kwargs):
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image. source_places: (N, 2), for each view the place
        of the coarse map that looks for the other view's; they follow from `sample_seeds`, (N,) int64, and without those
        are drawn afresh."""
        if source_places is None:
            source_places = self.draw_places(len(pixel_values), sample_seeds, pixel_values.device)
        features, *projections = self.project(
            torch.cat([pixel_values, pixel_values_2])
        )  # one batch for the statistics
        vectors, coarse, fine = (
            each.chunk(2) for each in projections
        )  # (N, P), (N, k k, P), (N, l l, P) of each view
        rows = torch.arange(len(pixel_values), device=pixel_values.device)

        losses, penalty = {"1_to_5": 0.0, "1_to_7": 0.0, "5_to_5": 0.0}, 0.0
        for view, other in ((0, 1), (1, 0)):
            source = coarse[view][rows, source_places[:, view]]  # (N, P)
            pairs = (vectors[view], coarse[other]), (vectors[view], fine[other]), (source, coarse[other])
            for name, (sources, places) in zip(losses, pairs, strict=True):
                scores, square = self.scores(sources, places)
                losses[name] = losses[name] + critic_loss(scores, "nce") / 2
                penalty = penalty + self.config.score_penalty * square / 2
        candidates = (scores.shape[1] - 1) * self.config.fine_grid**2 + 1
        metrics = information_bound(losses["1_to_7"], candidates)
        metrics |= {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        return SSLOutput(
            loss=sum(losses.values()) + penalty,
            features=features,
            projections=vectors[0].detach(),
            projections_2=vectors[1].detach(),
            metrics=metrics | {"penalty": penalty.detach()},
        )

    def project(self, pixel_values):
        """Features, (N, D); and what is compared: the vector, (N, P), and the places of the two maps, (N, k k, P) each."""
        output = self.backbone(pixel_values.to(self.backbone.dtype), output_hidden_states=True)
        features = output.pooler_output.flatten(1)
        projections = [self.vector_projector(features)]
        for name in ("coarse", "fine"):
            hidden = output.hidden_states[getattr(self.config, f"{name}_stage")]
            places = as_map(hidden, pixel_values.shape, self.config.backbone_config)
            places = F.adaptive_avg_pool2d(places, getattr(self.config, f"{name}_grid")).flatten(2).mT
            projections.append(getattr(self, f"{name}_projector")(places))
        return features, *projections

    def scores(self, sources, places):
        """(N, P) and (N, l, P) to clipped scores, (N, W N, l), and the mean square of those before they are clipped."""
        clip = self.config.score_clip
        scores = score_places(sources / self.config.projection_size**0.5, places)
        return clip * torch.tanh(scores / clip), scores.square().mean()

    def draw_places(self, count, sample_seeds=None, device=None):
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, (count,), device=device)
        draws = uniform(fold_in(sample_seeds, SOURCE_PLACE_STREAM), 2)  # (N, 2)
        return (draws * self.config.coarse_grid**2).long()

    def check_batch(self, size, processes):
        if size * processes < 2:
            raise ValueError(
                f"AMDIM compares images with each other: the batch of all processes is {size}, expected 2 or more."
            )

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """The images, and how the places of their fine maps score with their own vector and with that of another image."""
        _, vectors, _, fine = self.project(pixel_values)
        return score_lines(pixel_values, self.scores(vectors, fine)[0], [self.config.fine_grid] * 2)

    @torch.no_grad()
    def _init_weights(self, module):
        draw_as_torch(module)
        if isinstance(module, Scorer):
            module.reset_shortcut()


__all__ = ["AMDIMConfig", "AMDIMForPreTraining"]
