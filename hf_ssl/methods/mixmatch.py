"""MixMatch: guess labels from several views, sharpen them, and learn from mixtures of all images, labelled or not.

Berthelot et al. 2019, https://arxiv.org/abs/1905.02249. Official code: https://github.com/google-research/mixmatch. What is
released is the moving average of the weights. Each of three passes holds a mixture of labelled and unlabelled images
(the original's interleaving), and only the first moves running statistics; those of the guesses move none. Deviations:
batch statistics are those of all processes; which images stand in which pass goes by their place modulo three, not by thirds
of the batch; one or two views of an image, the paper's best of up to four.
"""

import copy

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify, native_copy, pooled
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import fixed_running_statistics
from ._distributed import gather, own_part
from ._momentum import begin_as, copy_buffers, momentum_update
from ._random import MIXUP_PARTNER_STREAM, MIXUP_STREAM, fold_in, uniform
from ._semi_supervised import (
    DistributionAlignment,
    build_classifier,
    draw_with_alignment,
    label_metrics,
    linear_ramp,
    mean_squared_difference,
    sharpen,
)

MIXED = ("all", "separate", "labelled", "unlabelled", "none")
ATTEMPTS = 32  # to draw from a Beta distribution: of alpha = 1 half of them fail, of less fewer


@strict
class MixMatchConfig(SSLConfig):
    """Defaults: the paper's on CIFAR-10, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    guesses: K, views whose predictions are averaged, 1 or 2. temperature: T, of the sharpening; 1: none. alpha: of the Beta
    distribution of MixUp, at most 1. unlabelled_weight: lambda_U after the ramp. ramp_end: the part of the run in which it
    rises. mixed: "all" images with all; the paper's ablations "separate" (labelled with labelled, unlabelled with unlabelled),
    "labelled" or "unlabelled" ones alone, "none". align_classes: before the sharpening, make the guesses' classes as frequent as
    the labels', as in ReMixMatch. momentum: of the average that is released.
    """

    model_type = "ssl_mixmatch"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    guesses: int = 2
    temperature: float = 0.5
    alpha: float = 0.75
    unlabelled_weight: float = 75.0
    ramp_end: float = 1 / 64
    mixed: str = "all"
    align_classes: bool = False
    momentum: float = 0.999

    def validate_ranges(self):
        self.check_least(unlabelled_weight=0)
        if self.guesses not in (1, 2):
            raise ValueError(f"guesses must be 1 or 2, found {self.guesses}.")
        self.check_positive("temperature")
        self.check_positive("alpha", "ramp_end", most=1)
        if self.mixed not in MIXED:
            raise ValueError(f"mixed must be one of {', '.join(MIXED)}, found '{self.mixed}'.")
        self.check_below_one("momentum")


