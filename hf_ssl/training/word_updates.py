"""word2vec's updates without autograd: what a step of SGD on `Word2VecForPreTraining`'s loss does, many steps a call.

Two ways, both in place on the two tables, so that several processes that share them can work on different parts of the
text at once.

`BlockUpdates` is for skip-gram with negative sampling: 16 consecutive words and the negatives that they share meet all
their contexts in three small matrix products. 256 words a step read the tables as they were before it: more words a step
are faster and give worse vectors. `CompiledUpdates` is word2vec.c's loop, prediction after prediction, compiled by numba,
for everything else. Both compute the sigmoid where word2vec.c cuts it off at |x| = 6: its negative sampling rounds it to
0 or 1 there, its hierarchical softmax skips the update.
"""

from functools import cache

import numpy as np
import torch

from ..errors import InputError
from ..methods._words import alias_table, huffman_paths, keep_probability, noise_distribution

BLOCK, BLOCKS_A_STEP, STEPS_PREPARED = 16, 16, 16
CROWDED = 8  # times that a word may stand in a step, else its updates, which do not see each other, add up to too much
NOISE_TABLE = 4_000_000  # draws are indices of a table in which each word stands as often as it is likely
PLACES = 100  # of the table for each word, else it is too coarse and the draws are those of an alias table


class Updates:
    """Call it with a part of a text to train on it. model: a Word2VecForPreTraining whose two tables are changed."""

    def __init__(self, model):
        config = model.config
        self.config, self.window = config, config.window
        self.inputs, self.outputs = model.words.embeddings.weight.data, model.output_embeddings.weight.data
        self.keep = keep_probability(model.counts, config.subsampling, config.subsampling_formula)
        # a draw is noise[place], or, where there is `own`, the place itself if another draw is below own[place]
        shares, self.own = noise_distribution(model.counts, config.noise_exponent), torch.zeros(0)
        if PLACES * len(shares) > NOISE_TABLE:
            self.own, self.noise = alias_table(shares)
        else:
            places = (shares * NOISE_TABLE).round().long().clamp(min=1)
            self.noise = torch.repeat_interleave(places * (model.counts > 0))

    def __call__(self, ids, first_rate, last_rate, seed):
        """ids: (n,) int64 with a 0 after each line. The rate falls evenly from the one to the other."""
        generator = torch.Generator().manual_seed(seed)
        lines = (ids == 0).cumsum(0)
        draws = torch.rand(len(ids), generator=generator).to(ids.device)
        kept = (ids != 0) & (draws < self.keep.to(ids.device)[ids])
        ids, lines = ids[kept], lines[kept]
        if len(ids):
            self.update(ids, lines, first_rate, last_rate, generator)

    def update(self, ids, lines, first_rate, last_rate, generator):
        raise NotImplementedError

    def draw_noise(self, shape, generator):
        """Words as negatives, (*shape,) int64."""
        places = torch.randint(len(self.noise), shape, generator=generator).to(self.noise.device)
        if not len(self.own):
            return self.noise[places]
        draws = torch.rand(shape, generator=generator).to(self.own.device)
        return torch.where(draws < self.own[places], places, self.noise[places])


