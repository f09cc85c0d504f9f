"""What the panels show: a release's encoder, the rows of a data set with their features, and the pretraining model."""

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import datasets
import torch

from ..data.audio import SPEAKER_COLUMNS, audio_rows
from ..data.images import image_rows
from ..data.loading import LABEL_COLUMNS, DataError, find_column, load_split
from ..data.pairs import CAPTION_COLUMNS, captions
from ..data.text import passages, text_rows
from ..errors import InputError
from ..evaluation import ENCODERS, PAIRS, Features, extract, find_modality, nearest
from ..evaluation.conditions import SAMPLES
from ..evaluation.encoders.images import decode_rows
from ..evaluation.encoders.loading import SSL_METHODS, load_weights, locate, pretraining_config
from ..evaluation.features import because, take_samples
from ..evaluation.pairs import EMBEDDED
from ..evaluation.processes import process_state

logger = logging.getLogger(__name__)
ROWS = {"image": image_rows, "text": text_rows, "audio": audio_rows, PAIRS: image_rows}
NOUNS = {"image": "image", "text": "text", "audio": "recording"}  # of a row, by the encoder's kind
SPLITS = ("test", "validation", "train")  # the first that there is
MAX_SAMPLES = 2000
PASSAGE = 60  # words of a passage that the embedded documents are cut into


@dataclass
class Gallery:
    """Rows of a data set that an encoder has read. title: what they are, in words. data: one column, undecoded. labels: a string
    a row, "" where there is none. captions: what stands under a row."""

    title: str
    encoder: object
    data: datasets.Dataset
    labels: list
    captions: list
    features: torch.Tensor  # (M, D)

    def __len__(self):
        return len(self.features)

    @property
    def noun(self):
        return NOUNS[self.encoder.kind]

    def item(self, row):
        """What is in a row: an image, uint8 (C, H, W), photographs reduced, a text, or a waveform (T,)."""
        [column] = self.data.column_names
        if self.encoder.kind == "image":
            return decode_rows(self.data, column, self.encoder.channels, [row])[0]
        return self.encoder.read(self.data[row][column])

    @torch.no_grad()
    def encode(self, value):
        """The features of a value such as a cell of the data holds, (1, D). Raises InputError if it cannot be read."""
        item = self.encoder.read(value)
        if item is None:
            raise InputError(f"This {self.noun} cannot be read{because(self.encoder)}.")
        return self.encoder(self.encoder.preprocess([item], process_state().device)).cpu()

    def nearest(self, features, count):
        """[(row, cosine)] of the rows nearest to (1, D) features."""
        cosines, rows = nearest(self.features, features, count)
        return list(zip(rows[0].tolist(), cosines[0].tolist(), strict=True))


@dataclass
class Release:
    """modality: what it reads, a key of ENCODERS. method: the class that pretrained it, None if it is not ours."""

    name: str
    revision: str | None
    modality: str
    encoder: object
    gallery: Gallery
    method: type | None

    @property
    def title(self):
        return Path(self.name).resolve().name if Path(self.name).is_dir() else self.name

    @cached_property
    def pretraining(self):
        """The whole pretraining model, in eval mode. Raises InputError if it is not there."""
        arguments = {"revision": self.revision, "subfolder": "pretraining", "dtype": torch.float32}
        model, _ = load_weights(self.method, locate(self.name)[0], f"'{self.name}'", **arguments)
        return model.eval().to(process_state().device)


def load_release(
    name, dataset_name=None, config_name=None, split=None, image_column=None, text_column=None, audio_column=None,
    label_column=None, max_samples=MAX_SAMPLES, revision=None, seed=0,
):  # fmt: skip
    """A Release from a folder or Hub id, and a gallery of at most `max_samples` rows, drawn at random.

    dataset_name: as for `load_split`, None for the data set that ships with the package. split: None for the first of
    SPLITS. image_column, text_column, audio_column: of what the model reads, label_column: of classes, which there need not be;
    None: found by type or name. Raises InputError.
    """
    if max_samples < 3:
        raise InputError(f"max_samples must be at least 3, found {max_samples}.")
    modality = find_modality(name, revision)
    if modality not in ENCODERS:
        raise InputError(f"'{name}' reads {modality}: expected an encoder of one of {', '.join(ENCODERS)}.")
    encoder = ENCODERS[modality](name, revision)
    data, split = _load(dataset_name, split, sample=SAMPLES[modality][0], config_name=config_name)
    labels = _labels(data, label_column, SPEAKER_COLUMNS if modality == "audio" else ())
    under = labels
    column = {"text": text_column, "audio": audio_column}.get(modality, image_column)
    if modality == PAIRS:
        text_column = text_column or (EMBEDDED["text_column"] if dataset_name is None else None)
        texts = data[find_column(data, text_column, "text", CAPTION_COLUMNS)]
        under = [" / ".join(captions(text)[:1]) for text in texts]
    data, column = ROWS[modality](data, column)
    data = data.select_columns([column])
    if modality == "text" and dataset_name is None:
        data, labels = _cut(data, labels)
        under = labels
    if len(data) > max_samples:
        drawn = take_samples(datasets.Dataset.from_dict({"row": range(len(data))}), max_samples, seed)["row"]
        data, labels, under = data.select(drawn), [labels[i] for i in drawn], [under[i] for i in drawn]
    place = dataset_name or SAMPLES[modality][1]
    title = f"{len(data):,} {NOUNS[encoder.kind]}s of the split '{split}' of {place}"
    logger.info("Reading %s.", title)
    found: Features = extract(encoder, data, (column,), description="encoding", labelled=False)
    rows = found.rows.tolist()
    gallery = Gallery(
        title, encoder, data.select(rows), [labels[i] for i in rows], [under[i] for i in rows], found.features
    )
    config = pretraining_config(*locate(name), revision)
    return Release(str(name), revision, modality, encoder, gallery, config and SSL_METHODS[config.model_type])


def _load(dataset_name, split, **options):
    """(rows, their split)."""
    load = partial(load_split, dataset_name, **options)
    for name in SPLITS if split is None else ():
        try:
            return load(name), name
        except DataError as error:
            if name == SPLITS[-1]:
                raise DataError(f"{error} Name another by split.") from error
    return load(split), split


def _labels(data, label_column, usual):
    """The label of each row in words, "" where there is none."""
    try:
        column = find_column(data, label_column, "label", (*usual, *LABEL_COLUMNS), (datasets.ClassLabel,))
    except DataError:
        if label_column is not None:
            raise
        return [""] * len(data)
    names = getattr(data.features[column], "names", None)
    values = data.select_columns([column])[column]
    if names:
        return [names[value] if value is not None and value >= 0 else "" for value in values]
    return ["" if value is None else str(value) for value in values]


def _cut(data, labels):
    """(passages, the labels of their documents)."""
    [column] = data.column_names
    rows = [
        (part, label) for text, label in zip(data[column], labels, strict=True) for part in passages(text, PASSAGE)
    ]
    return datasets.Dataset.from_dict({column: [part for part, _ in rows]}), [label for _, label in rows]


__all__ = ["MAX_SAMPLES", "NOUNS", "Gallery", "Release", "load_release"]
