"""Evaluation of speech encoders: speakers and phones, MFCC as a baseline, the network trained with labels as a summit."""

from functools import partial

from ..data.audio import SPEAKER_COLUMNS
from .encoders.audio import audio_and_label, load_audio_encoder, mfcc_encoder
from .encoders.loading import random_encoder
from .plots import save_tsne
from .protocols.phones import HIDDEN, Phones, find_segments
from .protocols.speakers import Speakers
from .protocols.supervised import Supervised
from .results import named_after
from .run import FROZEN, METRICS, check_fine_tuning, check_protocols, run_protocols
from .sources import Source, Splits

PROTOCOLS = ("knn", "linear_probe", "low_label", "tsne", "phones", "phones_hidden", "speakers", "supervised")


def evaluate_audio(
    name_or_path, dataset_name=None, config_name=None, protocols=("linear_probe", "phones"), train_split="train",
    test_split="test", audio_column=None, label_column=None, *, segments_column=None, seed=0, max_samples=None,
    streaming=False, fine_tune_epochs=None, output_dir=None, baselines=True, revision=None,
    test_fraction=None, group_column=None,
):  # fmt: skip
    """Run `protocols`, some of PROTOCOLS, on a speech encoder and return the results; None but on the main process.

    As `evaluate_images`, and: dataset_name: None for the embedded recordings. label_column: the speaker, if it is not named
    and there is one; knn, linear_probe, low_label and tsne are of the mean over time of an utterance's frames. segments_column:
    lists of {start, end, label} in seconds, found by type, for `phones`, `phones_hidden` and `supervised`; these and
    `speakers` encode on the main process alone. fine_tune_epochs: of `supervised`. baselines: also evaluate MFCC and the
    encoder at random initialisation.
    """
    check_protocols(protocols, PROTOCOLS, output_dir)
    check_fine_tuning(fine_tune_epochs)
    encoder = load_audio_encoder(name_or_path, revision)
    split_names, columns = (train_split, test_split), (audio_column,) if audio_column else ()
    source = Source("speech", dataset_name, config_name, *split_names, columns, streaming, max_samples, seed)
    source.hold_out(test_fraction, group_column, label_column)
    data = load_recordings(source, label_column) if FROZEN & set(protocols) else None
    if {"phones", "phones_hidden"} & set(protocols):  # refused before features are extracted
        find_segments(source.train_rows(), source.test_rows(), segments_column)
    encoders = {"pretrained": encoder}
    if baselines:
        encoders = {
            "mfcc": mfcc_encoder(encoder),
            "random_initialisation": random_encoder(encoder, seed),
            "pretrained": encoder,
        }
    extra = {
        "phones": Phones(segments_column),
        "phones_hidden": Phones(segments_column, HIDDEN),
        "speakers": Speakers(label_column),
        "supervised": Supervised(segments_column, label_column, fine_tune_epochs),
    }
    return run_protocols(
        encoders,
        data,
        source,
        protocols,
        draw=lambda features: _pictures(features, protocols, data, seed),
        extra=extra,
        metrics=named_after(METRICS, data.label_column) if data else None,
        output_dir=output_dir,
    )


def load_recordings(source, label_column=None):
    """The two splits of a Source, as Splits."""
    *splits, names, label_column = source.labelled_rows(label_column, SPEAKER_COLUMNS)
    for i, split in enumerate(splits):
        split, columns, _ = audio_and_label(split, source.columns, label_column)
        splits[i] = source.drawn(split)
    found = {"audio_column": columns[0], "label_column": label_column}
    return Splits(*splits, columns, label_column, names, source.description | found)


def _pictures(features, protocols, data, seed):
    """The asked pictures: {name: function of a path}."""
    test = features["pretrained"][1]
    tsne = partial(
        save_tsne, features=test.features, labels=test.labels, names=data.names, seed=seed, kind="utterance"
    )
    return {"tsne": tsne} if "tsne" in protocols else {}


__all__ = ["PROTOCOLS", "evaluate_audio", "load_recordings"]
