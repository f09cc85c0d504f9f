"""Evaluation of dual encoders: images with texts as their data, zero-shot classification and retrieval beside the image
encoder's protocols."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets

from ..data.images import image_rows
from ..data.loading import LABEL_COLUMNS, find_column
from ..data.pairs import CAPTION_COLUMNS
from ..errors import InputError
from . import images
from .encoders.pairs import DualEncoder, load_dual_encoder
from .features import extract
from .processes import process_state
from .protocols import retrieval, zero_shot
from .protocols.fine_tune import FRACTIONS
from .results import ROWS
from .run import check_fine_tuning, check_protocols
from .sources import Source, numbered_classes

EXTRA = {"zero_shot": zero_shot, "retrieval": retrieval}  # as run.py describes
PROTOCOLS = (*EXTRA, *images.PROTOCOLS)
EMBEDDED = {"text_column": "name", "class_texts": "text"}  # the emoji: no caption speaks of "Symbols" or "Objects"
BLOCK = 1000  # rows read at a time


@dataclass
class PairSource(Source):
    """label_column, class_texts, prompts: of zero_shot. text_column: of retrieval. None: found by type or name."""

    label_column: str | None = None
    text_column: str | None = None
    class_texts: str | None = None
    prompts: tuple = zero_shot.PROMPTS
    encoded: dict = field(default_factory=dict)  # the image features of each encoder

    def test(self):
        """(the test rows, images undecoded; the image column)."""
        return image_rows(self.drawn(self.test_rows()), *self.columns)

    def labelled_test_rows(self):
        """(test rows, names of the classes or None, name of the label column)."""
        test = self.test_rows()
        column = find_column(test, self.label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
        kind = getattr((test.features or {}).get(column), "dtype", "")
        are_numbers = kind.startswith(("int", "uint")) and not isinstance(test.features[column], datasets.ClassLabel)
        test, _, names = numbered_classes(test, test, column)
        return self.drawn(test), None if are_numbers else names, column

    def find_texts(self, data):
        return find_column(data, self.text_column, "text", CAPTION_COLUMNS)

    def values(self, data, column):
        return [value for batch in data.select_columns([column]).iter(BLOCK) for value in batch[column]]

    def features(self, encoders, texts):
        """(row, features of the test images, features of `texts`) for each dual encoder, on the main process alone, though
        all of them extract."""
        for row, encoder in encoders.items():
            if isinstance(encoder, DualEncoder):
                images = self._image_features(encoder, ROWS[row])
                data = datasets.Dataset.from_dict({"text": texts})
                described = extract(encoder.texts, data, ("text",), description=f"{ROWS[row]}, texts", labelled=False)
                if described.not_finite:  # each text has its number
                    raise InputError(
                        f"'{encoder.name}' gives {described.not_finite} texts features that are not finite."
                    )
                if process_state().is_main_process:
                    yield row, images, described

    def _image_features(self, encoder, description):
        """Made once for all protocols."""
        if id(encoder) not in self.encoded:
            data, column = self.test()
            rows = extract(encoder, data.select_columns([column]), (column,), description=description, labelled=False)
            self.encoded[id(encoder)] = rows
        return self.encoded[id(encoder)]


def evaluate_pairs(
    name_or_path, dataset_name=None, config_name=None, protocols=("zero_shot", "retrieval"), train_split="train",
    test_split="test", image_column=None, text_column=None, label_column=None, *, prompts=None, class_texts=None, seed=0,
    max_samples=None, streaming=False, fine_tune_epochs=None, fine_tune_fractions=FRACTIONS, output_dir=None,
    baselines=True, revision=None, test_fraction=None, group_column=None, compare_with=None,
):  # fmt: skip
    """Run `protocols`, some of PROTOCOLS, on an encoder of images and texts and return the results; None but on the main
    process.

    As `evaluate_images`, and: dataset_name: None for the embedded emoji, whose texts are then their names. text_column: of
    retrieval. prompts: texts with {} for the name of the class, or one file with such a text a line. class_texts: a column
    of the training part whose texts describe the classes, instead of their names.

    Of the embedded emoji the classes are described by the texts of the training part, unless prompts are given. Texts are
    cut at the model's positions, and the results say how many were. Raises InputError.
    """
    check_protocols(protocols, PROTOCOLS, output_dir)
    check_fine_tuning(fine_tune_epochs, fine_tune_fractions)
    if prompts and class_texts:
        raise InputError(f"prompts and class_texts '{class_texts}' both describe the classes: give one of the two.")
    prompts = _read_prompts(prompts) if prompts else None
    if dataset_name is None:
        text_column = text_column or EMBEDDED["text_column"]
        class_texts = class_texts or (None if prompts else EMBEDDED["class_texts"])
    encoder = load_dual_encoder(name_or_path, revision)
    other = images.load_other(compare_with, encoder, protocols)
    source = PairSource(
        "emoji", dataset_name, config_name, train_split, test_split, (image_column,) if image_column else (), streaming,
        max_samples, seed, label_column=label_column, text_column=text_column, class_texts=class_texts,
        prompts=prompts or zero_shot.PROMPTS,
    )  # fmt: skip
    source.hold_out(test_fraction, group_column, label_column)
    described = {"class_texts": f"training texts of the column '{class_texts}'"}
    if class_texts is None:
        described = {"class_texts": "names in prompts", "prompts": list(source.prompts)}
    return images.run_image_protocols(
        encoder,
        source,
        protocols,
        label_column,
        fine_tune_epochs,
        fine_tune_fractions,
        output_dir,
        baselines,
        other,
        extra=EXTRA,
        settings={"zero_shot": zero_shot.SETTINGS | described},
    )


def _read_prompts(prompts):
    """The texts themselves, or the lines of the file that is named. Raises InputError for one without {}."""
    if len(prompts) == 1 and Path(prompts[0]).is_file():
        prompts = [line for line in map(str.strip, Path(prompts[0]).read_text().splitlines()) if line]
    for prompt in prompts or [""]:
        if "{}" not in prompt:
            raise InputError(f"prompts holds '{prompt}': expected {{}} in each, where the name of the class goes.")
    return tuple(prompts)


__all__ = ["PROTOCOLS", "PairSource", "evaluate_pairs"]
