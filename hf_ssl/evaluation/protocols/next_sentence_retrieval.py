"""Does the context of a document find its next sentences among others? For releases of CPC for text.

Each context of each window of unseen documents ranks the sentence that comes k steps later and 99 others, drawn evenly from
all sentences of those documents. Beside it stand the same network at random initialisation and, where there is one, the bag
of words: the cosine of a candidate with the sum of the sentences that the context has read.
"""

from itertools import islice

import torch
import torch.nn.functional as F
from transformers import AutoModelForPreTraining

from ...data.sentence_windows import WindowBatches, WindowMaker
from ...data.text import text_rows
from ...errors import InputError
from ...methods import CPCTextForPreTraining
from ..encoders.loading import load_weights, locate
from ..features import check_finite
from ..processes import process_state
from ..results import Metric, percent

CANDIDATES = 100
SENTENCES, MAX_WORDS = 8, 64  # of a window, of a sentence
ROUNDING = 1e-6  # of the largest score: the same sentence may be encoded in two batches
STEPS = 3  # of which there is a column each; as many as the paper predicts
SETTINGS = {
    "candidates": f"the sentence and {CANDIDATES - 1} drawn evenly from all sentences of the test split: chance is 1%",
    "documents": "of the test split, at most max_samples, none of them seen in training",
    "windows": f"{SENTENCES} sentences, {MAX_WORDS} words of each",
}
METRICS = {
    f"next_sentence_{k}": Metric(f"accuracy of finding the sentence {k} on among 100", task="sentence-similarity")
    for k in range(1, STEPS + 1)
}


def run(encoders, source, output_dir):
    """The protocol `next_sentence_retrieval`, as run.py describes; it needs no labels."""
    state = process_state()
    if not state.is_main_process:
        return {}
    encoder = encoders["pretrained"]
    model = load_predictor(encoder.name, encoder.revision)
    rows, column = text_rows(source.test_rows(), *source.columns)
    windows = sentence_windows(encoder.processor, (row[column] for row in islice(rows, source.max_samples)))
    found = {"pretrained": retrieval_accuracy(*predictions(model.to(state.device), windows), source.seed)}
    if "bag_of_words" in encoders:
        bag = bag_predictions(encoders["bag_of_words"], windows, model.config.prediction_steps)
        found["bag_of_words"] = retrieval_accuracy(*bag, source.seed)
    if "random_initialisation" in encoders:
        with torch.random.fork_rng():
            torch.manual_seed(source.seed)
            random = type(model)(model.config).to(state.device).eval()
        found["random_initialisation"] = retrieval_accuracy(*predictions(random, windows), source.seed)
    return {
        row: {f"next_sentence_{k}": percent(accuracy) for k, accuracy in enumerate(accuracies[:STEPS], start=1)}
        for row, accuracies in found.items()
    }


def load_predictor(name_or_path, revision=None):
    """The whole CPCTextForPreTraining of a release, in eval mode. Raises InputError if there is none."""
    repo, _ = locate(name_or_path)
    source = {"subfolder": "pretraining", "revision": revision}
    model, missing = load_weights(AutoModelForPreTraining, repo, f"pretraining of '{repo}'", **source)
    if missing:
        raise InputError(f"pretraining of '{repo}' lacks {len(missing)} weights, for example '{min(missing)}'.")
    if not isinstance(model, CPCTextForPreTraining):
        raise InputError(f"'{repo}' holds a {type(model).__name__}: next_sentence_retrieval is for cpc_text releases.")
    return model.float().eval()


def sentence_windows(tokenizer, texts):
    """(N, S, L) of all windows of `texts`, as in training. Raises InputError if there are too few sentences."""
    rows = WindowMaker(tokenizer, SENTENCES, MAX_WORDS)({"text": list(texts)})["input_ids"]
    if sum(map(len, rows)) <= CANDIDATES:
        raise InputError(
            f"next_sentence_retrieval needs more than {CANDIDATES} sentences in documents of two or more, "
            f"found {sum(map(len, rows))}."
        )
    return WindowBatches(SENTENCES).collate(rows, None)["input_ids"]


@torch.inference_mode()
def predictions(model, windows, batch_size=64):
    """(sentences (N, S, D), predictions (N, S - K, K, D), which sentences there are (N, S)) of a CPCTextForPreTraining."""
    parts = [model.encode(part.to(model.device)) for part in windows.split(batch_size)]
    sentences, contexts = (torch.cat(each) for each in zip(*parts, strict=True))
    return sentences, model.predictor(contexts), windows.ne(0).any(-1).to(model.device)


def bag_predictions(bag, windows, steps):
    """As `predictions`, of a BagOfWords: the sentences so far predict each of those to come."""
    texts = bag.processor.batch_decode(windows.flatten(0, 1), skip_special_tokens=True)
    sentences = F.normalize(bag(bag.preprocess(texts)), dim=1).unflatten(0, windows.shape[:2])  # (N, S, D)
    read = sentences[:, :-steps].cumsum(1)
    return sentences, read[:, :, None].expand(-1, -1, steps, -1), windows.ne(0).any(-1)


def retrieval_accuracy(sentences, predictions, present, seed=0, candidates=CANDIDATES):
    """For each of the K steps that documents are long enough for, how often the sentence that was to come scores highest; of
    n equals each has a share of 1 / n.

    sentences: (N, S, D), predictions: (N, S - K, K, D), present: (N, S), as the function `predictions` gives them. The
    candidates are drawn anew for each prediction, and are other sentences than the true one. Raises InputError if sentences or
    predictions are not finite.
    """
    (contexts, steps), generator = predictions.shape[1:3], torch.Generator().manual_seed(seed)
    pool = sentences[present]  # (M, D)
    check_finite("sentences", pool)
    check_finite("predictions", predictions.flatten(0, 2))
    number = torch.full(present.shape, -1, device=present.device)
    number[present] = torch.arange(len(pool), device=present.device)
    accuracies = []
    for k in range(1, steps + 1):
        true = number[:, k : k + contexts]
        asked, true = predictions[:, :, k - 1][true >= 0], true[true >= 0]  # (Q, D), (Q,)
        if len(true) == 0:
            break
        others = torch.randint(len(pool) - 1, (len(true), candidates - 1), generator=generator).to(true.device)
        others += others >= true[:, None]
        right = 0.0
        for query, first, rest in zip(asked.split(256), true.split(256), others.split(256), strict=True):
            # with all sentences at once: cheaper than to gather the candidates' vectors
            scores = (query @ pool.T).gather(1, torch.cat([first[:, None], rest], 1))
            best = scores.amax(1, keepdim=True) - ROUNDING * scores.abs().amax(1, keepdim=True)
            right += float(((scores[:, :1] >= best) / (scores >= best).sum(1, keepdim=True)).sum())
        accuracies.append(right / len(true))
    return accuracies


__all__ = ["METRICS", "SETTINGS", "bag_predictions", "load_predictor", "predictions", "retrieval_accuracy", "run"]
