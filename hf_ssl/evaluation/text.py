"""Evaluation of text encoders: documents or pairs of texts as their data, a bag of words as a baseline."""

from functools import partial
from itertools import islice

import datasets
import torch

from ..data.text import passages
from ..errors import InputError
from .encoders.loading import random_encoder
from .encoders.text import FIT_ROWS, bag_of_words, load_text_encoder, text_and_label
from .features import checked_labels
from .plots import save_tsne
from .protocols import language_model, next_sentence_retrieval, words
from .protocols.fine_tune import FRACTIONS, LabelledRows
from .protocols.fine_tune_text import METRICS as FINE_TUNE_METRICS
from .protocols.fine_tune_text import SETTINGS as FINE_TUNE
from .protocols.fine_tune_text import TASKS, fine_tune_text
from .run import FROZEN, SETTINGS, check_fine_tuning, check_protocols, run_protocols
from .sources import Source, Splits

# protocols that need no labels: name to module, as run.py describes
EXTRA = {"language_model": language_model, "next_sentence_retrieval": next_sentence_retrieval, "words": words}
PROTOCOLS = (*SETTINGS, "tsne", *EXTRA)
WORDS_PER_TOKEN = 0.5  # so that most passages of so many words fit into max_length
PEEK = 100  # rows looked at to see whether labels are kept secret
SAMPLE_ROWS = 4000  # passages of the embedded documents that are taken if nothing else is said


def evaluate_text(
    name_or_path, dataset_name=None, config_name=None, protocols=("knn", "linear_probe"), train_split="train",
    test_split="test", text_column=None, label_column=None, *, text_column_2=None, max_length=None, cut_passages=None,
    feature=None, task=None, seed=0, max_samples=None, streaming=False, fine_tune_epochs=None,
    fine_tune_learning_rate=None, fine_tune_fractions=FRACTIONS, word_files=(), output_dir=None, baselines=True,
    revision=None, test_fraction=None, group_column=None,
):  # fmt: skip
    """Run `protocols`, some of PROTOCOLS, on a text encoder and return the results; None but on the main process.

    As `evaluate_images`, and: dataset_name: None for the embedded documents, by their source. text_column_2: the second
    text of each row, as in GLUE, whose columns are found by name. max_length: tokens that are read of a text, 128 or the
    most that the model takes. cut_passages: cut documents into passages of about that length, which keep the document's
    label; None: only the embedded ones. feature: mean, pooler or cls. task: a GLUE task, which says what fine-tuning is
    measured by; None: config_name. baselines: also evaluate a bag of words and the encoder at random initialisation.

    word_files: of the protocol `words`: similarity judgements and analogies (see words.py).

    Labels that are floats are for fine-tuning by regression only. Raises InputError.
    """
    check_protocols(protocols, PROTOCOLS, output_dir)
    check_fine_tuning(fine_tune_epochs, fine_tune_fractions, fine_tune_learning_rate)
    if word_files and "words" not in protocols:
        raise InputError(f"word_files '{word_files[0]}' is for the protocol words, found {', '.join(protocols)}.")
    words.check_word_files(word_files or ())
    if text_column_2 is not None and text_column is None:
        raise InputError(
            f"text_column_2 '{text_column_2}' is the second text of a pair: name the first by text_column."
        )
    if task is not None and task not in TASKS:
        raise InputError(f"task '{task}' is unknown: expected one of {', '.join(TASKS)}.")
    encoder = load_text_encoder(name_or_path, revision, max_length, feature)
    if dataset_name is None and max_samples is None:
        max_samples = SAMPLE_ROWS
    split_names, columns = (train_split, test_split), tuple(name for name in (text_column, text_column_2) if name)
    source = Source(
        "text", dataset_name, config_name, *split_names, columns, streaming, max_samples, seed, tuple(word_files or ())
    )
    source.hold_out(test_fraction, group_column, label_column)
    labelled = set(protocols) - set(EXTRA)
    cut_passages = dataset_name is None if cut_passages is None else cut_passages
    length = max(1, int(WORDS_PER_TOKEN * encoder.max_length)) if cut_passages else None
    data = load_texts(source, label_column, length) if labelled else None
    if data:
        data.description["max_length"] = encoder.max_length
        if _regression(data) and (refused := sorted(FROZEN & labelled)):
            raise InputError(
                f"label_column '{data.label_column}' holds numbers, not classes, which is for fine_tune alone: leave out "
                f"{', '.join(refused)}."
            )

    encoders = {"pretrained": encoder}
    if baselines:
        encoders = {"random_initialisation": random_encoder(encoder, seed)} | encoders
    if baselines and FROZEN & labelled:
        texts = [encoder.read(*(row[name] for name in data.columns)) for row in islice(data.train, FIT_ROWS)]
        texts = [text for text in texts if text is not None]
        encoders = {"bag_of_words": bag_of_words(encoder, texts, seed)} | encoders
    epochs, rate = fine_tune_epochs or FINE_TUNE["epochs"], fine_tune_learning_rate or FINE_TUNE["learning_rate"]
    return run_protocols(
        encoders,
        data,
        source,
        protocols,
        draw=lambda features: _pictures(features, protocols, data, seed),
        tuner=lambda: _tuner(encoder, data, task or config_name, epochs=epochs, learning_rate=rate, seed=seed),
        extra=EXTRA,
        fractions=fine_tune_fractions,
        settings={"fine_tune": FINE_TUNE | {"epochs": epochs, "learning_rate": rate}},
        metrics=FINE_TUNE_METRICS,
        output_dir=output_dir,
    )


