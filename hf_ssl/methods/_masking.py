"""Hidden tokens: how many of a row, which, and what stands in their place."""

import torch

from ._random import HIDDEN_ACTIONS_STREAM, HIDDEN_POSITIONS_STREAM, HIDDEN_WORDS_STREAM, fold_in, uniform


def mask_tokens(
    input_ids, maskable, lengths, seeds, *, probability, most, mask_id, vocab_size, masked=0.8, random=0.1
):
    """Hide exactly min(most, max(1, round(probability x length))) tokens of each row, as far as it has so many maskable.

    input_ids, maskable: (N, L). lengths: (N,), the tokens that a row counts. seeds: (N,) int64; a row's draws follow from
    its own alone, whatever it is padded to. A hidden token becomes `mask_id` with probability `masked`, any of the
    `vocab_size` words with `random`, and stays what it is otherwise.

    Returns the corrupted (N, L), and P slots a row, as many as its padded length may need: positions, original tokens and
    whether the slot is used, each (N, P). The counts never leave the device.
    """
    length = input_ids.shape[1]
    slots = min(most, max(1, round(probability * length)))  # P
    counts = (probability * lengths.double()).round().clamp(1, most).long()  # rounded as Python does in the original
    counts = torch.minimum(counts, maskable.sum(1))

    order = uniform(fold_in(seeds, HIDDEN_POSITIONS_STREAM), length).masked_fill(~maskable, 2.0)
    positions = order.topk(slots, largest=False).indices  # (N, P), a row's `counts` smallest first
    used = torch.arange(slots, device=input_ids.device) < counts[:, None]

    originals = input_ids.gather(1, positions)
    action = uniform(fold_in(seeds, HIDDEN_ACTIONS_STREAM), length).gather(1, positions)
    words = (uniform(fold_in(seeds, HIDDEN_WORDS_STREAM), length).gather(1, positions) * vocab_size).long()
    replaced = originals.where(action >= masked + random, words).masked_fill(action < masked, mask_id)
    return input_ids.scatter(1, positions, replaced.where(used, originals)), positions, originals, used
