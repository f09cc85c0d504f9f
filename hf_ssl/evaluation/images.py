"""The protocols for image encoders, run side by side, and their results as a dict, a file and a table."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import accelerate
import datasets
import torch
import transformers

from ..checkpoints import write_json
from ..data.images import LABEL_COLUMNS
from ..data.loading import DataError, find_column, load_split
from ..errors import InputError
from . import pictures
from .encoders import load_encoder, pixel_encoder, random_encoder
from .features import decode_rows, extract, first_images, frozen, image_and_label, labelled_images, take_samples
from .fine_tune import FRACTIONS, LabelledImages, fine_tune
from .fine_tune import SETTINGS as FINE_TUNE
from .knn import SETTINGS as KNN
from .knn import knn_predict
from .linear_probe import SETTINGS as LINEAR_PROBE
from .linear_probe import linear_probe
from .low_label import SETTINGS as LOW_LABEL
from .low_label import low_label
from .processes import process_state

SETTINGS = {"knn": KNN, "linear_probe": LINEAR_PROBE, "low_label": LOW_LABEL, "fine_tune": FINE_TUNE}
PICTURES = ("neighbours", "tsne")
PROTOCOLS = (*SETTINGS, *PICTURES)
FROZEN = {"knn", "linear_probe", "low_label", *PICTURES}  # these need features; fine-tuning needs images
ROWS = {"raw_pixels": "Raw pixels", "random_initialisation": "Random initialisation", "pretrained": "Pretrained"}
RESULTS_FILE = "eval_results.json"
LIBRARIES = (torch, transformers, datasets, accelerate)
GREY_SAMPLE = 256  # images looked at to see whether all are grey


@dataclass
class ImageSplits:
    """Two splits with only an image column, undecoded, and a label column. names: of the classes, or None."""

    train: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset
    image_column: str
    label_column: str
    names: list | None
    description: dict = field(default_factory=dict)


def evaluate_images(
    name_or_path, dataset_name=None, config_name=None, protocols=("knn", "linear_probe"), train_split="train",
    test_split="test", image_column=None, label_column=None, *, seed=0, max_samples=None, streaming=False,
    fine_tune_epochs=None, fine_tune_fractions=FRACTIONS, output_dir=None, baselines=True, revision=None,
):  # fmt: skip
    """Run `protocols`, some of PROTOCOLS, on an image encoder and return the results; None but on the main process.

    name_or_path: a folder or Hub id. dataset_name: as for `load_split`, None for the embedded images. max_samples:
    rows drawn from each split. fine_tune_fractions: parts of the labels that are fine-tuned on. baselines: also
    evaluate raw pixels and the encoder at random initialisation. output_dir: gets eval_results.json and images/; the
    pictures need it. Numbers are test accuracy in percent.

    Features are extracted by all processes together, the probes run on the main one. Raises InputError.
    """
    _check_protocols(protocols, output_dir)
    state = process_state()
    encoder = load_encoder(name_or_path, revision)
    data = load_images(
        dataset_name, config_name, train_split, test_split, image_column, label_column,
        max_samples=max_samples, streaming=streaming, seed=seed,
    )  # fmt: skip
    encoders = {"pretrained": encoder}
    if baselines:
        sample = first_images(data.train, data.image_column, encoder.channels, GREY_SAMPLE)
        encoders = {
            "raw_pixels": pixel_encoder(encoder, sample),
            "random_initialisation": random_encoder(encoder, seed),
            "pretrained": encoder,
        }

    with ExitStack() as stack:
        features = {}
        if FROZEN & set(protocols):
            for row, each in encoders.items():
                stack.enter_context(frozen(each.model.to(state.device)))
                features[row] = [
                    extract(each, split, data.image_column, data.label_column, description=f"{ROWS[row]}, {name}")
                    for name, split in (("train", data.train), ("test", data.test))
                ]
        if not state.is_main_process:  # all that needs every process is done
            return None
        numbers, chosen = _frozen_protocols(features, protocols, data, seed)
        drawn = _draw(encoder, features, protocols, data, seed, output_dir)
    if "fine_tune" in protocols:
        _fine_tune_protocol(
            encoders, data, numbers, seed, fine_tune_epochs or FINE_TUNE["epochs"], fine_tune_fractions
        )

    settings = {"seed": seed, "max_samples": max_samples}
    settings |= {name: SETTINGS[name] for name in SETTINGS if name in protocols}
    if "fine_tune" in protocols and fine_tune_epochs:
        settings["fine_tune"] = FINE_TUNE | {"epochs": fine_tune_epochs}
    if features:
        train, test = features["pretrained"]
        data.description |= {"train_rows": len(train.labels), "test_rows": len(test.labels)}
        data.description |= {"broken_images": train.skipped + test.skipped, "classes": _classes(data, train, test)}
    results = {
        "model": str(name_or_path),
        "feature": encoder.feature,
        "dataset": data.description,
        "settings": settings,
        "chosen": chosen,
        "results": numbers,
        "pictures": drawn,
        "versions": {library.__name__: str(library.__version__) for library in LIBRARIES},
    }
    if output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        results = _merged(Path(output_dir) / RESULTS_FILE, results)
        write_json(Path(output_dir) / RESULTS_FILE, results)
    return results


def _merged(path, results):
    """`results` with the numbers of an earlier evaluation of the same model on the same rows, which a new one completes."""
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    same = all(earlier.get(key) == results[key] for key in ("model", "feature"))
    splits = {"name", "config", "train_split", "test_split", "label_column"}
    if not same or any(earlier["dataset"].get(key) != results["dataset"].get(key) for key in splits):
        return results
    if any(earlier["settings"].get(key) != results["settings"].get(key) for key in ("seed", "max_samples")):
        return results
    rows = {row: earlier["results"].get(row, {}) | results["results"].get(row, {}) for row in ROWS}
    return results | {
        "settings": earlier["settings"] | results["settings"],
        "dataset": earlier["dataset"] | results["dataset"],
        "chosen": earlier["chosen"] | results["chosen"],
        "results": {row: numbers for row, numbers in rows.items() if numbers},
        "pictures": sorted({*earlier["pictures"], *results["pictures"]}),
    }


def results_table(results):
    """A Markdown table: one row an encoder, one column a protocol, test accuracy in percent."""
    rows = results["results"]
    columns = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in columns) + " |"]
    lines.append("|---" + "|---:" * len(columns) + "|")
    for row, numbers in rows.items():
        cells = [f"{numbers[name]:.1f}" if name in numbers else "" for name in columns]
        lines.append(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load_images(
    dataset_name=None, config_name=None, train_split="train", test_split="test", image_column=None, label_column=None,
    *, max_samples=None, streaming=False, seed=0,
):  # fmt: skip
    """The two splits, ImageSplits. Without a split "test" the split "validation" is taken."""
    train = load_split(dataset_name, train_split, config_name=config_name, streaming=streaming)
    try:
        test = load_split(dataset_name, test_split, config_name=config_name, streaming=streaming)
    except DataError:
        if test_split != "test":
            raise
        test_split = "validation"
        test = load_split(dataset_name, test_split, config_name=config_name, streaming=streaming)
    label_column = find_column(train, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
    train, test, names = _numbered_classes(train, test, label_column)
    if max_samples is not None:
        train, test = take_samples(train, max_samples, seed), take_samples(test, max_samples, seed)
    train, image_column, _ = image_and_label(train, image_column, label_column)
    test, _, _ = image_and_label(test, image_column, label_column)
    description = {"name": dataset_name, "config": config_name, "train_split": train_split, "test_split": test_split}
    description |= {"image_column": image_column, "label_column": label_column}
    return ImageSplits(train, test, image_column, label_column, names, description)


def _check_protocols(protocols, output_dir):
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise InputError(f"Protocol '{protocol}' is unknown: expected some of {', '.join(PROTOCOLS)}.")
        if protocol in PICTURES and output_dir is None:
            raise InputError(f"Protocol '{protocol}' draws a picture: give output_dir, the folder to save it in.")


def _numbered_classes(train, test, label_column):
    """A column of strings becomes one of class numbers, the same in both splits; (train, test, names or None)."""
    features = train.features or {}
    kind = features.get(label_column)
    if isinstance(kind, datasets.ClassLabel):
        return train, test, kind.names
    if isinstance(train, datasets.Dataset) and isinstance(kind, datasets.Value) and kind.dtype == "string":
        names = sorted(set(train.unique(label_column)) | set(test.unique(label_column)))
        classes = datasets.ClassLabel(names=names)
        return train.cast_column(label_column, classes), test.cast_column(label_column, classes), names
    return train, test, None


def _classes(data, train, test):
    return len(data.names) if data.names else int(max(train.labels.max(), test.labels.max())) + 1


def _percent(accuracy):
    return round(100 * accuracy, 2)


def _frozen_protocols(features, protocols, data, seed):
    """({row: {column: percent}}, {row: the probe's chosen settings})."""
    numbers, chosen = {row: {} for row in features}, {}
    for row, (train, test) in features.items():
        classes = _classes(data, train, test)
        rows = (train.features, train.labels, test.features, test.labels, classes)
        if "knn" in protocols:
            predicted = knn_predict(*rows[:3], classes=classes)
            numbers[row]["knn"] = _percent((predicted == test.labels).float().mean().item())
        if "linear_probe" in protocols:
            probe = linear_probe(*rows, seed=seed)
            numbers[row]["linear_probe"] = _percent(probe.accuracy)
            chosen[row] = {"learning_rate": probe.learning_rate, "weight_decay": probe.weight_decay}
        if "low_label" in protocols:
            for fraction, accuracy in low_label(*rows, seed=seed).items():
                numbers[row][f"linear_probe_{fraction:.0%}"] = _percent(accuracy)
    return numbers, chosen


def _fine_tune_protocol(encoders, data, numbers, seed, epochs, fractions):
    """Adds the columns fine_tune_1%, fine_tune_10% and fine_tune to `numbers`."""
    channels = encoders["pretrained"].channels
    train, test = (
        LabelledImages(*labelled_images(split, data.image_column, data.label_column, channels))
        for split in (data.train, data.test)
    )
    classes = _classes(data, train, test)
    for row in [row for row in encoders if row != "raw_pixels"]:
        for fraction in fractions:
            accuracy = fine_tune(encoders[row], train, test, classes, fraction=fraction, epochs=epochs, seed=seed)
            name = "fine_tune" if fraction == 1 else f"fine_tune_{fraction:.0%}"
            numbers.setdefault(row, {})[name] = _percent(accuracy)


def _draw(encoder, features, protocols, data, seed, output_dir):
    """Save the asked pictures; the names of the files."""
    drawn = []
    if "neighbours" in protocols:
        train, test = features["pretrained"]
        queries = pictures.choose_queries(test.labels, seed)
        found = pictures.neighbour_rows(train.features, test.features, queries)  # (Q, n)
        images = decode_rows(data.test, data.image_column, encoder.channels, test.rows[queries].tolist())
        flat = decode_rows(data.train, data.image_column, encoder.channels, train.rows[found.flatten()].tolist())
        n = found.shape[1]
        drawn.append("images/neighbours.png")
        near = [flat[i : i + n] for i in range(0, len(flat), n)]
        path = Path(output_dir) / drawn[-1]
        pictures.save_neighbours(path, images, test.labels[queries], near, train.labels[found], data.names)
    if "tsne" in protocols:
        test = features["pretrained"][1]
        drawn.append("images/tsne.png")
        pictures.save_tsne(Path(output_dir) / drawn[-1], test.features, test.labels, data.names, seed)
    return drawn


__all__ = ["PROTOCOLS", "ImageSplits", "evaluate_images", "load_images", "results_table"]
