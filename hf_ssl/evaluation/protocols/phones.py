"""Phones: what is said at each moment, from the frames of a frozen encoder.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1: multinomial logistic regression on the vector of
each frame, not averaged over time, and the same with one hidden layer. How it was trained they do not say.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from ...data.audio import audio_rows
from ...data.loading import DataError, column_names
from ...errors import InputError
from ..encoders.audio import LONGEST
from ..features import because, checked_labels
from ..processes import process_state
from ..results import ROWS, Metric, percent
from .linear_probe import standardiser

logger = logging.getLogger(__name__)

EPOCHS, MIN_STEPS, BATCH_SIZE = 10, 2000, 1024
LEARNING_RATE = 1e-2
HIDDEN, HIDDEN_RATE = 512, 1e-3
MOST_SECONDS = 3 * 3600  # that are read of a split: waveforms and frames are kept in memory
CHUNK = 16384  # frames that are classified at a time
SLACK = 0.1  # seconds by which a segment may pass the end of its recording, as alignments in steps do
PAUSES = ("", "pau", "sil", "sp", "spn", "h#", "<sil>", "<eps>")
WITH_PAUSES = "_with_pauses"  # the end of a column's name
SETTINGS = {
    "frames": "labelled by the segment that covers their centre, others left out; standardised by the training frames",
    "optimizer": "Adam, cosine schedule",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate": LEARNING_RATE,
    "without_pauses": "the classifier of all frames, on the test frames that are no pause",
    "most_seconds": MOST_SECONDS,
}


class Utterance(NamedTuple):
    """waveform: (L,) float32. starts, ends: of its segments, in seconds, ascending; classes: of these. label: its own."""

    waveform: torch.Tensor
    starts: np.ndarray
    ends: np.ndarray
    classes: np.ndarray
    label: int | None = None

    def at(self, seconds):
        """The class of the segment that covers each of `seconds`, (T,) to (T,) int64; -1 where there is none."""
        if len(self.classes) == 0:
            return torch.full((len(seconds),), -1)
        found = np.searchsorted(self.starts, seconds, side="right") - 1
        covered = (found >= 0) & (seconds < self.ends[found])
        return torch.from_numpy(np.where(covered, self.classes[found], -1))

    def throughout(self, number):
        """The same with one segment from end to end, of class `number`."""
        return self._replace(starts=np.zeros(1), ends=np.full(1, np.inf), classes=np.full(1, number))


class Segments(NamedTuple):
    """How a column says what is when: it holds lists of {start, end, `key`}, in seconds. names: of the classes."""

    column: str
    key: str
    names: list

    def read(self, value):
        """(starts, ends, classes) of one row, without segments that lack one of the three."""
        value = value or []
        if isinstance(value, dict):  # a record of lists
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        value = [row for row in value if None not in (row["start"], row["end"], row[self.key])]
        rows = sorted(value, key=lambda row: row["start"])
        starts, ends = (np.array([row[key] for row in rows], np.float64) for key in ("start", "end"))
        numbers = {name: number for number, name in enumerate(self.names)}
        kinds = [row[self.key] for row in rows]
        return starts, ends, np.array([numbers[kind] if isinstance(kind, str) else kind for kind in kinds], np.int64)

    @property
    def pauses(self):
        return torch.tensor([number for number, name in enumerate(self.names) if name.lower() in PAUSES])


@dataclass
class Phones:
    """The protocol `phones`, or `phones_hidden`, as run.py describes. hidden: width of a layer between."""

    segments_column: str | None = None
    hidden: int = 0

    @property
    def column(self):
        return "phones_hidden" if self.hidden else "phones"

    @property
    def SETTINGS(self):
        return SETTINGS | ({"hidden": self.hidden, "learning_rate": HIDDEN_RATE} if self.hidden else {})

    @property
    def METRICS(self):
        name = (
            "phone accuracy of a hidden layer on frames"
            if self.hidden
            else "phone accuracy of a linear layer on frames"
        )
        return {
            self.column: Metric(f"{name}, without pauses"),
            self.column + WITH_PAUSES: Metric(f"{name}, with pauses"),
        }

    def run(self, encoders, source, output_dir):
        rows, found = (source.train_rows(), source.test_rows()), {}
        segments = find_segments(*rows, self.segments_column)  # on every process, so that all know if there are none
        if not process_state().is_main_process:
            return {}
        train, test = read_splits(encoders["pretrained"], source, *rows, segments)
        for row, each in encoders.items():
            described = f"{ROWS[row]}, {self.column.replace('_', ' ')}"
            frames, labels = labelled_frames(each, train, f"{described}, train")
            test_frames, test_labels = labelled_frames(each, test, f"{described}, test")
            if len(labels) == 0 or len(test_labels) == 0:
                raise InputError(
                    f"segments_column '{segments.column}' covers no frame of one part: expected start and end in seconds."
                )
            if row == "pretrained" and (labels == labels[0]).all() and (test_labels == labels[0]).all():
                logger.warning(
                    "All frames are of one phone, '%s': what is right of them says nothing.", segments.names[labels[0]]
                )
            predicted = classify_frames(
                frames, labels, test_frames, len(segments.names), self.hidden, seed=source.seed
            )
            found[row] = accuracies(self.column, predicted, test_labels, segments.pauses)
        return found


def classify_frames(train, train_labels, test, classes, hidden=0, **settings):
    """The class of each row of `test`, (M,) int64: the highest of `score_frames`."""
    return score_frames(train, train_labels, test, classes, hidden, **settings).argmax(1)


def score_frames(
    train, train_labels, test, classes, hidden=0, *, epochs=EPOCHS, min_steps=MIN_STEPS, seed=0, device=None
):
    """The log-probabilities of each row of `test`, (M, classes), by a softmax layer on the standardised rows of `train`, (N, D).

    hidden: the width of a ReLU layer before it. The same seed gives the same scores.
    """
    device, width = device or process_state().device, train.shape[1]
    standardise = standardiser(train, device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        below = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
        layers = nn.Sequential(*below, nn.Linear(hidden or width, classes)).to(device)
    optimizer = torch.optim.Adam(layers.parameters(), lr=HIDDEN_RATE if hidden else LEARNING_RATE)
    batch_size = min(BATCH_SIZE, len(train))
    steps_per_epoch = len(train) // batch_size
    steps = max(epochs * steps_per_epoch, min_steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        place = step % steps_per_epoch
        if place == 0:
            order = torch.randperm(len(train), generator=generator)
        rows = order[place * batch_size : (place + 1) * batch_size]
        loss = functional.cross_entropy(layers(standardise(train[rows])), train_labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.cat([layers(standardise(part)).log_softmax(1).cpu() for part in test.split(CHUNK)])


@torch.no_grad()
def labelled_frames(encoder, utterances, description=None):
    """((M, D) float32, (M,) int64): the finite frames that a segment covers, and their classes, on the CPU."""
    device, frames, labels, not_finite = process_state().device, [], [], 0
    for utterance in tqdm(utterances, unit=encoder.unit, desc=description):
        [values] = encoder.preprocess([utterance.waveform], device)
        found = encoder.frames(values[None])[0].cpu()
        classes = utterance.at(encoder.centres(len(found)))
        finite = found.isfinite().all(1)
        not_finite += int((~finite).sum())
        kept = (classes >= 0) & finite
        frames.append(found[kept])
        labels.append(classes[kept])
    if not_finite:
        logger.warning("%d frames were left out, since their features are not finite (%s).", not_finite, description)
    return torch.cat(frames), torch.cat(labels)


def accuracies(column, predicted, labels, pauses):
    """{column: percent of the frames that are no pause, column with WITH_PAUSES: of all}; the first alone if none is one."""
    right, spoken = (predicted == labels).float(), ~torch.isin(labels, pauses)
    found = {column: percent(right[spoken].mean().item())}
    return found if spoken.all() else found | {column + WITH_PAUSES: percent(right.mean().item())}


def read_splits(encoder, source, train, test, segments=None, label_column=None):
    """The rows of both splits that can be decoded, as lists of Utterances; `source.found` says how many."""
    found = [_read_utterances(encoder, source, rows, segments, label_column) for rows in (train, test)]
    (train, train_broken), (test, test_broken) = found
    counts = {"train_utterances": len(train), "test_utterances": len(test)}
    source.found |= counts | {f"broken_{encoder.kind}s": train_broken + test_broken}
    for split, utterances in ((source.train_split, train), (source.test_split, test)):
        if segments and not any(len(utterance.classes) for utterance in utterances):
            raise InputError(
                f"segments_column '{segments.column}' holds no segment in the split '{split}', expected some in both parts."
            )
    return train, test


def _read_utterances(encoder, source, rows, segments, label_column):
    """(Utterances, how many rows cannot be decoded)."""
    rows, column = audio_rows(rows, *source.columns)
    rows = rows.select_columns([name for name in (column, segments and segments.column, label_column) if name])
    utterances, seconds, broken, segment_count, misplaced, rate = [], 0, 0, 0, 0, encoder.processor.sampling_rate
    for row in source.drawn(rows):
        if (waveform := encoder.read(row[column])) is None:
            broken += 1
            continue
        length = len(waveform) / rate
        seconds += length
        if seconds > MOST_SECONDS:
            logger.warning("Only the first %d hours are read: max_samples draws from all.", MOST_SECONDS // 3600)
            break
        spans = segments.read(row[segments.column]) if segments else (np.empty(0),) * 3
        starts, ends, _ = spans
        placed = (starts >= -SLACK) & (starts < ends) & ((ends <= length + SLACK) | (length >= LONGEST))
        segment_count, misplaced = segment_count + len(placed), misplaced + int((~placed).sum())
        spans = [part[placed] for part in spans]
        label = checked_labels([row[label_column]], label_column)[0] if label_column else None
        utterances.append(Utterance(waveform, *spans, label))
    if not utterances:
        raise InputError(f"audio_column '{column}' holds no audio that can be decoded{because(encoder)}.")
    if broken:
        logger.warning("%d utterances could not be decoded and were left out%s.", broken, because(encoder))
    if misplaced:
        found = f"{misplaced} of {segment_count} segments in '{segments.column}' lie outside their recording or have no length"
        if 2 * misplaced >= segment_count:
            raise InputError(f"{found}: expected start and end in seconds.")
        logger.warning("%s, and are left out: are they in seconds?", found)
    return utterances, broken


def find_segments(train, test, segments_column=None):
    """The Segments of two splits. Raises DataError if there are none."""
    names = column_names(train)
    if segments_column is not None and segments_column not in names:
        raise DataError(f"segments_column '{segments_column}' is not in the data set: found the columns {names}.")
    for column in [segments_column] if segments_column else names:
        if kinds := _segment_kinds((train.features or {}).get(column)):
            break
    else:
        if segments_column:
            raise DataError(f"segments_column '{segments_column}' holds no lists of a start, an end and a label.")
        raise DataError(
            f"No column of segments was found among {names}: name it with --segments_column, "
            "or ask for other protocols."
        )
    [key] = kinds.keys() - {"start", "end"}
    kind = kinds[key]
    if isinstance(kind, datasets.ClassLabel):
        return Segments(column, key, kind.names)
    values = set()
    for rows in (train, test):
        for value in rows.select_columns([column]):
            value = value[column]
            values.update(value[key] if isinstance(value, dict) else (row[key] for row in value or []))
    values.discard(None)
    if not values:
        raise DataError(
            f"segments_column '{column}' holds no segments: expected lists of a start, an end and a label."
        )
    if all(isinstance(value, int) for value in values):
        return Segments(column, key, [str(number) for number in range(max(values) + 1)])
    return Segments(column, key, sorted(values))


def _segment_kinds(feature):
    """{start, end, label: type} of a column of segments, else None."""
    inner = getattr(feature, "feature", feature)  # a list of records, or a record of lists
    if not isinstance(inner, dict) or len(inner) != 3 or not {"start", "end"} <= inner.keys():
        return None
    return {name: getattr(kind, "feature", kind) if inner is feature else kind for name, kind in inner.items()}


__all__ = [
    "PAUSES",
    "Phones",
    "Segments",
    "Utterance",
    "accuracies",
    "classify_frames",
    "find_segments",
    "labelled_frames",
    "read_splits",
    "score_frames",
]
