"""What is the same for every kind of encoder: two splits with labels, the protocols run side by side, and the results
as a dict, a file and a table. images.py and text.py bring data, encoders, pictures and fine-tuning.

A protocol of another kind is a module with `run(encoders, source, output_dir)`, which gives {row: {column: number}}, with
SETTINGS, what a reader must know to repeat it, and METRICS, a Metric for each column. It stands in the table `EXTRA` of
text.py or pairs.py, or, with arguments of its own, in audio.py or images.py. Every process calls it; only the main one's
numbers count.
"""

import logging
import math
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import accelerate
import datasets
import torch
import transformers

from ..errors import InputError
from .features import check_weights, extract, frozen
from .plots import draw_all
from .processes import process_state
from .protocols.clusters import SETTINGS as CLUSTERS
from .protocols.clusters import cluster_agreement
from .protocols.fine_tune import SETTINGS as FINE_TUNE
from .protocols.knn import NEIGHBOURS, knn_predict
from .protocols.knn import SETTINGS as KNN
from .protocols.linear_probe import SETTINGS as LINEAR_PROBE
from .protocols.linear_probe import linear_probe
from .protocols.logistic_regression import SETTINGS as LOGISTIC_REGRESSION
from .protocols.logistic_regression import cross_validated_accuracy
from .protocols.low_label import SETTINGS as LOW_LABEL
from .protocols.low_label import low_label
from .results import ROWS, Metric, in_order, keep, metric_of, percent

logger = logging.getLogger(__name__)
SETTINGS = {
    "knn": KNN,
    "linear_probe": LINEAR_PROBE,
    "low_label": LOW_LABEL,
    "logistic_regression": LOGISTIC_REGRESSION,
    "clusters": CLUSTERS,
    "fine_tune": FINE_TUNE,
}
PICTURES = {"neighbours", "tsne", "patch_neighbours"}  # and no numbers
# these need features; fine-tuning needs the data themselves
FROZEN = {"knn", "linear_probe", "low_label", "logistic_regression", "clusters", "neighbours", "tsne"}
BASELINE_FEATURES = {"raw_pixels", "bag_of_words", "mfcc"}  # rows without a network
LIBRARIES = (torch, transformers, datasets, accelerate)


METRICS = {
    "knn": Metric("k-nearest-neighbour accuracy"),
    "linear_probe": Metric("linear probe accuracy"),
    "logistic_regression": Metric("accuracy of logistic regression, 10-fold cross-validation"),
    "clusters": Metric("normalised mutual information of clusters and labels", "normalized_mutual_information"),
    "fine_tune": Metric("fine-tuned accuracy"),
}


def run_protocols(
    encoders, data, source, protocols, *, draw, tuner=None, extra=None, fractions=(), settings=None, metrics=None, output_dir=None
):  # fmt: skip
    """Run `protocols` on `encoders`, {row: encoder}, with "pretrained" among them; the results, None but on the main process.

    data: Splits, None if no protocol needs labels. draw(features) gives pictures, {name: function of a path that saves it}.
    tuner() gives a function of (encoder, fraction of the labels) to {end of the column's name: number}. extra: modules by
    the name of their protocol, whose folder for pictures is not output_dir. settings, metrics: what is added to, or stands
    instead of, SETTINGS and METRICS.
    """
    state, extra = process_state(), extra or {}
    numbers, chosen, features = {row: {} for row in encoders}, {}, {}
    with _drawing_folder(output_dir if state.is_main_process else None) as drawn:
        with ExitStack() as stack:
            digests = {row: stack.enter_context(frozen(each.model.to(state.device))) for row, each in encoders.items()}
            check_weights(encoders["pretrained"])
            if FROZEN & set(protocols):
                for row, each in encoders.items():
                    features[row] = [
                        extract(each, split, data.columns, data.label_column, description=f"{ROWS[row]}, {name}")
                        for name, split in (("train", data.train), ("test", data.test))
                    ]
            for name in [name for name in extra if name in protocols]:
                for row, found in extra[name].run(encoders, source, drawn).items():
                    numbers.setdefault(row, {}).update(found)
            if not state.is_main_process:  # all that needs every process is done
                return None
            if features:
                data.warn(*features["pretrained"])
                _frozen_protocols(features, protocols, data, source.seed, numbers, chosen)
                if drawn is not None:
                    draw_all(drawn, draw(features))
            if "fine_tune" in protocols:
                _fine_tune_protocol(encoders, tuner(), fractions, numbers)

        tables = SETTINGS | {name: module.SETTINGS for name, module in extra.items()} | (settings or {})
        known = METRICS | {column: metric for module in extra.values() for column, metric in module.METRICS.items()}
        known |= metrics or {}
        encoder = encoders["pretrained"]
        description = (data.description if data else source.description) | source.found
        if features:
            description |= data.counts(encoder, *features["pretrained"])
        results = {
            "model": encoder.name,
            "weights": digests["pretrained"],
            "feature": encoder.feature,
            "dataset": description,
            "settings": {"seed": source.seed, "max_samples": source.max_samples}
            | {name: tables[name] for name in tables if name in protocols},
            "chosen": chosen,
            "results": {row: numbers[row] for row in in_order(numbers) if numbers[row]},
            "metrics": {name: asdict(metric_of(name, known)) for found in numbers.values() for name in found},
            "pictures": [],
            "versions": {library.__name__: str(library.__version__) for library in LIBRARIES},
        }
        if drawn is None:
            return results
        try:
            return keep(Path(output_dir), results, drawn, source.was_read)
        except OSError as error:
            raise InputError(f"The results could not be written to output_dir '{output_dir}': {error}.") from error


