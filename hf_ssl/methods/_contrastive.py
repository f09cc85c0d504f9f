"""Contrastive cross-entropies: which of many candidates is the other view of the same image?

All embeddings are rows of unit length. Both losses are computed in float32, but where it is said.
"""

import torch
import torch.nn.functional as F

from ._distributed import gather_with_gradient, rank

CHUNK = 4096  # rows of a queue that are scored at a time
SHARPEST = 0.03  # temperatures below could underflow exp(-2 / temperature)


def queue_logits(queries, keys, queue, temperature):
    """(N, 1 + K): each query's similarity to its own key first, then to every row of the queue."""
    positive = (queries * keys).sum(1, keepdim=True)
    return torch.cat([positive, queries @ queue.T], dim=1) / temperature


def queue_cross_entropy(queries, keys, queue, temperature):
    """Mean cross-entropy of `queue_logits` with the own key as the target, without its N x K temporaries.

    queries: (N, P), the only ones that get a gradient. keys: (N, P). queue: (K, P). Under bfloat16 autocast the products
    are made in bfloat16, the sums in float32; the exponentials do not fit in float16.
    """
    device = queries.device.type
    brief = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    with torch.autocast(device, enabled=False):
        if temperature < SHARPEST:
            logits = queue_logits(
                queries, keys, queue.clone(), temperature
            )  # which will have moved on at the backward
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        return _QueueCrossEntropy.apply(queries, keys, queue, temperature, torch.bfloat16 if brief else queries.dtype)


class _QueueCrossEntropy(torch.autograd.Function):
    """One pass over the queue, loss and gradient together. Similarities are at most 1, so the largest logit is known in
    advance: exp((s - 1) / temperature) cannot overflow and needs no second pass."""

    @staticmethod
    def forward(ctx, queries, keys, queue, temperature, dtype):
        own = (queries * keys).sum(1)  # (N,)
        own_weight = ((own - 1) / temperature).exp()
        total, weighted = own_weight.clone(), own_weight[:, None] * keys  # (N,), (N, P)
        scaled = (queries / temperature).to(dtype)
        for rows in queue.split(CHUNK):
            rows = rows.to(dtype)
            weights = (scaled @ rows.T).sub_(1 / temperature).exp_()  # (N, CHUNK)
            total += weights.sum(1, dtype=total.dtype)
            weighted += weights @ rows
        # d loss / d query = (expected candidate - own key) / temperature
        ctx.save_for_backward((weighted / total[:, None] - keys) / (temperature * len(queries)))
        return (total.log() + (1 - own) / temperature).mean()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] * gradient, None, None, None, None


def nt_xent(projections, projections_2, temperature):
    """NT-Xent over both views of all processes, with gradient to all of them: (mean loss of this process's rows, logits).

    projections, projections_2: (N, P), row i of both being views of one image. logits: (2 N, 2 N W), a row's similarity to
    everything but itself; the order of the columns is process by process, first views before second.
    """
    with torch.autocast(projections.device.type, enabled=False):
        own = torch.cat([projections, projections_2])  # (2 N, P)
        logits = own @ gather_with_gradient(own).T / temperature
    first = rank() * len(own)
    logits.diagonal(first).fill_(-torch.inf)
    other_view = first + torch.arange(len(own), device=own.device).roll(len(projections))
    return F.cross_entropy(logits, other_view), logits
