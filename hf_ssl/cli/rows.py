"""The rows of a run: loaded, without those held out for the test, and what the log says of them."""

from pathlib import Path

import datasets
import torch

from ..data import image_rows, load_split
from ..data.holdout import hold_out
from ..data.loading import EMBEDDED, LABEL_COLUMNS, DataError, is_embedded, say_once


def training_rows(args, sample="images"):
    """The rows that `--dataset_name` and `--train_split` name, without those of `--test_fraction`."""
    rows = load_split(
        args.dataset_name,
        args.train_split,
        sample=sample,
        config_name=args.dataset_config_name,
        streaming=args.streaming,
    )
    if args.test_fraction is None:
        return rows
    return hold_out(rows, args.test_fraction, args.seed, args.label_column, args.group_column)[0]


def held_out_rows(args, column):
    """The images of `column` that are held out of the training, in random order, None if there are none."""
    if args.streaming:
        return None
    try:
        if args.test_fraction is not None:
            rows = load_split(args.dataset_name, args.train_split, config_name=args.dataset_config_name)
            rows = hold_out(rows, args.test_fraction, args.seed, args.label_column, args.group_column)[1]
        else:
            rows = load_split(args.dataset_name, args.test_split, config_name=args.dataset_config_name)
        return image_rows(rows, column)[0].select_columns([column]).shuffle(seed=args.seed)
    except DataError:
        return None


def row_labels(args):
    """(n,) int64, the labels of `training_rows` where these have a column of class labels, else None."""
    rows = training_rows(args)
    columns = [args.label_column] if args.label_column else LABEL_COLUMNS
    for column in columns:
        if isinstance((rows.features or {}).get(column), datasets.ClassLabel):
            return torch.tensor(rows[column][:])
    return None


def log_rows(args, rows, unit, *details):
    """Say what a run reads, such as "photos: 300 images in 6 classes, 500 x 375 px, seen at 64 px, from a folder"."""
    name, features = args.dataset_name, rows.features or {}
    count = f"{len(rows):,} {unit}" if isinstance(rows, datasets.Dataset) else f"{unit}, streamed"
    labels = [args.label_column] if args.label_column else LABEL_COLUMNS
    label = next((features[column] for column in labels if column in features), None)
    if isinstance(label, datasets.ClassLabel):
        count += f" in {len(label.names)} classes"
    if args.test_fraction is not None:
        count += f", {args.test_fraction:g} of all held out for the test"
    if name is None or is_embedded(name):
        where = "shipped with hf_ssl"
        name = f"The embedded {name.removeprefix(EMBEDDED) if name else unit}"
    else:
        path = Path(name)
        where = "from a folder" if path.is_dir() else "from files" if path.is_file() or "*" in name else "from the Hub"
        name = path.name if path.exists() else name
    say_once(f"{name}: {', '.join([count, *filter(None, details), where])}.")