@contextmanager
def _drawing_folder(output_dir):
    """A folder of its own for the pictures of one evaluation, so that none of another is written over; None for None."""
    if output_dir is None:
        yield None
        return
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".drawn.", dir=output_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"output_dir '{output_dir}' cannot be written: {error.strerror}.") from error
    with folder as name:
        yield Path(name)


def check_protocols(protocols, known, output_dir):
    """Raise InputError, in one sentence, if one of `protocols` is not in `known` or lacks a folder for its picture."""
    for protocol in protocols:
        if protocol not in known:
            raise InputError(f"Protocol '{protocol}' is unknown: expected some of {', '.join(known)}.")
        if protocol in PICTURES and output_dir is None:
            raise InputError(f"Protocol '{protocol}' draws a picture: give output_dir, the folder to save it in.")


def check_fine_tuning(epochs=None, fractions=(), learning_rate=None):
    """Raise InputError, in one sentence, for a number that fine-tuning cannot use; None is the default."""
    if epochs is not None and epochs < 1:
        raise InputError(f"fine_tune_epochs must be at least 1, found {epochs}.")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise InputError(f"fine_tune_fractions must lie above 0 and be at most 1, found {fraction}.")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise InputError(f"fine_tune_learning_rate must be a number above 0, found {learning_rate}.")


def _frozen_protocols(features, protocols, data, seed, numbers, chosen):
    """Adds {row: {column: percent}} to `numbers`, {row: the probe's chosen settings} to `chosen`."""
    for row, (train, test) in features.items():
        classes = data.classes(train, test)
        rows = (train.features, train.labels, test.features, test.labels, classes)
        if "knn" in protocols:
            if row == "pretrained" and len(train.labels) <= NEIGHBOURS:
                logger.warning(
                    "kNN is of little use here: all %d training rows vote, which is no more than its k=%d neighbours.",
                    len(train.labels), NEIGHBOURS,
                )  # fmt: skip
            predicted = knn_predict(*rows[:3], classes=classes)
            numbers[row]["knn"] = percent((predicted == test.labels).float().mean().item())
        if "linear_probe" in protocols:
            probe = linear_probe(*rows, seed=seed)
            numbers[row]["linear_probe"] = percent(probe.accuracy)
            chosen[row] = {"learning_rate": probe.learning_rate, "weight_decay": probe.weight_decay}
        if "low_label" in protocols:
            for fraction, accuracy in low_label(*rows, seed=seed).items():
                numbers[row][f"linear_probe_{fraction:.0%}"] = percent(accuracy)
        if "logistic_regression" in protocols:
            numbers[row]["logistic_regression"] = percent(cross_validated_accuracy(train.features, train.labels, seed))
        if "clusters" in protocols:
            numbers[row]["clusters"] = percent(cluster_agreement(test.features, test.labels, classes, seed))


def _fine_tune_protocol(encoders, tune, fractions, numbers):
    """Adds the columns fine_tune_1%, fine_tune_10% and fine_tune, or, say, fine_tune_f1_1%, to `numbers`."""
    for row in [row for row in encoders if row not in BASELINE_FEATURES]:
        for fraction in fractions:
            part = "" if fraction == 1 else f"_{100 * fraction:g}%"
            for end, value in tune(encoders[row], fraction).items():
                numbers[row][f"fine_tune{end}{part}"] = percent(value)


__all__ = ["FROZEN", "METRICS", "PICTURES", "SETTINGS", "check_fine_tuning", "check_protocols", "run_protocols"]
