"""Speakers, or what else utterances are labelled with: who says one, from the frames of a frozen encoder.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.1: multinomial logistic regression on the vector of each
frame, not averaged over time. An utterance is given to the speaker whom its frames together make most probable.
"""

from dataclasses import dataclass, field

import torch

from ...data.audio import SPEAKER_COLUMNS
from ..processes import process_state
from ..results import ROWS, Metric, named_after, percent
from .phones import SETTINGS as FRAMES
from .phones import labelled_frames, read_splits, score_frames

SETTINGS = {
    name: FRAMES[name] for name in ("optimizer", "epochs", "min_steps", "batch_size", "learning_rate", "most_seconds")
}
METRICS = {
    "speakers": Metric("speaker accuracy of utterances, by a linear layer on frames"),
    "speakers_of_frames": Metric("speaker accuracy of a linear layer on frames"),
}


@dataclass
class Speakers:
    """The protocol `speakers`, as run.py describes. label_column: of utterances; found as `audio_and_label` does."""

    label_column: str | None = None
    METRICS: dict = field(default_factory=lambda: METRICS)
    SETTINGS = SETTINGS

    def run(self, encoders, source, output_dir):
        train, test, names, label_column = source.labelled_rows(self.label_column, SPEAKER_COLUMNS)
        if not process_state().is_main_process:
            return {}
        source.found["label_column"], self.METRICS = label_column, named_after(METRICS, label_column)
        train, test = read_splits(encoders["pretrained"], source, train, test, label_column=label_column)
        speakers, found = torch.tensor([each.label for each in test]), {}
        classes = len(names) if names else 1 + max(each.label for each in train + test)
        for row, encoder in encoders.items():
            described = f"{ROWS[row]}, speakers"
            frames, labels = labelled_frames(encoder, [u.throughout(u.label) for u in train], f"{described}, train")
            test_frames, owners = labelled_frames(
                encoder, [u.throughout(i) for i, u in enumerate(test)], f"{described}, test"
            )
            scores = score_frames(frames, labels, test_frames, classes, seed=source.seed)  # (M, K)
            summed = torch.zeros(len(test), classes).index_add_(0, owners, scores)
            heard = owners.unique()  # of an utterance no frame may be finite
            right, right_frames = (summed.argmax(1) == speakers)[heard], scores.argmax(1) == speakers[owners]
            found[row] = {
                "speakers": percent(right.float().mean().item()),
                "speakers_of_frames": percent(right_frames.float().mean().item()),
            }
        return found


__all__ = ["METRICS", "SETTINGS", "Speakers"]
