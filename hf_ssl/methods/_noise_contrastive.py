"""Noise-contrastive estimation over a bank of unit vectors: is this row of the bank the image's own, or noise?

Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.2; Gutmann and Hyvarinen 2010,
https://proceedings.mlr.press/v9/gutmann10a.html. Constants are those of https://github.com/zhirongw/lemniscate.pytorch,
lib/NCEAverage.py and lib/NCECriterion.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ._distributed import gather, world_size
from ._random import uniform

EPSILON = 1e-7  # beside the density of the noise
DENSE = 16  # a bank of up to so many rows for each draw is scored whole, which reads less than the rows of all draws


class NoiseContrastiveLoss(nn.Module):
    """Of a row of n, the model's density is P = exp(similarity / temperature) / Z, that of m draws of noise m / n.

    Z is estimated once, from the first batch of all processes in training, as n times the mean of exp(similarity /
    temperature) over its own rows and its draws, and then kept.
    """

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("log_normalizer", torch.zeros(()))
        self.register_buffer("normalized", torch.zeros((), dtype=torch.long))  # 1 when it has been estimated

    def forward(self, queries, keys, bank, noise):
        """(mean over the batch of -log h(own) - the sum over draws of log(1 - h(draw)), mean of h(own)), with h the
        probability that a row is not noise.

        queries: (N, P), the only ones that get a gradient. keys: (N, P), the own rows. bank: (n, P), which may change
        before the backward pass. noise: (N, m) int64, rows of the bank, which may hit the own one.
        """
        draws = noise.shape[1]
        log_noise, log_offset = (math.log(draws / len(bank) + each) for each in (0, EPSILON))
        with torch.autocast(queries.device.type, enabled=False):
            own = (queries * keys.to(queries.dtype)).sum(1) / self.temperature  # (N,)
            scores, counts = self.scores(queries, bank, noise)
            log_normalizer = self.normalize(own.detach(), scores.detach(), counts, draws, len(bank))
            own = own - log_normalizer - log_offset  # the logit of h
            rejected = F.softplus(scores - (log_normalizer + log_offset))  # -log(1 - h) of each draw
            rejected = (rejected if counts is None else rejected * counts).sum(1) + draws * (log_offset - log_noise)
            return (F.softplus(-own) + rejected).mean(), own.detach().sigmoid().mean()

    def scores(self, queries, bank, noise):
        """Similarities / temperature to the draws, (N, m), and None; or to all rows, (N, n), and how often each is drawn."""
        queries = queries / self.temperature
        if len(bank) > DENSE * noise.shape[1]:
            rows = bank[noise].to(queries.dtype)  # (N, m, P)
            return torch.bmm(rows, queries[..., None])[..., 0], None
        scores = queries @ bank.to(queries.dtype, copy=True).T
        counts = torch.zeros_like(scores).scatter_add_(1, noise, scores.new_ones(noise.shape))
        return scores, counts

    @torch.no_grad()
    def normalize(self, own, scores, counts, draws, rows):
        """log Z: what is kept, else that of this batch, which in training is kept from then on."""
        scores = scores if counts is None else scores + counts.log()
        log_sum = torch.logaddexp(own, scores.logsumexp(1)).logsumexp(0)
        estimate = log_sum + math.log(rows / (len(own) * (1 + draws)))
        if self.training:
            estimate = gather(estimate[None]).logsumexp(0) - math.log(world_size())
        estimate = torch.where(self.normalized > 0, self.log_normalizer.to(estimate.dtype), estimate)
        if self.training:
            self.log_normalizer.copy_(estimate)
            self.normalized.fill_(1)
        return estimate

    @torch.no_grad()
    def reset(self):
        init.zeros_(self.log_normalizer)
        init.zeros_(self.normalized)


def draw_noise(seeds, draws, rows):
    """(N, draws) numbers below `rows`, evenly and with replacement, of each of N seeds."""
    return (uniform(seeds, draws).double() * rows).long()
