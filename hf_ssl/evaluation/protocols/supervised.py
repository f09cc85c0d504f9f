"""The network trained with labels, from random initialisation: what its architecture can learn of the same recordings.

The row "supervised" of the table of van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1, in windows of
the length of that paper. How it was trained they do not say. Two networks, as far as there are labels: one for the phone of
each frame, one for the label of its utterance, which goes to the class that its frames together make most probable.
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

from ...data.audio import SPEAKER_COLUMNS
from ...data.loading import DataError, column_names
from ...errors import InputError
from ..encoders.loading import random_encoder
from ..processes import process_state
from ..results import named_after, percent
from .phones import Phones, accuracies, find_segments, read_splits
from .speakers import METRICS as SPEAKERS

EPOCHS, MIN_STEPS, BATCH_SIZE = 5, 600, 8
WINDOW = 1.28  # seconds: 20480 samples at 16 kHz
LEARNING_RATE, MAX_NORM = 3e-3, 1.0
WARMUP = 0.1  # of the steps
SETTINGS = {
    "initialisation": "random, with a linear layer on each frame",
    "windows": f"{WINDOW} s, drawn at random, so many an epoch as fill the training part",
    "optimizer": "Adam, warm-up, cosine schedule",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate": LEARNING_RATE,
    "warmup": WARMUP,
    "max_grad_norm": MAX_NORM,
    "test": "whole utterances",
}


@dataclass
class Supervised:
    """The protocol `supervised`, as run.py describes. label_column: of utterances; found as `audio_and_label` does."""

    segments_column: str | None = None
    label_column: str | None = None
    epochs: int | None = None  # none: EPOCHS, and MIN_STEPS where these are few
    METRICS: dict = field(default_factory=lambda: Phones().METRICS)

    @property
    def length(self):
        epochs, min_steps = (EPOCHS, MIN_STEPS) if self.epochs is None else (self.epochs, 1)
        return {"epochs": epochs, "min_steps": min_steps}

    @property
    def SETTINGS(self):
        return SETTINGS | self.length

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

        found, settings = {}, self.length | {"seed": source.seed}
        if segments:
            classify = train_network(encoder, train, len(segments.names), "phones", **settings)
            frames = [(classify(each.waveform), each) for each in test]  # (T, K) each
            labels = torch.cat([each.at(encoder.centres(len(logits))) for logits, each in frames])
            predicted = torch.cat([logits.argmax(1) for logits, _ in frames])
            covered = labels >= 0
            found |= accuracies("phones", predicted[covered], labels[covered], segments.pauses)
        if labelled:
            classes = len(names) if names else 1 + max(each.label for each in train + test)
            whole = [each.throughout(each.label) for each in train]
            classify = train_network(encoder, whole, classes, label_column, **settings)
            scores = [classify(each.waveform).log_softmax(1).sum(0) for each in test]  # (K,) each
            right = [score.argmax().item() == each.label for score, each in zip(scores, test, strict=True)]
            source.found["label_column"] = label_column
            self.METRICS = self.METRICS | named_after({"speakers": SPEAKERS["speakers"]}, label_column)
            found["speakers"] = percent(sum(right) / len(right))
        return {"supervised": found}


class Network(nn.Module):
    """Speech, (N, L), to the logits of its frames, (N, T, K)."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.model, self.encoder = encoder.model, encoder
        with torch.no_grad():
            second = torch.zeros(1, encoder.processor.sampling_rate, device=process_state().device)
            width = encoder.frames(second).shape[2]
        self.head = nn.Linear(width, classes)

    def forward(self, input_values):
        return self.head(self.encoder.frames(input_values))


def train_network(encoder, utterances, classes, of_what, *, epochs=EPOCHS, min_steps=MIN_STEPS, seed=0):
    """Train a copy of `encoder` and a linear layer on windows of Utterances, by their segments, which a progress bar calls
    `of_what`. Gives a function of a waveform (L,) to the logits of its frames, (T, K), on the CPU."""
    device, rate = process_state().device, encoder.processor.sampling_rate
    encoder = copy.copy(encoder)
    encoder.model = copy.deepcopy(encoder.model).to(device)
    waveforms = encoder.preprocess([utterance.waveform for utterance in utterances])
    lengths, size = torch.tensor([len(waveform) for waveform in waveforms]), round(WINDOW * rate)
    steps_per_epoch = int(lengths.sum()) // (BATCH_SIZE * size)
    steps = max(epochs * steps_per_epoch, min_steps)
    generator = torch.Generator().manual_seed(seed)
    brief = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"  # what `accelerate launch --mixed_precision` sets
    with _seeded(seed):
        network = Network(encoder, classes).to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for _ in tqdm(range(steps), desc=f"supervised, {of_what}", unit="step"):
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
            targets = []
            for row, start in zip(rows, starts, strict=True):
                moments = start / rate + encoder.centres(logits.shape[1])
                heard = torch.from_numpy(moments < lengths[row].item() / rate)
                targets.append(utterances[row].at(moments).where(heard, -1))
            targets = torch.cat(targets).to(device)  # (N T,)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1, reduction="sum")
            loss = loss / (targets >= 0).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
    if not loss.isfinite():
        raise InputError(
            f"supervised: the loss of {of_what} is not finite at the end: its accuracy would be that of chance."
        )
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


__all__ = ["SETTINGS", "Supervised", "train_network"]
