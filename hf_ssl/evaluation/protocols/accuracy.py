"""How often an image classifier is right: a release of a semi-supervised method, or anybody's.

Classes are compared by their names, so that a classifier may have them in another order than the data. Of a run of ours the
same network stands beside it, trained on the same labels alone and on all labels, where the run has left these.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from ...data.loading import DataError
from ...errors import InputError
from ..encoders.images import ImageEncoder, image_and_label
from ..encoders.loading import load_config, load_weights, locate
from ..features import extract
from ..processes import process_state
from ..results import ROWS, Metric, percent
from ..sources import numbered_classes

BASELINES = ("labels_alone", "all_labels")  # what a run leaves under baselines/, and its rows here
SETTINGS = {"view": "the evaluation view, one", "classes": "compared by name"}
METRICS = {"accuracy": Metric("accuracy of the classifier")}


@dataclass
class Classifier(ImageEncoder):
    """Its features, (N, K), are logits."""

    batch_size = 256

    def __call__(self, pixel_values):
        return self.model(pixel_values).logits


class Accuracy:
    """The protocol `accuracy`, as run.py describes. label_column: found as for the other protocols."""

    SETTINGS, METRICS = SETTINGS, METRICS

    def __init__(self, label_column=None):
        self.label_column = label_column

    def run(self, encoders, source, output_dir):
        encoder = encoders["pretrained"]
        repo, _ = locate(encoder.name)
        folders = {row: Path(repo) / "baselines" / row for row in BASELINES}
        folders = {row: str(folder) for row, folder in folders.items() if (folder / "config.json").is_file()}
        models = {"pretrained": load_classifier(repo, encoder.revision)}
        models |= {row: load_classifier(folder) for row, folder in folders.items()}

        test = source.drawn(source.test_rows())
        label_column = source.find_label(test, self.label_column)
        test, _, names = numbered_classes(test, test, label_column)
        test, image_column, _ = image_and_label(test, *source.columns or (None,), label_column)
        source.found |= {"image_column": image_column, "label_column": label_column}
        found = {}
        for row, model in models.items():
            settings = {each.name: getattr(encoder, each.name) for each in fields(ImageEncoder)} | {"model": model}
            logits = extract(Classifier(**settings), test, (image_column,), label_column, description=ROWS[row])
            if process_state().is_main_process:
                found[row] = {"accuracy": percent(accuracy(logits, model.config, names, encoder.name))}
        return found


def load_classifier(name, revision=None):
    """An image classifier from a folder or Hub id, in eval mode. Raises InputError if it has no head that was trained."""
    config = load_config(name, f"'{name}'", revision=revision)
    if not any("ForImageClassification" in architecture for architecture in config.architectures or ()):
        raise InputError(
            f"accuracy: '{name}' is a {', '.join(config.architectures or ['model'])}: expected an image classifier, such as a "
            "semi-supervised method leaves."
        )
    model, missing = load_weights(
        AutoModelForImageClassification, name, revision=revision, config=config, dtype=torch.float32
    )
    if missing:
        raise InputError(f"'{name}' lacks {len(missing)} weights of its classifier, for example '{min(missing)}'.")
    return model.eval()


def accuracy(found, config, names, who):
    """The part of rows that get their class. found: Features whose features are logits. names: of the data's classes by number,
    or None where these have only numbers. Raises InputError if the classifier knows none of them."""
    own = {str(name): number for number, name in config.id2label.items()}
    classes = names or [str(number) for number in range(int(found.labels.max()) + 1)]
    numbers = torch.tensor([own.get(str(name), -1) for name in classes])
    if not (numbers >= 0).any():
        raise DataError(
            f"accuracy: '{who}' knows none of the data's classes: found {', '.join(map(str, classes[:3]))} ..., expected "
            f"{', '.join(list(own)[:3])} ..."
        )
    return (found.features.argmax(1) == numbers[found.labels]).float().mean().item()


__all__ = ["BASELINES", "METRICS", "SETTINGS", "Accuracy"]
