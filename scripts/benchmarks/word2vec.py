"""word2vec on two threads beside gensim's on two workers reading the same file: training, and from text to vectors."""

import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter

import torch
from accelerate.utils import gather_object

from hf_ssl import Word2VecConfig, Word2VecForPreTraining
from hf_ssl.data import load_split, text_rows
from hf_ssl.data.words import Corpus, split_words
from hf_ssl.evaluation.protocols.words import WordVectors, word_analogies, word_similarity
from hf_ssl.training.arguments import WordArguments
from hf_ssl.training.word_loop import train_words

from .timing import interleave, place, print_speed, verdict

HIERARCHICAL = dict(objective="hierarchical_softmax")
SIZES = {  # config, gensim's settings, rate, (training, end to end) that is demanded
    "skip-gram": ({}, dict(sg=1, negative=5), 0.025, (2.0, 1.5)),
    "cbow": (dict(architecture="cbow"), dict(sg=0, negative=5), 0.05, (0.8, None)),
    "skip-gram-hs": (HIERARCHICAL, dict(sg=1, hs=1, negative=0), 0.025, (0.8, None)),
    "cbow-hs": (HIERARCHICAL | dict(architecture="cbow"), dict(sg=0, hs=1, negative=0), 0.05, (0.8, None)),
}
TESTS = ("wordsim353.tsv", "simlex999.txt", "questions-words.txt")  # as gensim brings them


def compare(size, rounds, threads, text=None, epochs=1, quality=False):
    """text: a file with a sentence in each line, words between spaces; None: the embedded documents, prepared so."""
    with tempfile.TemporaryDirectory() as folder:
        if text is None:
            text = Path(folder) / "text.txt"
            lists = split_words(load_split(None, "train", sample="text").with_format("arrow")[:]["text"])
            text.write_text("\n".join(map(" ".join, lists.to_pylist())))
        config, settings, rate, (training, whole) = SIZES[size]
        runs = {
            "gensim": partial(gensim, Path(text), settings, rate, threads, epochs),
            "hf_ssl": partial(ours, Path(text), config, rate, threads, epochs),
        }
        measured = {name: [] for name in runs}

        def timed(name):
            *seconds, vectors = runs[name](len(measured[name]))  # the seed
            measured[name].append((seconds, scores(vectors) if quality else {}))
            return sum(seconds)

        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            total = interleave({name: partial(timed, name) for name in runs}, rounds)
    where = f"{size}, hf_ssl on {place()}, gensim on {threads} threads"
    for number, what in enumerate(("vocabulary and encoding", "training")):
        parts = {name: [seconds[number] for seconds, _ in own[1:]] for name, own in measured.items()}
        print_speed(f"{where}: {what}", parts, {"gensim": "gensim"})
    print_speed(f"{where}: from text to vectors", total, {"gensim": "gensim"})
    verdict("training", _ratio(parts), training)
    if whole:
        verdict("from text to vectors", _ratio(total), whole)
    for test in measured["hf_ssl"][0][1]:
        print(
            f"{test}: " + ", ".join(f"{name} {_spread([s[test] for _, s in own])}" for name, own in measured.items())
        )


def gensim(text, settings, rate, threads, epochs, seed):
    """(seconds for the vocabulary, for training, WordVectors)."""
    from gensim.models import Word2Vec

    start = perf_counter()
    own = dict(vector_size=100, window=5, min_count=5, sample=1e-3, workers=threads, seed=seed + 1, alpha=rate)
    model = Word2Vec(**own, **settings)
    model.build_vocab(corpus_file=str(text))
    counted = perf_counter()
    model.train(corpus_file=str(text), total_words=model.corpus_total_words, epochs=epochs)
    end = perf_counter()
    return counted - start, end - counted, WordVectors(model.wv.index_to_key, torch.from_numpy(model.wv.vectors))


def ours(text, config, rate, threads, epochs, seed):
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        rows, column = text_rows(load_split(str(text)))
        corpus = Corpus(rows, column, prepared=True, gather=lambda part: gather_object([part]))
        counted = perf_counter()
        sizes = dict(model_type="ssl_word_vectors", vocab_size=len(corpus.words) + 1, hidden_size=100)
        torch.manual_seed(seed)
        model = Word2VecForPreTraining(Word2VecConfig(backbone_config=sizes, **config))
        model.counts.copy_(corpus.counts)
        how = dict(num_train_epochs=epochs, learning_rate=rate, cpu_threads=threads, seed=seed, save_steps=0)
        train_words(model, corpus, WordArguments(output_dir=f"{folder}/run", **how))
        end = perf_counter()
    vectors = model.words.embeddings.weight[1:].detach().cpu()
    return counted - start, end - counted, WordVectors(corpus.words, vectors)


def scores(vectors):
    from gensim.test.utils import datapath

    found = {name: 100 * word_similarity(vectors, datapath(name))["spearman"] for name in TESTS[:2]}
    total = word_analogies(vectors, datapath(TESTS[2]))["total"]
    return found | {TESTS[2]: 100 * total["correct"] / total["questions"]}


def _ratio(seconds):
    return median(seconds["gensim"]) / median(seconds["hf_ssl"])


def _spread(values):
    return f"{mean(values):.1f}" + (f" +- {stdev(values):.1f} of {len(values)}" if len(values) > 1 else "")