def load_texts(source, label_column=None, words=None):
    """The two splits of a Source, as Splits. words: cut each text into passages of at most so many."""
    *splits, names, label_column = source.labelled_rows(label_column)
    for i, split in enumerate(splits):
        split, columns, _ = text_and_label(split, source.columns, label_column)
        if all(row[label_column] == -1 for row in islice(split, PEEK)):  # before hours of extraction
            checked_labels([-1], label_column)
        if words:
            if len(columns) == 2:
                raise InputError(f"passages are cut from one text a row, found the pair {list(columns)}.")
            cut_rows = partial(_cut_rows, column=columns[0], label_column=label_column, words=words)
            # a cached result would outlive a change of `passages`
            cache = {"load_from_cache_file": False} if isinstance(split, datasets.Dataset) else {}
            split = split.map(cut_rows, batched=True, remove_columns=[*columns, label_column], **cache)
        splits[i] = source.drawn(split)
    found = {"text_columns": list(columns), "label_column": label_column, "passages": words}
    return Splits(*splits, columns, label_column, names, source.description | found)


def _cut_rows(batch, column, label_column, words):
    """Rows of documents to rows of passages; a value that is no text stays, to be counted later."""
    rows = [
        (part, label)
        for text, label in zip(batch[column], batch[label_column], strict=True)
        for part in (passages(text, words) if isinstance(text, str) else [text])
    ]
    return {column: [part for part, _ in rows], label_column: [label for _, label in rows]}


def _regression(data):
    return isinstance(next(iter(data.train))[data.label_column], float)


def _tuner(encoder, data, task, **settings):
    regression = _regression(data)
    train, test = (_labelled_texts(encoder, split, data, regression) for split in (data.train, data.test))
    classes = None if regression else data.classes(train, test)
    tune = partial(fine_tune_text, train=train, test=test, classes=classes, task=task, **settings)
    return lambda each, fraction: tune(each, fraction=fraction)


def _labelled_texts(encoder, split, data, regression):
    rows = [(encoder.read(*(row[name] for name in data.columns)), row[data.label_column]) for row in split]
    texts, labels = zip(*((text, label) for text, label in rows if text is not None), strict=True)
    if regression:
        if not all(isinstance(label, float) for label in labels):
            raise InputError(f"label_column '{data.label_column}' holds rows without a number.")
        return LabelledRows(texts, torch.tensor(labels))
    return LabelledRows(texts, torch.tensor(checked_labels(labels, data.label_column)))


def _pictures(features, protocols, data, seed):
    """The asked pictures: {name: function of a path}."""
    test = features["pretrained"][1]
    tsne = partial(save_tsne, features=test.features, labels=test.labels, names=data.names, seed=seed, kind="text")
    return {"tsne": tsne} if "tsne" in protocols else {}


__all__ = ["PROTOCOLS", "evaluate_text", "load_texts"]
