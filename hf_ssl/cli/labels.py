"""Labels of some images: those that a semi-supervised run uses, and all there are."""

import logging
from typing import NamedTuple

import datasets

from ..data import image_rows
from ..data.labels import class_numbers, draw_labels, wrong_labels
from ..data.loading import load_split
from .rows import training_rows

logger = logging.getLogger(__name__)
LABEL = "label"  # the column of class numbers in both
EMBEDDED = 100  # labels that are used of the embedded images, which all have one


class Labels(NamedTuple):
    """used, every: rows with an undecoded image, in `column`, and a class number, in `LABEL`. names: of the classes."""

    used: datasets.Dataset
    every: datasets.Dataset
    names: list
    column: str


def labels_of_run(args):
    """What `--labels`, `--label_fraction`, `--labelled_dataset_name` and `--label_noise` say, as Labels. Raises DataError."""
    name = args.labelled_dataset_name
    if name is not None:
        rows = load_split(name, args.train_split)
    else:
        rows = training_rows(args)
    numbers, names, label_column = class_numbers(rows, args.label_column)
    labelled = int((numbers >= 0).sum())
    if args.label_fraction is not None:
        args.labels = max(len(names), round(args.label_fraction * labelled))
    elif args.labels is None:
        args.labels = min(EMBEDDED, labelled) if args.dataset_name is None and name is None else labelled
    args.label_fraction = None  # run.json says how many
    images, column = image_rows(rows, args.image_column)
    used, every = draw_labels(numbers, args.labels, args.seed), (numbers >= 0).nonzero()[0]
    noisy = wrong_labels(numbers[used], args.label_noise, args.seed)
    noise = f", {100 * args.label_noise:g}% of them random" if args.label_noise else ""
    logger.info(
        "labels: %d of %d rows of '%s', in %d classes%s", len(used), len(rows), label_column, len(names), noise
    )
    return Labels(*(_with(images, column, *each) for each in ((used, noisy), (every, numbers[every]))), names, column)


def _with(images, column, positions, numbers):
    return images.select(positions).select_columns([column]).add_column(LABEL, numbers)
