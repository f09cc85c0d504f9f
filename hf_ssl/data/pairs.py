"""Images with captions: finding the two columns, and rows to batches."""

import datasets
import torch
from torch.nn.utils.rnn import pad_sequence

from ..methods._random import fold_in, uniform
from .images import ImageDecoder, image_rows
from .loader import Unfit
from .loading import DataError, find_column

CAPTION_COLUMNS = ("text", "caption", "captions", "txt", "sentences", "sentence", "raw", "alt_text", "title", "json")
CAPTION_STREAM = 111  # separates the draw of a caption from the view's


def pair_rows(data, image_column=None, text_column=None):
    """(data with both columns alone, images undecoded; the image column; the text column).

    A cell of the text column holds a caption or several, or, as in the json files of webdataset shards, a dict with them.
    """
    data, image = image_rows(data, image_column)
    text = find_column(data, text_column, "text", CAPTION_COLUMNS)
    kind = (data.features or {}).get(text)
    if getattr(kind, "dtype", "string") not in ("string", "large_string", "binary", "large_binary", "list", "dict"):
        raise DataError(f"text_column '{text}' holds {kind.dtype} values: expected captions.")
    if isinstance(kind, datasets.ClassLabel | datasets.Image | datasets.Audio):
        raise DataError(f"text_column '{text}' holds {type(kind).__name__} values: expected captions.")
    return data.select_columns([image, text]), image, text


def captions(value):
    """The captions in a cell, in one line each; empty ones are left out."""
    if isinstance(value, dict):
        return captions(next((value[name] for name in CAPTION_COLUMNS if value.get(name)), None))
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return [" ".join(value.split())] if value.strip() else []
    return [caption for item in value if item for caption in captions(item)] if value else []


class PairDecoder:
    """Rows of `pair_rows` to `forward`'s arguments; of several captions one is drawn for each epoch.

    view: of the images. max_seq_length: tokens of a caption, special ones counted; longer ones are cut, and counted.
    """

    def __init__(self, image_column, text_column, channels, view, tokenizer, max_seq_length):
        self.images = ImageDecoder(image_column, channels, view)
        self.text_column, self.tokenizer, self.max_seq_length = text_column, tokenizer, max_seq_length
        self.cut = self.seen = 0  # captions of this process

    def decode(self, row):
        found = captions(row[self.text_column])
        if not found:
            raise Unfit(f"the caption in '{self.text_column}' is empty or missing")
        return self.images.decode(row), found

    def collate(self, pairs, sample_seeds):
        """What ImageDecoder gives, and input_ids and attention_mask, (N, L), padded to the longest."""
        images, found = zip(*pairs, strict=True)
        draws = uniform(fold_in(sample_seeds, CAPTION_STREAM), 1)[:, 0].tolist()
        texts = [own[int(draw * len(own))] for own, draw in zip(found, draws, strict=True)]
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


__all__ = ["CAPTION_COLUMNS", "PairDecoder", "captions", "pair_rows"]
