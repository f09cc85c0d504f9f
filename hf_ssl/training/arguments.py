"""How a run is set: the arguments of every run, of the loop, and of each kind of data."""

import math
import re
from dataclasses import dataclass, field, fields

from accelerate.utils import LoggerType

from ..data.holdout import check_fraction
from ..data.views import VIEWS
from ..data.windows import WINDOW
from ..errors import InputError
from .optimizers import OPTIMIZERS, SCHEDULES
from .trackers import tracker_names

LARGEST_BATCH = 2**20  # of one process: what is larger is a slip of the keyboard
HUB_STRATEGIES = ("end", "every_save")
PREPARED = "Words are what stands between spaces; else runs of letters and digits, in lower case."


@dataclass
class RunArguments:
    """Arguments common to every run, however it trains."""

    output_dir: str = field(default="outputs", metadata={"help": "Release, checkpoints and logs of this run."})
    backbone: str | None = field(
        default=None, metadata={"help": "A preset of the script, or a release to go on from."}
    )
    config_overrides: str = field(
        default="", metadata={"help": "Config values: 'mask_ratio=0.6,backbone_config.hidden_size=256'."}
    )

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder or glob; none: the embedded sample."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "The split that is trained on."})
    test_split: str = field(default="test", metadata={"help": "The split that the evaluation at the end reports on."})
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Keep this part of train_split from training and report on it, at random, by label."},
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Rows with one value here, a person's say, stay together in test_fraction."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of labels, for the evaluation at the end."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read while training, without downloading first."})

    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data, if max_steps is -1."})
    learning_rate: float = field(default=1.5e-4, metadata={"help": "The highest rate."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, views and masks."})
    cpu_threads: int = field(
        default=0,
        metadata={"help": "Threads of a process on a CPU; 0: torch's choice. Small models are fastest on 1."},
    )

    logging_steps: int = field(default=50, metadata={"help": "Steps between log entries."})
    report_to: str = field(
        default="none", metadata={"help": "Trackers of Accelerate: trackio, tensorboard, wandb, all ..."}
    )
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints; 0: none but at SIGTERM."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints that are kept."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "auto, a checkpoint folder, or hub:org/name of a pushed training state."}
    )
    eval_protocols: str = field(
        default="knn,linear_probe", metadata={"help": "At the end, on the release; none: skip."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Of the weights, for the card, such as mit; none: that of the weights it begins from."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the release as --hub_model_id."})
    hub_model_id: str | None = field(default=None, metadata={"help": "The repository on the Hub, org/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Only those who may see the repository read it."})
    hub_strategy: str = field(
        default="end",
        metadata={"help": "end, or every_save: also at each checkpoint, with the training state; training waits."},
    )

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{each.name} must be a finite number, found {value}.")
        if not 0 <= self.seed < 2**32:  # what NumPy and scikit-learn take
            raise InputError(f"seed must be at least 0 and below 2**32, found {self.seed}.")
        for name in ("logging_steps", "save_total_limit"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}.")
        for name in ("learning_rate", "save_steps", "cpu_threads"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, found {getattr(self, name)}.")
        check_fraction(self.test_fraction, self.group_column, self.streaming)
        for tracker in self.report_to.split(","):
            check_known("report_to", tracker, ["none", "all", *(known.value for known in LoggerType)])
        tracker_names(self.report_to)
        check_known("hub_strategy", self.hub_strategy, HUB_STRATEGIES)
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"license '{self.license}' is no name that the Hub knows: expected one such as mit or apache-2.0."
            )
        if self.push_to_hub != bool(self.hub_model_id):
            raise InputError(
                "push_to_hub and hub_model_id belong together: give both, --push_to_hub --hub_model_id org/name."
            )


