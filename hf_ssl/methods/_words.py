"""What word2vec makes of word counts: which words are kept, which are drawn as negatives, and the tree of its softmax."""

import torch

FORMULAS = ("code", "paper")


def keep_probability(counts, threshold, formula="code"):
    """How likely an occurrence of each word survives the subsampling of frequent words: (V,) counts to (V,) in [0, 1].

    With f the word's share of the text and t the threshold: "code" is word2vec.c's (sqrt(f / t) + 1) t / f, "paper"
    equation 5's sqrt(t / f). A threshold of 0 keeps everything.
    """
    if threshold == 0:
        return torch.ones(len(counts), device=counts.device)
    ratio = threshold * counts.sum() / counts.clamp(min=1).double()  # t / f
    kept = ratio.sqrt() + ratio if formula == "code" else ratio.sqrt()
    return kept.clamp(max=1).float()


def noise_distribution(counts, exponent):
    """The distribution that negatives are drawn from: counts ** exponent, (V,) float64. What has no count is not drawn."""
    weights = torch.where(counts > 0, counts.double() ** exponent, 0.0)
    return weights / weights.sum()


def alias_table(distribution):
    """Walker's alias method, by which a draw from V words takes two numbers: (own (V,) float32, other (V,) int64).

    Draw a word w evenly, and u evenly from [0, 1): it is w if u < own[w], else other[w].
    """
    scaled = (distribution * len(distribution)).tolist()
    own, other = [float(share > 0) for share in scaled], [int(distribution.argmax())] * len(scaled)
    small, large = [w for w, s in enumerate(scaled) if s < 1], [w for w, s in enumerate(scaled) if s >= 1]
    while small and large:
        word, giver = small.pop(), large[-1]
        own[word], other[word] = scaled[word], giver
        scaled[giver] -= 1 - scaled[word]
        if scaled[giver] < 1:
            small.append(large.pop())
    return torch.tensor(own), torch.tensor(other)


def huffman_paths(counts):
    """The binary tree in which frequent words are near the root: (offsets, nodes, labels).

    counts: (V,), word 0 unused, the others in falling order. The path of word w from its leaf to the root passes the
    inner nodes nodes[offsets[w] : offsets[w + 1]], and labels, 1 or 0, says for each where the path comes from: 1 for the
    child that was merged first, as in word2vec.c, whose code bit is 1 - label. There are V - 2 inner nodes.
    """
    leaves = len(counts) - 1
    weight = [*counts[1:].tolist(), *[0] * (leaves - 1)]
    parent, label = [0] * (2 * leaves - 1), [0.0] * (2 * leaves - 1)
    leaf, inner = leaves - 1, leaves  # the lightest of each kind that is not merged yet
    for new in range(leaves, 2 * leaves - 1):
        for first in (1.0, 0.0):
            if leaf >= 0 and (inner >= new or weight[leaf] < weight[inner]):
                child, leaf = leaf, leaf - 1
            else:
                child, inner = inner, inner + 1
            weight[new] += weight[child]
            parent[child], label[child] = new, first
    parent, label, root = torch.tensor(parent), torch.tensor(label), 2 * leaves - 2

    word, at = torch.arange(leaves), torch.arange(leaves)
    words, nodes, labels = [], [], []
    while len(word := word[at != root]):  # all paths together, a level at a time
        at = at[at != root]
        words.append(word)
        labels.append(label[at])
        at = parent[at]
        nodes.append(at - leaves)
    words = torch.cat(words) if words else torch.zeros(0, dtype=torch.int64)
    order = words.argsort(stable=True)
    lengths = torch.bincount(words + 1, minlength=leaves + 1)  # word 0 has no path
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    if not len(words):
        return offsets, words, torch.zeros(0)
    return offsets, torch.cat(nodes)[order], torch.cat(labels)[order]


__all__ = ["FORMULAS", "alias_table", "huffman_paths", "keep_probability", "noise_distribution"]
