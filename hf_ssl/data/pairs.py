"""Images with captions: finding the two columns, and rows to batches."""

import datasets
import torch
from torch.nn.utils.rnn import pad_sequence

from ..methods._random import CAPTION_STREAM, fold_in, uniform
from .images import ImageDecoder, image_rows
from .loader import Unfit
from .loading import DataError, find_column

CAPTION_COLUMNS = ("text", "caption", "captions", "txt", "sentences", "sentence", "raw", "alt_text", "title", "json")
TAG_COLUMNS = ("tags", "keywords")
MOST_TAGS = 3  # behind a caption


def pair_rows(data, image_column=None, text_column=None, tags_column=None):
    """(data with these columns alone, images undecoded; the image column; the text column; tags_column).

    A cell of the text column holds a caption or several, or, as in the json files of webdataset shards, a dict with them.
    tags_column: None, or one of lists of words, or of words with commas between, which `PairDecoder` puts behind captions.
    """
    data, image = image_rows(data, image_column)
    found = [("text_column", find_column(data, text_column, "text", CAPTION_COLUMNS), "captions")]
    if tags_column is not None:
        found.append(("tags_column", find_column(data, tags_column, "tags", ()), "words"))
    for argument, column, expected in found:
        check_texts(data, column, argument, expected)
    text = found[0][1]
    return data.select_columns([image, *(column for _, column, _ in found)]), image, text, tags_column


def check_texts(data, column, argument, expected="captions"):
    """Raise DataError if the cells of a column cannot hold texts."""
    holds = _kind((data.features or {}).get(column))
    if holds not in ("string", "large_string", "binary", "large_binary", "dict"):
        raise DataError(f"{argument} '{column}' holds {holds} values: expected {expected}.")


def _kind(feature):
    """What cells, or lists in them, hold."""
    while isinstance(feature, datasets.List | datasets.LargeList | list):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    if isinstance(feature, datasets.ClassLabel | datasets.Image | datasets.Audio):
        return type(feature).__name__
    return "dict" if isinstance(feature, dict) else getattr(feature, "dtype", "string")  # a stream may not say


def captions(value, names=CAPTION_COLUMNS):
    """The captions in a cell, in one line each; empty ones are left out. names: of them in a dict, the first that is there."""
    if isinstance(value, dict):
        return captions(next((value[name] for name in names if value.get(name)), None), names)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return [" ".join(value.split())] if value.strip() else []
    return [caption for item in value if item for caption in captions(item, names)] if value else []


def tags(value):
    """The tags in a cell: of a list, or of a text with commas between them."""
    return [tag.strip() for text in captions(value, TAG_COLUMNS) for tag in text.split(",") if tag.strip()]


def _drawn(texts, words, draws):
    """One of the captions with none to MOST_TAGS of its tags, by 2 + MOST_TAGS numbers in [0, 1)."""
    which, how_many, *places = draws
    left = list(words)
    drawn = [left.pop(int(place * len(left))) for place in places[: int(how_many * (1 + min(MOST_TAGS, len(words))))]]
    return ", ".join([texts[int(which * len(texts))], *drawn])


class PairDecoder:
    """Rows of `pair_rows` to `forward`'s arguments; of several captions one is drawn for each epoch, and so are none to
    MOST_TAGS of its tags, in any order, that follow it behind commas.

    view: of the images. max_seq_length: tokens of a caption, special ones counted; longer ones are cut, and counted.
    """

    def __init__(self, image_column, text_column, tags_column, channels, view, tokenizer, max_seq_length):
        self.images = ImageDecoder(image_column, channels, view)
        self.text_column, self.tags_column = text_column, tags_column
        self.tokenizer, self.max_seq_length = tokenizer, max_seq_length
        self.cut = self.seen = 0  # captions of this process

    def without_augmentation(self):
        """The decoder of the images alone, which is what `embed` takes."""
        return self.images.without_augmentation()

    def decode(self, row):
        found = captions(row[self.text_column])
        if not found:
            raise Unfit(f"the caption in '{self.text_column}' is empty or missing")
        return self.images.decode(row), found, tags(row[self.tags_column]) if self.tags_column else []

    def collate(self, decoded, sample_seeds):
        """What ImageDecoder gives, and input_ids and attention_mask, (N, L), padded to the longest."""
        images, *texts = zip(*decoded, strict=True)
        draws = uniform(fold_in(sample_seeds, CAPTION_STREAM), 2 + MOST_TAGS).tolist()
        texts = [_drawn(*own) for own in zip(*texts, draws, strict=True)]
        tokens = self.tokenizer(texts, verbose=False)["input_ids"]
        long = [i for i, ids in enumerate(tokens) if len(ids) > self.max_seq_length]
        if long:
            how = dict(truncation=True, max_length=self.max_seq_length)
            for i, ids in zip(long, self.tokenizer([texts[i] for i in long], **how)["input_ids"], strict=True):
                tokens[i] = ids
        rows = [torch.tensor(ids) for ids in tokens]
        return self.images.collate(list(images), sample_seeds) | {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True),
            "cut": torch.tensor(len(long)),
        }

    def view(self, input_ids, attention_mask, cut, **images):
        self.cut, self.seen = self.cut + cut, self.seen + len(input_ids)  # here, since workers have their own decoder
        view = self.images.view(**images)
        return {"pixel_values": view["pixel_values"], "input_ids": input_ids, "attention_mask": attention_mask}


__all__ = ["CAPTION_COLUMNS", "PairDecoder", "captions", "pair_rows", "tags"]
