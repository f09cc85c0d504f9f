"""Which row of a bank of unit vectors is a query's own? The banks of instance discrimination, PIRL and CMC."""

import torch

from ._base import PretextLine
from ._contrastive import bank_cross_entropy
from ._information import information_bound
from ._noise_contrastive import draw_noise
from ._random import NOISE_ROWS_STREAM, fold_in


def check_bank(config, losses):
    """Raises ValueError unless `loss`, one of `losses`, `temperature` and `bank_momentum` of a config can be."""
    if config.loss not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}, found '{config.loss}'.")
    config.check_positive("temperature")
    if not 0 <= config.bank_momentum < 1:
        raise ValueError(f"bank_momentum must lie in [0, 1), found {config.bank_momentum}.")


def own_row_loss(queries, bank, indices, temperature, noise_contrastive_loss=None, noise=None):
    """(loss, metrics) of queries (N, P), whose own rows of the bank, (n, P), are `indices`, (N,) int64.

    By `noise_contrastive_loss` against `noise`, (N, m) rows of the bank: the metrics are the mean probability that the own
    row is not noise, and that of ignorance. Without it by a softmax over the whole bank: they are bounds of the mutual
    information.
    """
    if noise_contrastive_loss is None:
        loss = bank_cross_entropy(queries, bank, indices, temperature)
        return loss, information_bound(loss, len(bank))
    keys = bank[indices].to(queries.dtype)
    loss, recognized = noise_contrastive_loss(queries, keys, bank, noise)
    return loss, {"recognized": recognized, "chance": loss.new_full((), 1 / (1 + noise.shape[1]))}


def draw_noise_rows(indices, seeds, draws, rows):
    """(N, draws) rows of a bank of `rows`, evenly, with replacement: of `seeds`, (N,) int64, or afresh without them."""
    if seeds is None:
        seeds = torch.randint(2**62, indices.shape, device=indices.device)
    return draw_noise(fold_in(seeds, NOISE_ROWS_STREAM), draws, rows)


def recognition_lines(name, shown, images, logits, indices):
    """Two lines of a picture: what is shown to the model, above each at which place its own row stands among all, and of
    the other images here the one whose row is nearest. logits: (N, n). indices: (N,), the own rows."""
    own = logits.gather(1, indices[:, None])
    places = (logits > own).sum(1) + 1
    others = logits[:, indices].fill_diagonal_(-torch.inf)
    captions = [f"place {place:,}" for place in places.tolist()]
    return [
        PretextLine(name, shown, places == 1, captions),
        PretextLine("most like it", images[others.argmax(1)]),
    ]