class MixMatchForPreTraining(SSLModel):
    config: MixMatchConfig
    input_modalities = ("image",)
    learns_from_labels = True
    compares_samples = True

    def __init__(self, config: MixMatchConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.average = copy.deepcopy(self.backbone).requires_grad_(False)
        self.alignment = DistributionAlignment(config.backbone_config.num_labels) if config.align_classes else None
        self.register_buffer("progress", torch.zeros(()))  # the finished fraction of the run
        self.post_init()

    def forward(
        self, pixel_values, pixel_values_2, labelled_pixel_values, labels, sample_seeds=None, mixing=None, order=None, **kwargs
    ):  # fmt: skip
        """pixel_values, pixel_values_2: (N, C, H, W), two views of each image. labelled_pixel_values: (N, C, H, W). labels:
        (N,). mixing: (V, N), lambda' of each image, V = 1 + guesses, the labelled ones first. order: (V W N,), a permutation of
        the images of all W processes, of partners. Both follow from `sample_seeds`, (N,) int64, if not given, and are drawn
        afresh without those. `logits`: (N, K), of mixtures."""
        views = [pixel_values, pixel_values_2][: self.config.guesses]
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, labels.shape, device=labels.device)
        seeds = torch.stack([fold_in(sample_seeds, number) for number in range(1 + len(views))])  # (V, N)
        mixing = self.draw_mixing(seeds) if mixing is None else mixing
        order = self.draw_order(seeds) if order is None else order

        guess, features = self.guess(views, labels)
        certain = F.one_hot(labels, guess.shape[1]).to(guess.dtype)
        images = torch.stack([labelled_pixel_values, *views])  # (V, N, C, H, W)
        targets = torch.stack([certain, *[guess] * len(views)])  # (V, N, K)
        images, targets = (mix(x, mixing, order) for x in (images, targets))

        logits = self.classify_interleaved(images)  # (V, N, K)
        supervised = F.cross_entropy(logits[0], targets[0])
        unlabelled = mean_squared_difference(logits[1:].softmax(2), targets[1:])
        metrics = label_metrics(logits[0], targets[0].argmax(1), supervised)
        return SSLOutput(
            loss=supervised + self.weight() * unlabelled,
            logits=logits[0],
            features=features,
            metrics=metrics | {"unlabelled": unlabelled.detach(), "sure": guess.amax(1).mean()},
        )

    def weight(self):
        """lambda_U: a line, then `unlabelled_weight`."""
        return self.config.unlabelled_weight * linear_ramp(self.progress / self.config.ramp_end)

    @torch.no_grad()
    def guess(self, views, labels):
        """(the sharpened mean of what the network predicts for the views, (N, K); the features of the first one, (N, D)). labels:
        those of the step, (N,)."""
        with fixed_running_statistics(self.backbone):
            outputs = [classify(self.backbone, view) for view in views]
        mean = torch.stack([logits.softmax(1) for logits, _ in outputs]).mean(0)
        if self.alignment is not None:
            mean = self.alignment(mean, labels)
        return sharpen(mean, self.config.temperature), outputs[0][1]

    def classify_interleaved(self, images):
        """Logits (V, N, K) of images (V, N, C, H, W), by V passes of N images, each with some that are labelled."""
        first, *others = interleave(images)
        logits = [classify(self.backbone, first)[0]]
        with fixed_running_statistics(self.backbone):
            logits += [classify(self.backbone, each)[0] for each in others]
        return interleave(torch.stack(logits))

    def draw_mixing(self, seeds):
        """(V, N), max(l, 1 - l) with l from Beta(alpha, alpha), by Johnk's algorithm; 1 for what is not to be mixed. seeds:
        (V, N)."""
        draws = uniform(fold_in(seeds.flatten(), MIXUP_STREAM), 2 * ATTEMPTS).add(2**-25).log() / self.config.alpha
        x, y = draws.chunk(2, dim=1)  # (V N, ATTEMPTS), logarithms
        fits = torch.logaddexp(x, y) <= 0
        first = fits.byte().argmax(1, keepdim=True)
        mixing = (x - y).abs().sigmoid().gather(1, first).view(seeds.shape)
        unmixed = {"none": slice(None), "labelled": slice(1, None), "unlabelled": slice(0, 1)}.get(self.config.mixed)
        if unmixed is not None:
            mixing[unmixed] = 1
        return mixing

    def draw_order(self, seeds):
        """(V W N,): a permutation of the images of all processes; of labelled and unlabelled ones each if they are not to be
        mixed with each other. seeds: (V, N)."""
        keys = torch.cat([gather(fold_in(own, MIXUP_PARTNER_STREAM)) for own in seeds])
        if self.config.mixed == "all":
            return keys.argsort()
        labelled = len(keys) // len(seeds)
        return torch.cat([keys[:labelled].argsort(), labelled + keys[labelled:].argsort()])

    def check_batch(self, size, processes):
        if processes > 1 and size % (1 + self.config.guesses):
            raise ValueError(
                f"The batch of a process, per_device_train_batch_size, must be a multiple of {1 + self.config.guesses}, so that "
                f"all processes' passes hold as many images of each kind: found {size}."
            )

    def check_labels(self, unlabelled_per_label):
        if unlabelled_per_label != 1:
            raise ValueError(
                "MixMatch mixes as many labelled images as unlabelled ones: expected unlabelled_per_label=1, found "
                f"{unlabelled_per_label}."
            )

    def after_step(self, progress):
        self.progress.fill_(progress)
        momentum_update(self.average, self.backbone, self.config.momentum)
        copy_buffers(self.average, self.backbone)

    def embed(self, pixel_values):
        return pooled(self.average, pixel_values)

    def export_encoder(self):
        return native_copy(self.average)

    def load_encoder(self, encoder, missing=()):
        super().load_encoder(encoder, missing)
        self.average.load_state_dict(self.backbone.state_dict())

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.zeros_(self.progress)
            begin_as(self.average, self.backbone)
        else:
            draw_with_alignment(module)


def mix(x, mixing, order):
    """MixUp of (V, N, ...), each with its partner among those of all processes. mixing: (V, N). order: (V W N,)."""
    everyone = torch.cat([gather(kind) for kind in x])  # (V W N, ...)
    partners = torch.stack([own_part(kind) for kind in everyone[order].chunk(len(x))])
    mixing = mixing.to(x.dtype).view(*mixing.shape, *[1] * (x.ndim - 2))
    return mixing * x + (1 - mixing) * partners


def interleave(x):
    """(V, N, ...): of every V images one of each kind v > 0 changes places with the one of kind 0. Its own inverse."""
    place = torch.arange(x.shape[1], device=x.device) % len(x)
    kinds = list(x)
    for number in range(1, len(x)):
        here = (place == number).view(-1, *[1] * (x.ndim - 2))
        kinds[0], kinds[number] = torch.where(here, x[number], kinds[0]), torch.where(here, x[0], x[number])
    return torch.stack(kinds)


__all__ = ["MixMatchConfig", "MixMatchForPreTraining"]
