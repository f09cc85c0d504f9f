import copy
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import MethodTester

from hf_ssl import Word2VecConfig, Word2VecForPreTraining
from hf_ssl.methods._words import alias_table, huffman_paths, keep_probability, noise_distribution
from hf_ssl.training.word_updates import BlockUpdates, choose_updates

VARIANTS = [
    dict(architecture=architecture, objective=objective, shared_negatives=0)
    for architecture in ("skip_gram", "cbow")
    for objective in ("negative_sampling", "hierarchical_softmax")
]


class TestSkipGram(MethodTester):
    model_class = Word2VecForPreTraining
    config = dict(backbone_config=dict(model_type="ssl_word_vectors", vocab_size=12, hidden_size=8))
    chance_loss = 4 * 6 * math.log(2)  # four contexts, one positive and five negatives each

    def batch(self, seed=0):
        """Words 1 to 5 stand among each other, and 6 to 11."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(1, 12, (16,), generator=generator)
        low = labels <= 5
        near = torch.randint(0, 5, (16, 4), generator=generator)
        input_ids = torch.where(low[:, None], 1 + near, 6 + near)
        draws = dict(generator=generator, size=(16, self.predictors, 5))
        return dict(input_ids=input_ids, labels=labels, negatives=torch.randint(1, 12, **draws))

    predictors = 4
    random_arguments = ("negatives",)
    has_blocks = False
    brings_its_code = True

    def model(self, seed=0):
        model = super().model(seed)
        with torch.no_grad():  # they begin at 0, and then the first step moves nothing else
            model.output_embeddings.weight.normal_(std=0.1)
            model.counts.copy_(torch.tensor([0, *range(30, 8, -2)]))
        return model

    @pytest.mark.parametrize(
        "change", [{"architecture": "skipgram"}, {"objective": "nce"}, {"window": 0}, {"subsampling": -1.0}]
    )
    def test_impossible_configs_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            Word2VecConfig(**change)


class TestCBOW(TestSkipGram):
    config = TestSkipGram.config | dict(architecture="cbow")
    chance_loss = 6 * math.log(2)
    predictors = 1


class TestHierarchicalSoftmax(TestSkipGram):
    config = TestSkipGram.config | dict(objective="hierarchical_softmax")
    chance_loss = 4 * 3.3 * math.log(2)  # the mean path is 3.3 turns long


class TestSoftmax(TestSkipGram):
    config = TestSkipGram.config | dict(objective="softmax")
    chance_loss = 4 * math.log(11)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_loop(model, ids, rate, reaches, predictions, sigmoid=sigmoid):
    """word2vec.c's TrainModelThread in NumPy, in float64.

    reaches: of each word's window; predictions: a function of a word that yields (row, label) pairs.
    """
    inputs, outputs = (
        table.weight.detach().double().numpy() for table in (model.words.embeddings, model.output_embeddings)
    )

    def predict(x, word):
        error = np.zeros_like(x)
        for row, label in predictions(word):
            step = rate * (label - sigmoid(outputs[row] @ x))
            error += step * outputs[row]
            outputs[row] += step * x
        return error

    for i, word in enumerate(ids):
        around = [ids[j] for j in range(max(0, i - reaches[i]), min(len(ids), i + reaches[i] + 1)) if j != i]
        if model.config.architecture == "cbow":
            error = predict(np.mean([inputs[c] for c in around], 0), word)
            for c in around:
                inputs[c] += error
        else:
            for c in around:
                inputs[c] += predict(inputs[c], word)
    return inputs, outputs


def tree(counts):
    offsets, nodes, labels = (part.tolist() for part in huffman_paths(counts))
    return lambda word: [(nodes[i], labels[i]) for i in range(offsets[word], offsets[word + 1])]


def tables(variant, width=8, seed=0, counts=(0, 9, 7, 5, 3, 2)):
    torch.manual_seed(seed)
    sizes = dict(model_type="ssl_word_vectors", vocab_size=len(counts), hidden_size=width)
    model = Word2VecForPreTraining(Word2VecConfig(backbone_config=sizes, subsampling=0.0, **variant))
    with torch.no_grad():
        model.counts.copy_(torch.tensor(counts))
        model.words.embeddings.weight[1:].normal_()
        model.output_embeddings.weight.normal_()
    return model


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v['architecture']}-{v['objective']}")
class TestUpdates:
    @pytest.mark.parametrize("places", [100, 10**7], ids=["table", "alias"])
    def test_compiled_loop_equals_word2vec_c(self, variant, places, monkeypatch):
        """On the same draws: those of its linear congruential generator; of many words by the alias method."""
        monkeypatch.setattr("hf_ssl.training.word_updates.PLACES", places)
        model = tables(variant)
        ids, seed, rate = torch.randint(1, 6, (40,)), 12345, 0.05
        updates = choose_updates(model)
        random, reaches, drawn = seed, [], []

        def draw():
            nonlocal random
            random = (random * 25214903917 + 11) % 2**64
            return random

        def negative():
            place = (draw() >> 16) % len(updates.noise)
            if len(updates.own) and (draw() >> 40) / 2**24 < updates.own[place]:
                return place
            return int(updates.noise[place])

        paths = tree(model.counts)

        def predictions(word):
            if variant["objective"] == "hierarchical_softmax":
                return paths(word)
            drawn[:] = [negative() for _ in range(5)]
            return [(word, 1.0), *((row, 0.0) for row in drawn if row != word)]

        class Reaches:  # the window of a word is drawn before its negatives
            def __getitem__(self, i):
                if len(reaches) == i:
                    reaches.append(5 - draw() % 5)
                return reaches[i]

        expected = slow_loop(copy.deepcopy(model), ids.tolist(), rate, Reaches(), predictions)
        arrays = (updates.inputs.numpy(), updates.outputs.numpy(), updates.noise.numpy(), updates.own.numpy())
        lines = np.zeros(40, np.int64)
        updates.loop(ids.numpy(), lines, *arrays, *updates.paths, rate, rate, 5, 5, seed)
        for found, wanted in zip(arrays, expected, strict=False):
            np.testing.assert_allclose(found, wanted, atol=2e-5)

    def test_a_step_on_the_loss_is_the_update(self, variant):
        """Autograd through `forward` against word2vec.c's loop, for one prediction."""
        model = tables(variant)
        word, contexts = 3, [1, 2, 4, 5] if variant["architecture"] == "cbow" else [2]
        negatives = torch.tensor([[[1, 4, 5]]])  # all different: the loop moves a row at once, autograd afterwards
        paths = tree(model.counts)
        if variant["objective"] == "hierarchical_softmax":
            predictions = paths
        else:
            predictions = lambda word: [(word, 1.0), (1, 0.0), (4, 0.0), (5, 0.0)]  # noqa: E731
        before = [model.words.embeddings.weight.clone(), model.output_embeddings.weight.clone()]
        model(torch.tensor([contexts]), torch.tensor([word]), negatives=negatives).loss.backward()
        text, reaches = [*contexts[: len(contexts) // 2], word, *contexts[len(contexts) // 2 :]], [0] * 5
        reaches[len(contexts) // 2] = 2
        quiet = lambda w: predictions(w) if w == word else []  # noqa: E731 (only the word in the middle is predicted)
        if variant["architecture"] == "cbow":  # the mean of no words is not asked for
            reaches = [1] * 5
            reaches[2] = 2
        after = slow_loop(model, text, 0.1, reaches, quiet)
        for table, start, end in zip((model.words.embeddings, model.output_embeddings), before, after, strict=True):
            np.testing.assert_allclose((start - 0.1 * table.weight.grad).detach(), end, atol=1e-5)

    def test_equals_gensim(self, variant):
        """Recorded from gensim 4.4.0: one line, window 1, rate 0.1, two negatives; the vector of "a" after it.

        Its sigmoid is read from a table of 1000 places, and its Huffman tree is another one where counts are equal.
        Inputs began as sin(0), sin(1) ..., outputs as cos.
        """
        letters = {"a": 1, "b": 2, "d": 3, "c": 4, "e": 5}
        ids = [letters[letter] for letter in "abcadbaecabd"]
        model = tables(variant, width=4, counts=(0, 4, 3, 2, 2, 1))
        with torch.no_grad():
            model.words.embeddings.weight[1:] = torch.arange(20.0).sin().view(5, 4)
            model.output_embeddings.weight[1:] = torch.arange(20.0).cos().view(5, 4)
        if variant["objective"] == "hierarchical_softmax":
            paths = {1: "3+ 2+", 2: "3- 1+", 3: "3+ 2- 0+", 4: "3- 1-", 5: "3+ 2- 0-"}  # + for code 1, label 0
            predictions = lambda word: [(1 + int(n), float(c == "-")) for n, c in paths[word].split()]  # noqa: E731
        else:
            bounds = [641291060, 1158125127, 1539439073, 1920753018, 2147483647]  # its cum_table
            source = np.random.RandomState(3)
            random = 2**24 * int(source.randint(0, 2**24)) + int(source.randint(0, 2**24))

            def predictions(word):
                nonlocal random
                rows = []
                for _ in range(2):
                    rows.append(1 + int(np.searchsorted(bounds, (random >> 16) % bounds[-1])))
                    random = (random * 25214903917 + 11) & 281474976710655
                return [(word, 1.0), *((row, 0.0) for row in rows if row != word)]

        place = lambda x: (int((x + 6) * 83) / 1000 * 2 - 1) * 6  # noqa: E731 (1000 / 6 / 2 in whole numbers)
        inputs, _ = slow_loop(model, ids, 0.1, [1] * 12, predictions, lambda x: sigmoid(place(x)))
        np.testing.assert_allclose(inputs[1], GENSIM[variant["architecture"], variant["objective"]], atol=2e-6)


GENSIM = {
    ("skip_gram", "hierarchical_softmax"): [0.109323, 0.704763, 0.652247, 0.000058],
    ("skip_gram", "negative_sampling"): [-0.172174, 0.728037, 0.958894, 0.308148],
    ("cbow", "hierarchical_softmax"): [0.167541, 0.82752, 0.72668, -0.042266],
    ("cbow", "negative_sampling"): [-0.162441, 0.762982, 0.986923, 0.303492],
}


def test_a_block_equals_a_slow_formula():
    """Skip-gram with 3 negatives shared by the block, each counting 5/3: pair by pair."""
    model = tables(dict(shared_negatives=3))
    ids, lines = torch.randint(1, 6, (20,)), torch.tensor([0] * 12 + [1] * 8)
    updates = BlockUpdates(model)
    inputs, outputs = updates.inputs.double().numpy().copy(), updates.outputs.double().numpy().copy()
    steps = list(updates.steps(ids, lines, 0, 20, torch.Generator().manual_seed(7)))
    assert len(steps) == 1
    reaches = torch.randint(1, 6, (2, 16, 1), generator=(generator := torch.Generator().manual_seed(7))).flatten()
    negatives = updates.noise[torch.randint(len(updates.noise), (2, 3), generator=generator)]
    moved = [np.zeros_like(inputs), np.zeros_like(outputs)]
    for i in range(20):
        for j in range(max(0, i - int(reaches[i])), min(20, i + int(reaches[i]) + 1)):
            if i == j or lines[i] != lines[j]:
                continue
            c, pairs = int(ids[j]), [(int(ids[i]), 1.0, 1.0)]
            pairs += [(int(n), 0.0, 5 / 3) for n in negatives[i // 16] if n != ids[i]]
            for row, label, weight in pairs:
                step = 0.1 * weight * (label - 1 / (1 + math.exp(-outputs[row] @ inputs[c])))
                moved[0][c] += step * outputs[row]
                moved[1][row] += step * inputs[c]
    for contexts, rows, positive, weight in steps:
        updates.step(contexts, rows, positive.mul(0.1), weight.mul(-0.1))
    np.testing.assert_allclose(updates.inputs.numpy(), inputs + moved[0], atol=1e-5)
    np.testing.assert_allclose(updates.outputs.numpy(), outputs + moved[1], atol=1e-5)


def test_counts_decide_what_is_kept_and_drawn():
    """RECIPES: at f = 0.01 the code keeps 0.416, the paper's formula 0.316; at 0.05 0.161 and 0.141."""
    counts = torch.tensor([0, 100, 500, 9400])
    assert keep_probability(counts, 1e-3).tolist()[1:3] == pytest.approx([0.416, 0.161], abs=5e-4)
    assert keep_probability(counts, 1e-3, "paper").tolist()[1:3] == pytest.approx([0.316, 0.141], abs=5e-4)
    assert keep_probability(counts, 0.0).tolist() == [1, 1, 1, 1]
    noise = noise_distribution(counts, 0.75)
    assert noise[0] == 0 and (noise[1] / noise[2]).item() == pytest.approx(0.2**0.75)


def test_negatives_of_many_words_are_drawn_as_they_should():
    """A table of 4 million places is 3% off for a million words."""
    counts = (1e7 / torch.arange(1, 60_002)).long() * (torch.arange(60_001) % 7 != 0)
    noise = noise_distribution(counts, 0.75)
    own, other = alias_table(noise)
    drawn = own.double().index_add(0, other, 1 - own.double()) / len(counts)
    torch.testing.assert_close(drawn, noise, rtol=2e-4, atol=1e-12)
    assert not drawn[counts == 0].any()
    updates = BlockUpdates(tables(dict(shared_negatives=3), counts=counts.tolist()))
    sample = updates.draw_noise((500_000,), torch.Generator().manual_seed(0))
    found = torch.bincount(sample, minlength=len(counts))[1:10] / 500_000
    torch.testing.assert_close(found, noise[1:10].float(), rtol=0.1, atol=0)


def test_huffman_codes_are_optimal_and_free_of_prefixes():
    counts = torch.tensor([0, 40, 20, 20, 10, 5, 5])
    offsets, nodes, labels = huffman_paths(counts)
    lengths = offsets[1:] - offsets[:-1]
    assert lengths[0] == 0
    codes = {tuple(reversed(labels[offsets[w] : offsets[w + 1]].tolist())) for w in range(1, 7)}
    assert len(codes) == 6 and not any(a != b and b[: len(a)] == a for a in codes for b in codes)
    assert sum(2.0 ** -len(code) for code in codes) == 1 and int(nodes.max()) == 4
    import heapq

    heap, cost = counts[1:].tolist(), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    assert int((lengths * counts).sum()) == cost
