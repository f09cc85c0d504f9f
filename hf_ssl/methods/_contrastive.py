"""Contrastive cross-entropies: which of many candidates is the other view of the same image?

All embeddings are rows of unit length. The losses are computed in float32, but where it is said.
"""

import torch
import torch.nn.functional as F

from ._distributed import gather, gather_with_gradient, rank

CHUNK = 4096  # rows of a queue that are scored at a time
SCORES = 2**20  # similarities of pairs that are held at a time
SHARPEST = 0.03  # temperatures below could underflow exp(-2 / temperature)


def queue_logits(queries, keys, queue, temperature):
    """(N, 1 + K): each query's similarity to its own key first, then to every row of the queue."""
    positive = (queries * keys).sum(1, keepdim=True)
    return torch.cat([positive, queries @ queue.T], dim=1) / temperature


def queue_cross_entropy(queries, keys, queue, temperature):
    """Mean cross-entropy of `queue_logits` with the own key as the target, without its N x K temporaries.

    queries: (N, P), the only ones that get a gradient. keys: (N, P). queue: (K, P). Under bfloat16 autocast the products
    are made in bfloat16, exponentials and sums in float32; the exponentials do not fit in float16.
    """
    dtype = _product_dtype(queries)
    with torch.autocast(queries.device.type, enabled=False):
        if temperature < SHARPEST:
            # a copy of the queue, which will have moved on at the backward
            logits = queue_logits(queries, keys, queue.clone(), temperature)
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        return _QueueCrossEntropy.apply(queries, keys, queue, False, temperature, dtype)


def bank_cross_entropy(queries, bank, indices, temperature):
    """Mean cross-entropy of each query's similarities to all rows of a bank, with row `indices` as the target, in one pass
    as `queue_cross_entropy`.

    queries: (N, P), the only ones that get a gradient. bank: (K, P). indices: (N,) int64.
    """
    dtype = _product_dtype(queries)
    with torch.autocast(queries.device.type, enabled=False):
        if temperature < SHARPEST:
            return F.cross_entropy(queries @ bank.to(queries.dtype, copy=True).T / temperature, indices)
        keys = bank[indices].to(queries.dtype)
        return _QueueCrossEntropy.apply(queries, keys, bank, True, temperature, dtype)


def _product_dtype(queries):
    """bfloat16 within its autocast, else that of the queries."""
    device = queries.device.type
    brief = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if brief else queries.dtype


class _QueueCrossEntropy(torch.autograd.Function):
    """One pass over the queue, loss and gradient together. Similarities are at most 1, so the largest logit is known in
    advance: exp((s - 1) / temperature) cannot overflow and needs no second pass. holds_keys: whether the keys are rows of
    the queue, which count once."""

    @staticmethod
    def forward(ctx, queries, keys, queue, holds_keys, temperature, dtype):
        own = (queries * keys).sum(1)  # (N,)
        if holds_keys:
            total, weighted = torch.zeros_like(own), torch.zeros_like(queries)  # (N,), (N, P)
        else:
            own_weight = ((own - 1) / temperature).exp()
            total, weighted = own_weight.clone(), own_weight[:, None] * keys
        scaled = (queries / temperature).to(dtype)
        for rows in queue.split(CHUNK):
            rows = rows.to(dtype)
            # in bfloat16 the shift itself would be rounded, by 0.2% of it, and all negatives weighed too little or too much
            weights = (scaled @ rows.T).to(queries.dtype).sub_(1 / temperature).exp_()  # (N, CHUNK)
            total += weights.sum(1)
            weighted += weights.to(dtype) @ rows
        # d loss / d query = (expected candidate - own key) / temperature
        ctx.save_for_backward((weighted / total[:, None] - keys) / (temperature * len(queries)))
        return (total.log() + (1 - own) / temperature).mean()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] * gradient, None, None, None, None, None


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


def pair_cross_entropy(queries, keys, logit_scale, labels=None):
    """InfoNCE in both directions over the pairs of all processes, row i of `queries` and of `keys` being a pair: the mean of
    this process's queries among all keys and of its keys among all queries, each pair of all processes counted once.

    queries, keys: (N, P) float32. logit_scale: scalar, the inverse temperature. All three get a gradient; averaged over
    processes, as DDP does, it is that of one process with the whole batch. labels: (N,) int64 or None; pairs with the same
    label are not negatives of each other. Memory is O(SCORES + W N P) with W processes: no N x W N matrix is kept.
    """
    with torch.autocast(queries.device.type, enabled=False):
        keys = gather_with_gradient(keys)  # (W N, P)
        everyones = None if labels is None else gather(labels)
        return _PairCrossEntropy.apply(queries, keys, logit_scale, labels, everyones, torch.is_grad_enabled())


class _PairCrossEntropy(torch.autograd.Function):
    """Two passes over chunks of queries, since the gradient of a score needs the sums of its row and of its column: first
    the sums, those of columns over all processes, then loss and gradient together.

    Each process has its rows of the matrix of scores: its queries against everyone's keys. Nothing else is sent than the
    keys, one log-sum for each column, and back the keys' gradient.
    """

    @staticmethod
    def forward(ctx, queries, keys, logit_scale, labels, everyones_labels, with_gradient):
        n = len(queries)
        first = rank() * n  # of the columns that hold the own keys
        chunk = max(1, SCORES // len(keys))
        starts = range(0, n, chunk)
        scaled = queries * logit_scale

        def score(start):
            scores = scaled[start : start + chunk] @ keys.T  # (chunk, W N)
            if labels is not None:
                same = labels[start : start + chunk, None] == everyones_labels
                same.diagonal(first + start).fill_(False)
                scores.masked_fill_(same, -torch.inf)
            return scores

        rows, columns = scaled.new_empty(n), scaled.new_full((len(keys),), -torch.inf)  # their log-sums
        for start in starts:
            scores = score(start)
            rows[start : start + chunk] = scores.logsumexp(1)
            columns = torch.logaddexp(columns, scores.logsumexp(0))
        columns = gather(columns[None]).logsumexp(0)

        own = slice(first, first + n)
        loss = (rows + columns[own]).mean() / 2 - (scaled * keys[own]).sum(1).mean()
        if with_gradient:
            # d loss / d score = (p(column | row) + p(row | column) - 2 for the pair itself) / 2 N
            pulled, keys_gradient = torch.empty_like(queries), torch.zeros_like(keys)
            for start in starts:
                if len(starts) > 1:
                    scores = score(start)
                part = slice(start, start + chunk)
                gradient = (scores - rows[part, None]).exp_().add_(scores.sub_(columns).exp_())
                gradient.diagonal(first + start).sub_(2)
                torch.mm(gradient, keys, out=pulled[part])
                keys_gradient.addmm_(gradient.T, scaled[part])
            ctx.save_for_backward(
                pulled * (logit_scale / (2 * n)), keys_gradient / (2 * n), (pulled * queries).sum() / (2 * n)
            )
        return loss

    @staticmethod
    def backward(ctx, gradient):
        return *(saved * gradient for saved in ctx.saved_tensors), None, None, None