@dataclass
class TrainingArguments(RunArguments):
    """How a model is trained. What it is stands in its config. Processes and precision belong to the launcher.

    What belongs to one kind of data stands in the subclasses below.
    """

    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Rows of a stream that are shuffled together."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read and decode, per process."})
    max_broken_fraction: float = field(
        default=0.05,
        metadata={"help": "Stop when more of the rows, and more than 10, cannot be decoded; 0: at the first."},
    )

    max_steps: int = field(default=-1, metadata={"help": "Optimizer steps; -1: as num_train_epochs says."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Samples per process and forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes per optimizer step."})
    learning_rate: float = field(
        default=1.5e-4, metadata={"help": "For 256 samples a step; grows with the total batch."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": f"One of {', '.join(SCHEDULES)}; step: a tenth at 0.6 and 0.8 of the run."}
    )
    warmup_steps: float = field(default=0, metadata={"help": "Linear warm-up: steps, or, below 1, a part of the run."})
    optim: str = field(default="adamw", metadata={"help": f"One of {', '.join(OPTIMIZERS)}."})
    weight_decay: float = field(default=0.05, metadata={"help": "With adamw and lars not on biases and norms."})
    momentum: float = field(default=0.9, metadata={"help": "Of sgd and lars."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient's norm; 0: no clipping."})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Keep little of the forward pass and compute it again: less memory, slower."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if not 1 <= getattr(self, name) <= LARGEST_BATCH:
                raise InputError(
                    f"{name} must be at least 1 and at most {LARGEST_BATCH}, found {getattr(self, name)}."
                )
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError(
                f"There is nothing to train: max_steps={self.max_steps}, num_train_epochs={self.num_train_epochs}."
            )
        for name, known in (("optim", OPTIMIZERS), ("lr_scheduler_type", SCHEDULES)):
            check_known(name, getattr(self, name), known)
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be at least 0 and below 1, found {self.momentum}.")
        if not 0 <= self.max_broken_fraction <= 1:
            raise InputError(f"max_broken_fraction must lie in [0, 1], found {self.max_broken_fraction}.")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, found {getattr(self, name)}.")


@dataclass
class ImageArguments(TrainingArguments):
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found by type or name."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of a view in pixels; none: the backbone's, else 224."}
    )
    min_crop_scale: float | None = field(
        default=None, metadata={"help": "Smallest part of an image's area that a crop takes; none: the paper's."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size must be at least 1, found {self.image_size}.")
        if self.min_crop_scale is not None and not 0 < self.min_crop_scale <= 1:
            raise InputError(f"min_crop_scale must be above 0 and at most 1, found {self.min_crop_scale}.")


@dataclass
class TwoViewArguments(ImageArguments):
    views: str | None = field(default=None, metadata={"help": f"Augmentation: one of {', '.join(VIEWS)}."})
    jitter_strength: float | None = field(default=None, metadata={"help": "Multiplies the colour jitter; none: 1."})
    blur_probability: float | None = field(default=None, metadata={"help": "Of all views; none: the paper's."})
    solarize_probability: float | None = field(default=None, metadata={"help": "Of all views; none: the paper's."})

    def __post_init__(self):
        super().__post_init__()
        if self.views is not None:
            check_known("views", self.views, VIEWS)
        if (self.jitter_strength or 0) < 0:
            raise InputError(f"jitter_strength must not be negative, found {self.jitter_strength}.")
        for name in ("blur_probability", "solarize_probability"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"{name} must lie in [0, 1], found {getattr(self, name)}.")


@dataclass
class LabelArguments(TwoViewArguments):
    labels: int | None = field(
        default=None,
        metadata={
            "help": "Labels that are used, as many of each class; none: all there are, of the embedded images 100."
        },
    )
    label_fraction: float | None = field(
        default=None, metadata={"help": "In the place of labels: this part of those there are."}
    )
    labelled_dataset_name: str | None = field(
        default=None, metadata={"help": "Where the labelled images are, if not among those of dataset_name."}
    )
    label_noise: float = field(default=0.0, metadata={"help": "Replace this part of the labels by random ones."})
    unlabelled_per_label: int = field(
        default=1, metadata={"help": "Unlabelled images of a batch for each labelled one that is drawn beside them."}
    )
    train_baselines: bool = field(
        default=True,
        metadata={"help": "Also train the same network, for as many steps, on the labels alone and on all there are."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.labels is not None and self.label_fraction is not None:
            raise InputError(
                f"labels={self.labels} and label_fraction={self.label_fraction} say the same: give one of them."
            )
        if self.labels is not None and self.labels < 2:
            raise InputError(f"labels must be at least 2, found {self.labels}.")
        if self.label_fraction is not None and not 0 < self.label_fraction <= 1:
            raise InputError(f"label_fraction must be above 0 and at most 1, found {self.label_fraction}.")
        if not 0 <= self.label_noise <= 1:
            raise InputError(f"label_noise must lie in [0, 1], found {self.label_noise}.")
        if self.unlabelled_per_label < 1:
            raise InputError(f"unlabelled_per_label must be at least 1, found {self.unlabelled_per_label}.")
        if self.per_device_train_batch_size % self.unlabelled_per_label:
            raise InputError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} must be a multiple of unlabelled_per_label "
                f"{self.unlabelled_per_label}."
            )


@dataclass
class AudioArguments(TrainingArguments):
    audio_column: str | None = field(default=None, metadata={"help": "Column of audio; found by type or name."})
    speaker_column: str | None = field(
        default=None, metadata={"help": "Column of speakers, names or numbers; found by name, if there is one."}
    )
    window_samples: int = field(default=WINDOW, metadata={"help": "Samples of a window, at 16 kHz."})
    windows_per_speaker: int = field(
        default=0, metadata={"help": "Windows of one speaker that stand together in a batch; 0: as they come."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.window_samples < 1:
            raise InputError(f"window_samples must be at least 1, found {self.window_samples}.")
        if self.windows_per_speaker < 0:
            raise InputError(f"windows_per_speaker must not be negative, found {self.windows_per_speaker}.")
        if self.windows_per_speaker and self.per_device_train_batch_size % self.windows_per_speaker:
            raise InputError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} must be a multiple of windows_per_speaker "
                f"{self.windows_per_speaker}."
            )


@dataclass
class TextArguments(TrainingArguments):
    text_column: str | None = field(default=None, metadata={"help": "Column of documents; found by name."})


@dataclass
class WordArguments(RunArguments):
    text_column: str | None = field(default=None, metadata={"help": "Column of documents; found by name."})
    text_is_prepared: bool = field(
        default=False,
        metadata={"help": PREPARED},
    )


@dataclass
class SentenceArguments(TextArguments):
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "A release with a tokenizer of words; none: the backbone's, or the documents' own words."},
    )
    text_is_prepared: bool = field(default=False, metadata={"help": PREPARED})
    vocab_size: int = field(
        default=20_000, metadata={"help": "Words that are taken from the documents, the most frequent."}
    )
    window_sentences: int = field(default=8, metadata={"help": "Sentences of a document that are read together."})
    max_sentence_words: int = field(default=64, metadata={"help": "Words that are read of a sentence."})

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("vocab_size", 2), ("window_sentences", 2), ("max_sentence_words", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, found {getattr(self, name)}.")


@dataclass
class TokenArguments(TextArguments):
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Hub id or folder; none: the backbone's, or as train_tokenizer says."}
    )
    train_tokenizer: bool = field(default=False, metadata={"help": "Learn a WordPiece vocabulary from the documents."})
    vocab_size: int = field(default=30522, metadata={"help": "Entries of the vocabulary that is learnt."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens of a row, special ones counted."})
    dupe_factor: int = field(default=1, metadata={"help": "How often each document is cut, each time differently."})
    static_masking: bool = field(default=False, metadata={"help": "Hide the same tokens of a row in every epoch."})

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("vocab_size", 6), ("max_seq_length", 5), ("dupe_factor", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, found {getattr(self, name)}.")


@dataclass
class PairArguments(ImageArguments):
    text_column: str | None = field(
        default=None, metadata={"help": "Column of captions; found by name, of the embedded emoji their names."}
    )
    tags_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of words, some of which follow the caption, drawn anew for each epoch; embedded: keywords."
        },
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "Hub id or folder of an image encoder, or of a CLIP; none: the preset's, new."}
    )
    text_tower: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a text encoder, or of a CLIP; none: the preset's, new."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Hub id or folder; none: the text tower's, or learnt from captions and tags."}
    )
    vocab_size: int = field(default=49408, metadata={"help": "Entries of the vocabulary that is learnt."})
    max_seq_length: int = field(default=77, metadata={"help": "Tokens of a caption, special ones counted."})
    micro_batch_size: int = field(
        default=0,
        metadata={"help": "Pairs that are encoded at a time, to save memory, with the negatives of all; 0: all."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("vocab_size", 515), ("max_seq_length", 3), ("micro_batch_size", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, found {getattr(self, name)}.")


def check_known(name, value, known):
    if value not in known:
        raise InputError(f"{name} '{value}' is unknown: expected one of {', '.join(known)}.")


__all__ = [
    "AudioArguments",
    "ImageArguments",
    "LabelArguments",
    "PairArguments",
    "RunArguments",
    "SentenceArguments",
    "TextArguments",
    "TokenArguments",
    "TrainingArguments",
    "TwoViewArguments",
    "WordArguments",
]