class BlockUpdates(Updates):
    def update(self, ids, lines, first_rate, last_rate, generator):
        """A slab of STEPS_PREPARED steps is prepared together, as its masks do not depend on the tables."""
        slab = BLOCK * BLOCKS_A_STEP * STEPS_PREPARED
        for start in range(0, len(ids), slab):
            rate = first_rate + (last_rate - first_rate) * start / len(ids)
            for contexts, rows, positive, weight in self.steps(
                ids, lines, start, min(start + slab, len(ids)), generator
            ):
                self.step(contexts, rows, positive.mul_(rate), weight.mul_(-rate))

    def steps(self, ids, lines, start, stop, generator):
        """For each step (contexts, rows, positive, weight): of B blocks of T words the numbers of the C words around
        and of the T + K rows that they are compared with, both flat, and two (B, T + K, C): 1 where a context is to
        predict a row, and how much the pair counts."""
        window, negatives = self.window, self.config.shared_negatives
        width, device = BLOCK + 2 * window, ids.device
        blocks = -(-(stop - start) // BLOCK)
        around = torch.arange(start - window, start + blocks * BLOCK + window, device=device)
        inside = (around >= 0) & (around < len(ids))
        around = around.clamp(0, len(ids) - 1)
        words, line = ids[around], torch.where(inside, lines[around], -1)
        contexts = words.as_strided((blocks, width), (BLOCK, 1))
        context_lines = line.as_strided((blocks, 1, width), (BLOCK, BLOCK, 1))
        targets = words[window:-window].view(blocks, BLOCK)
        target_lines = line[window:-window].view(blocks, BLOCK, 1)
        own_window = torch.randint(1, window + 1, (blocks, BLOCK, 1), generator=generator).to(device)
        distance = torch.arange(width, device=device) - torch.arange(BLOCK, device=device)[:, None] - window
        distance = torch.where(distance == 0, window + 1, distance.abs())  # (T, C); no word is its own context
        pairs = (distance <= own_window) & (target_lines == context_lines) & (target_lines >= 0)
        pairs = pairs.to(self.inputs.dtype)  # (blocks, T, C)
        drawn = self.draw_noise((blocks, negatives), generator).to(device)
        # a negative that is the word to be predicted does not count
        other = (drawn[:, :, None] != targets[:, None]).to(pairs.dtype)  # (blocks, K, T)
        against = torch.bmm(other, pairs).mul_(self.config.negatives / negatives)  # (blocks, K, C)
        weight = torch.cat([pairs, against], 1)
        positive = torch.cat([pairs, torch.zeros_like(against)], 1)
        rows = torch.cat([targets, drawn], 1)
        for parts in zip(*(x.split(BLOCKS_A_STEP) for x in (contexts, rows, positive, weight)), strict=True):
            yield parts[0].reshape(-1), parts[1].reshape(-1), parts[2], parts[3]

    def step(self, contexts, rows, positive, weight):
        """positive, weight: (B, R, C), times the rate and minus the rate."""
        blocks, candidates, width = weight.shape
        x = self.inputs.index_select(0, contexts).view(blocks, width, -1)  # (B, C, D)
        y = self.outputs.index_select(0, rows).view(blocks, candidates, -1)  # (B, R, D)
        error = torch.bmm(y, x.transpose(1, 2)).sigmoid_().mul_(weight).add_(positive)  # (B, R, C)
        self.inputs.index_add_(0, contexts, torch.bmm(error.transpose(1, 2), y).flatten(0, 1))
        self.outputs.index_add_(0, rows, torch.bmm(error, x).flatten(0, 1))


class CompiledUpdates(Updates):
    def __init__(self, model):
        super().__init__(model)
        if self.inputs.device.type != "cpu":
            raise InputError(f"{_described(self.config)} runs on CPUs only, found device '{self.inputs.device}'.")
        self.loop = compiled_loop(self.inputs.shape[1], self.config.architecture == "cbow", self._hierarchical)
        self.paths = [part.numpy() for part in huffman_paths(model.counts)] if self._hierarchical else _NO_PATHS
        nothing = torch.zeros(0, dtype=torch.int64)
        self.update(nothing, nothing, 0.0, 0.0, torch.Generator())  # compiles it, once for all helpers

    @property
    def _hierarchical(self):
        return self.config.objective == "hierarchical_softmax"

    def update(self, ids, lines, first_rate, last_rate, generator):
        tables = (self.inputs.numpy(), self.outputs.numpy(), self.noise.numpy(), self.own.numpy())
        seed = int(torch.randint(2**62, (), generator=generator))
        draws = (self.window, self.config.negatives, seed)
        self.loop(ids.numpy(), lines.numpy(), *tables, *self.paths, first_rate, last_rate, *draws)


_NO_PATHS = (np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _described(config):
    return f"word2vec with architecture={config.architecture}, objective={config.objective}"


@cache
def compiled_loop(width, cbow, hierarchical):
    """word2vec.c's training loop for vectors of `width` numbers, which the compiler knows: twice as fast."""
    try:
        from numba import njit
    except ImportError as error:
        raise InputError(
            "CBOW, hierarchical softmax, shared_negatives=0 and texts of very few words are trained by compiled loops, for "
            'which numba was not found: pip install "hf_ssl[words]".'
        ) from error
    from numba import float32, uint64

    options = dict(fastmath=True, error_model="numpy")

    @njit(**options)
    def predict(x, row, label, outputs, rate, error):
        """One prediction: moves the row, and adds to `error` how the input is to move."""
        y = outputs[row]
        score = float32(0)
        for d in range(width):
            score += x[d] * y[d]
        step = (label - float32(1) / (float32(1) + np.exp(-score))) * rate
        for d in range(width):
            error[d] += step * y[d]
            y[d] += step * x[d]

    @njit(**options)
    def predictions(x, word, outputs, noise, own, offsets, nodes, turns, negatives, rate, error, random):
        """All predictions of one input; returns the state of the random numbers."""
        if hierarchical:
            for place in range(offsets[word], offsets[word + 1]):
                predict(x, nodes[place], turns[place], outputs, rate, error)
            return random
        predict(x, word, float32(1), outputs, rate, error)
        for _ in range(negatives):
            random = random * uint64(25214903917) + uint64(11)
            place = (random >> uint64(16)) % uint64(len(noise))
            drawn = noise[place]
            if len(own):
                random = random * uint64(25214903917) + uint64(11)
                if float32(random >> uint64(40)) * float32(2**-24) < own[place]:
                    drawn = np.int64(place)
            if drawn != word:  # not drawn again: fewer negatives then, as in the original
                predict(x, drawn, float32(0), outputs, rate, error)
        return random

    @njit(**options)
    def loop(
        ids, lines, inputs, outputs, noise, own, offsets, nodes, turns, first_rate, last_rate, window, negatives, seed
    ):
        error, mean = np.zeros(width, np.float32), np.zeros(width, np.float32)
        random = uint64(seed)
        for i in range(len(ids)):
            rate = float32(first_rate + (last_rate - first_rate) * i / len(ids))
            random = random * uint64(25214903917) + uint64(11)
            reach = window - int(random % uint64(window))
            first, end = i, i + 1  # the words of its line within reach
            while first > 0 and i - first < reach and lines[first - 1] == lines[i]:
                first -= 1
            while end < len(ids) and end - i <= reach and lines[end] == lines[i]:
                end += 1
            if end - first == 1:
                continue
            if cbow:
                mean[:], error[:] = 0, 0
                for j in range(first, end):
                    if j != i:
                        x = inputs[ids[j]]
                        for d in range(width):
                            mean[d] += x[d]
                share = float32(1) / float32(end - first - 1)
                for d in range(width):
                    mean[d] *= share
                random = predictions(
                    mean, ids[i], outputs, noise, own, offsets, nodes, turns, negatives, rate, error, random
                )
                for j in range(first, end):
                    if j != i:
                        x = inputs[ids[j]]
                        for d in range(width):
                            x[d] += error[d]
            else:
                for j in range(first, end):
                    if j != i:
                        x = inputs[ids[j]]
                        error[:] = 0
                        random = predictions(
                            x, ids[i], outputs, noise, own, offsets, nodes, turns, negatives, rate, error, random
                        )
                        for d in range(width):
                            x[d] += error[d]

    return loop


def choose_updates(model):
    config = model.config
    if config.objective == "softmax":
        raise InputError(
            "objective 'softmax' is for study, through Word2VecForPreTraining's forward: expected negative_sampling or "
            "hierarchical_softmax for training on a corpus."
        )
    blocks = config.architecture == "skip_gram" and config.objective == "negative_sampling" and config.shared_negatives
    kept = model.counts * keep_probability(model.counts, config.subsampling, config.subsampling_formula)
    crowded = kept.max() / kept.sum() * BLOCK * BLOCKS_A_STEP > CROWDED  # few words, or no subsampling
    return (BlockUpdates if blocks and not crowded else CompiledUpdates)(model)


__all__ = ["BlockUpdates", "CompiledUpdates", "choose_updates"]
