"""The network trained with labels, from random initialisation: what its architecture can learn of the same recordings.

The row "supervised" of the table of van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1, in windows of
the length of that paper. How it was trained they do not say. Two networks, as far as there are labels: one for the phone of
each frame, one for the label of the utterance, by a linear layer on frames, or on their mean over time.
"""

import copy
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from ..data.audio import SPEAKER_COLUMNS
from ..data.loading import DataError, column_names
from .encoders import random_encoder
from .phones import Phones, accuracies, find_segments, read_splits
from .processes import process_state
from .protocols import METRICS, Metric, percent

EPOCHS, MIN_STEPS, BATCH_SIZE = 5, 600, 8
UTTERANCE_PART = 1 / 4  # of these, for the label of the utterance, which is learnt sooner
WINDOW = 1.28  # seconds: 20480 samples at 16 kHz
LEARNING_RATE, MAX_NORM = 3e-3, 1.0
WARMUP = 0.1  # of the steps
SETTINGS = {
    "initialisation": "random, with a linear layer on each frame or on their mean",
    "windows": f"{WINDOW} s, drawn at random, so many an epoch as fill the training part",
    "optimizer": "Adam, warm-up, cosine schedule",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "for_utterances": f"{UTTERANCE_PART} of the epochs and steps",
    "batch_size": BATCH_SIZE,
    "learning_rate": LEARNING_RATE,
    "warmup": WARMUP,
    "max_grad_norm": MAX_NORM,
    "test": "whole utterances",
}


@dataclass
class Supervised:
    """The protocol `supervised`, as protocols.py describes. label_column: of utterances; found as `audio_and_label` does."""

    segments_column: str | None = None
    label_column: str | None = None
    epochs: int = EPOCHS
    min_steps: int = MIN_STEPS
    METRICS: dict = field(default_factory=lambda: Phones().METRICS)

    @property
    def SETTINGS(self):
        return SETTINGS | {"epochs": self.epochs, "min_steps": self.min_steps}

    def run(self, encoders, source, output_dir):
        encoder = encoders.get("random_initialisation") or random_encoder(encoders["pretrained"], source.seed)
        train, test = source.train_rows(), source.test_rows()
        segments = _unless_missing(lambda: find_segments(train, test, self.segments_column), self.segments_column)
        labelled = _unless_missing(lambda: source.labelled_rows(self.label_column, SPEAKER_COLUMNS), self.label_column)
        if not (segments or labelled):
            raise DataError(f"Protocol 'supervised' found neither segments nor labels among {column_names(train)}.")
        if not process_state().is_main_process:
            return {}
        train, test, names, label_column = labelled or (train, test, None, None)
        train, test = read_splits(encoder, source, train, test, segments, label_column)

        found, settings = {}, {"epochs": self.epochs, "min_steps": self.min_steps, "seed": source.seed}
        if segments:
            classify = train_network(encoder, train, len(segments.names), of_frames=True, **settings)
            frames = [(classify(each.waveform), each) for each in test]  # (T, K) each
            labels = torch.cat([each.at(encoder.centres(len(logits))) for logits, each in frames])
            predicted = torch.cat([logits.argmax(1) for logits, _ in frames])
            covered = labels >= 0
            found |= accuracies("phones", predicted[covered], labels[covered], segments.pauses)
        if labelled:
            classes = len(names) if names else 1 + max(each.label for each in train + test)
            classify = train_network(encoder, train, classes, of_frames=False, **settings)
            right = [classify(each.waveform).argmax().item() == each.label for each in test]
            found["linear_probe"] = percent(sum(right) / len(right))
            self.METRICS |= metrics_of(label_column)
        return {"supervised": found}


def metrics_of(label_column):
    """The Metric of each column that is about the label of utterances, whose name the table then tells."""
    return {
        column: Metric(f"{metric.name}, {label_column}", title=f"{column.replace('_', ' ')} ({label_column})")
        for column, metric in METRICS.items()
    }


class Network(nn.Module):
    """Speech, (N, L), to classes of its frames, (N, T, K), or of the whole, (N, K)."""

    def __init__(self, encoder, classes, of_frames):
        super().__init__()
        self.model, self.encoder, self.of_frames = encoder.model, encoder, of_frames
        with torch.no_grad():
            second = torch.zeros(1, encoder.processor.sampling_rate, device=process_state().device)
            width = encoder.frames(second).shape[2]
        self.head = nn.Linear(width, classes)

    def forward(self, input_values):
        frames = self.encoder.frames(input_values)
        return self.head(frames if self.of_frames else frames.mean(1))


def train_network(encoder, utterances, classes, of_frames, *, epochs=EPOCHS, min_steps=MIN_STEPS, seed=0):
    """Train a copy of `encoder` and a linear layer on windows of Utterances, by their segments or by their labels. Gives a
    function of a waveform (L,) to its logits, (T, K) or (K,), on the CPU."""
    device, rate = process_state().device, encoder.processor.sampling_rate
    encoder = copy.copy(encoder)
    encoder.model = copy.deepcopy(encoder.model).to(device)
    waveforms = encoder.preprocess([utterance.waveform for utterance in utterances])
    lengths, size = torch.tensor([len(waveform) for waveform in waveforms]), round(WINDOW * rate)
    steps_per_epoch = int(lengths.sum()) // (BATCH_SIZE * size)
    steps = max(epochs * steps_per_epoch, min_steps)
    steps = steps if of_frames else math.ceil(UTTERANCE_PART * steps)
    generator = torch.Generator().manual_seed(seed)
    brief = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"  # what `accelerate launch --mixed_precision` sets
    with _seeded(seed):
        network = Network(encoder, classes, of_frames).to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for _ in tqdm(range(steps), desc=f"supervised, {'frames' if of_frames else 'utterances'}", unit="step"):
            rows = torch.multinomial(lengths.double(), BATCH_SIZE, replacement=True, generator=generator).tolist()
            places = torch.rand(BATCH_SIZE, generator=generator).tolist()
            starts = [
                int(place * max(1, len(waveforms[row]) - size + 1)) for row, place in zip(rows, places, strict=True)
            ]
            windows = torch.zeros(BATCH_SIZE, size)  # silence behind the end of shorter ones
            for window, row, start in zip(windows, rows, starts, strict=True):
                cut = waveforms[row][start : start + size]
                window[: len(cut)] = cut
            with torch.autocast(device.type, torch.bfloat16, enabled=brief):
                logits = network(windows.to(device)).float()
            if of_frames:
                centres = encoder.centres(logits.shape[1])
                targets = [utterances[row].at(start / rate + centres) for row, start in zip(rows, starts, strict=True)]
                targets = torch.cat(targets)  # (N T,)
            else:
                targets = torch.tensor([utterances[row].label for row in rows])
            loss = functional.cross_entropy(
                logits.flatten(0, -2), targets.to(device), ignore_index=-1, reduction="sum"
            )
            loss = loss / (targets >= 0).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
    network.eval()

    @torch.no_grad()
    def classify(waveform):
        [values] = encoder.preprocess([waveform], device)
        return network(values[None])[0].cpu()

    return classify


@contextmanager
def _seeded(seed):
    """Head and dropout follow from the seed, and the masks that wav2vec2 draws from NumPy while it is trained."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        yield
    np.random.set_state(state)


def _rate(step, steps):
    """Linear warm-up, then half a cosine."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _unless_missing(find, asked):
    """What `find` gives; None if nothing was asked for by name and nothing is there."""
    try:
        return find()
    except DataError:
        if asked:
            raise
        return None


__all__ = ["SETTINGS", "Supervised", "metrics_of", "train_network"]
