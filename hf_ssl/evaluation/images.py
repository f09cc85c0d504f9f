"""Evaluation of image encoders: their data, raw pixels as a baseline, and the pictures."""

from functools import partial

from ..errors import InputError
from . import pictures
from .encoders.images import decode_rows, first_images, image_and_label, labelled_images, load_encoder, pixel_encoder
from .encoders.loading import random_encoder
from .encoders.stages import stage_encoder
from .plots import save_tsne
from .protocols.accuracy import Accuracy
from .protocols.fine_tune import FRACTIONS, LabelledRows, fine_tune
from .protocols.fine_tune import SETTINGS as FINE_TUNE
from .protocols.layer_probe import LayerProbe
from .protocols.patch_neighbours import PatchNeighbours
from .protocols.pretext import Pretext
from .run import SETTINGS, check_fine_tuning, check_protocols, run_protocols
from .sources import Source, Splits

PROTOCOLS = (*SETTINGS, "neighbours", "tsne", "layer_probe", "patch_neighbours", "pretext", "accuracy")
GREY_SAMPLE = 256  # images looked at to see whether all are grey


def evaluate_images(
    name_or_path, dataset_name=None, config_name=None, protocols=("knn", "linear_probe"), train_split="train",
    test_split="test", image_column=None, label_column=None, *, seed=0, max_samples=None, streaming=False,
    fine_tune_epochs=None, fine_tune_fractions=FRACTIONS, output_dir=None, baselines=True, revision=None,
    test_fraction=None, group_column=None, compare_with=None,
):  # fmt: skip
    """Run `protocols`, some of PROTOCOLS, on an image encoder and return the results; None but on the main process.

    name_or_path: a folder or Hub id. dataset_name: as for `load_split`, None for the embedded images. max_samples:
    rows drawn from each split. fine_tune_fractions: parts of the labels that are fine-tuned on. baselines: also
    evaluate raw pixels and the encoder at random initialisation. output_dir: gets eval_results.json and images/; the
    pictures need it. test_fraction: the part of train_split that is held out, at random, with as much of each label, to be
    tested on instead of test_split; group_column: rows with one value in it stay together. compare_with: the folder or Hub id of
    another image encoder, shown by `patch_neighbours`. Numbers are test accuracy in percent.

    Features are extracted by all processes together, the probes run on the main one. Raises InputError.
    """
    check_protocols(protocols, PROTOCOLS, output_dir)
    check_fine_tuning(fine_tune_epochs, fine_tune_fractions)
    encoder = load_encoder(name_or_path, revision)
    other = load_other(compare_with, encoder, protocols)
    split_names, columns = (train_split, test_split), (image_column,) if image_column else ()
    source = Source("images", dataset_name, config_name, *split_names, columns, streaming, max_samples, seed)
    source.hold_out(test_fraction, group_column, label_column)
    return run_image_protocols(
        encoder, source, protocols, label_column, fine_tune_epochs, fine_tune_fractions, output_dir, baselines, other
    )


def load_other(compare_with, encoder, protocols):
    """The ImageEncoder that `compare_with` names, None for None. Raises InputError unless it reads what `encoder` does."""
    if compare_with is None:
        return None
    if "patch_neighbours" not in protocols:
        raise InputError(
            f"compare_with '{compare_with}' is shown by patch_neighbours alone: name that among the protocols."
        )
    other = load_encoder(compare_with)
    if other.channels != encoder.channels:
        raise InputError(
            f"compare_with '{compare_with}' reads images of {other.channels} channels: expected {encoder.channels}, as "
            f"'{encoder.name}' reads."
        )
    return other


def run_image_protocols(
    encoder, source, protocols, label_column, epochs, fractions, output_dir, baselines, other=None, extra=None, settings=None
):  # fmt: skip
    """What `evaluate_images` returns. other: the encoder to compare with. extra, settings: as for `run_protocols`."""
    if "layer_probe" in protocols:
        stage_encoder(encoder)  # what has no stages is refused before data are read
    labelled = set(protocols) - {"patch_neighbours", "pretext", "accuracy", *(extra or {})}
    data = load_images(source, label_column) if labelled else None
    extra = (extra or {}) | {
        "layer_probe": LayerProbe(data),
        "patch_neighbours": PatchNeighbours(other),
        "pretext": Pretext(),
        "accuracy": Accuracy(label_column),
    }
    encoders = {"pretrained": encoder}
    if baselines:
        encoders = {"random_initialisation": random_encoder(encoder, source.seed)} | encoders
    if baselines and labelled:
        sample = first_images(data.train, *data.columns, encoder.channels, GREY_SAMPLE)
        encoders = {"raw_pixels": pixel_encoder(encoder, sample)} | encoders
    epochs = epochs or FINE_TUNE["epochs"]
    return run_protocols(
        encoders,
        data,
        source,
        protocols,
        draw=lambda features: _pictures(encoder, features, protocols, data, source.seed),
        tuner=lambda: _tuner(encoder, data, epochs, source.seed),
        extra=extra,
        fractions=fractions,
        settings={"fine_tune": FINE_TUNE | {"epochs": epochs}} | (settings or {}),
        output_dir=output_dir,
    )


def load_images(source, label_column=None):
    """The two splits of a Source, as Splits."""
    train, test, names, label_column = source.labelled_rows(label_column)
    train, image_column, _ = image_and_label(source.drawn(train), *source.columns or (None,), label_column)
    test, _, _ = image_and_label(source.drawn(test), image_column, label_column)
    columns = {"image_column": image_column, "label_column": label_column}
    return Splits(train, test, (image_column,), label_column, names, source.description | columns)


def _tuner(encoder, data, epochs, seed):
    train, test = (
        LabelledRows(*labelled_images(split, *data.columns, data.label_column, encoder.channels))
        for split in (data.train, data.test)
    )
    tune = partial(fine_tune, train=train, test=test, classes=data.classes(train, test), epochs=epochs, seed=seed)
    return lambda each, fraction: {"": tune(each, fraction=fraction)}


def _pictures(encoder, features, protocols, data, seed):
    """The asked pictures: {name: function of a path}."""
    train, test = features["pretrained"]

    def neighbours(path):
        queries = pictures.choose_queries(test.labels, seed)
        found = pictures.neighbour_rows(train.features, test.features, queries)  # (Q, n)
        images = decode_rows(data.test, *data.columns, encoder.channels, test.rows[queries].tolist())
        flat = decode_rows(data.train, *data.columns, encoder.channels, train.rows[found.flatten()].tolist())
        n = found.shape[1]
        near = [flat[i : i + n] for i in range(0, len(flat), n)]
        pictures.save_neighbours(path, images, test.labels[queries], near, train.labels[found], data.names)

    def tsne(path):
        save_tsne(path, test.features, test.labels, data.names, seed)

    drawings = {"neighbours": neighbours, "tsne": tsne}
    return {name: drawings[name] for name in drawings if name in protocols}


__all__ = ["PROTOCOLS", "evaluate_images", "load_images", "load_other", "run_image_protocols"]
