"""Contrastive predictive coding: from the context c_t at a time t, tell the encodings z_{t+1} ... z_{t+K} from others.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, sections 2.2 and 2.3. Of a sequence of T encodings the first
T - K contexts predict, since they have all K futures. A prediction is W_k c_t, its score with an encoding the dot product.
"""

import torch
from torch import nn
from transformers import initialization as init

from ._distributed import gather_with_gradient, rank
from ._random import uniform


class FuturePredictor(nn.Module):
    """W_1 ... W_K, as one matrix."""

    def __init__(self, context_size, encoding_size, steps):
        super().__init__()
        self.steps = steps
        self.linear = nn.Linear(context_size, steps * encoding_size, bias=False)

    def forward(self, contexts):
        """(N, T, C) to (N, T - K, K, D): [n, t, k - 1] predicts z_{t+k}."""
        return self.linear(contexts[:, : -self.steps]).unflatten(2, (self.steps, -1))

    @torch.no_grad()
    def draw_weights(self):
        """Scores begin near 0, the loss near that of ignorance."""
        init.normal_(self.linear.weight, std=(self.linear.in_features * self.linear.out_features / self.steps) ** -0.5)


def futures(encodings, steps):
    """(N, T, D) to (N, T - K, K, D): [n, t, k - 1] is z_{t+k}."""
    return encodings[:, 1:].unfold(1, steps, 1).transpose(2, 3)


def draw_negatives(allowed, length, count, seeds):
    """Places among the encodings of the batch of all processes, (A, length) flattened: (N, count), evenly from the
    sequences that a row of `allowed`, (N, A), allows. seeds: (N,) int64."""
    draws = uniform(seeds, 2 * count)
    choices = allowed.cumsum(1)  # (N, A): how many are allowed up to here
    chosen = (draws[:, :count] * choices[:, -1:]).long() + 1
    return torch.searchsorted(choices, chosen) * length + (draws[:, count:] * length).long()


def future_info_nce(predictions, encodings, negatives):
    """InfoNCE for each of the K steps: (losses (K,), how often the positive scores highest (K,), logits (N, T - K, K, 1 + M)).

    predictions: (N, T - K, K, D). encodings: (N, T, D), of this process. negatives: (N, M), places as `draw_negatives` gives
    them, which all predictions of a sequence share; where one is the positive itself, it does not count. The encodings
    of all processes receive gradients.
    """
    (count, length), (times, steps) = encodings.shape[:2], predictions.shape[1:3]
    everyones = gather_with_gradient(encodings.contiguous()).flatten(0, 1)  # (A T, D)
    others = everyones.index_select(0, negatives.flatten()).view(*negatives.shape, -1)  # (N, M, D)
    positive = (predictions * futures(encodings, steps)).sum(-1, dtype=torch.float32)  # (N, T - K, K)
    negative = torch.bmm(predictions.flatten(1, 2), others.transpose(1, 2)).float()  # (N, (T - K) K, M)

    device = negatives.device
    first = (rank() * count + torch.arange(count, device=device)) * length
    time = torch.arange(times, device=device)[:, None] + torch.arange(1, steps + 1, device=device)  # (T - K, K): t + k
    is_positive = (first[:, None] + time.flatten())[..., None] == negatives[:, None]  # (N, (T - K) K, M)
    negative = negative.masked_fill(is_positive, -torch.inf).view(count, times, steps, -1)
    logits = torch.cat([positive[..., None], negative], -1)
    losses = (logits.logsumexp(-1) - positive).mean((0, 1))
    hits = (positive > negative.amax(-1)).float().mean((0, 1))
    return losses, hits, logits


__all__ = ["FuturePredictor", "draw_negatives", "future_info_nce", "futures"]
