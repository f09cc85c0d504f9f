"""TrainingArguments and what one kind of data needs besides."""

from dataclasses import dataclass, field

from .data.views import TWO_VIEWS
from .data.windows import WINDOW
from .errors import InputError
from .training import RunArguments, TrainingArguments, check_known

PREPARED = "Words are what stands between spaces; else runs of letters and digits, in lower case."


@dataclass
class ImageArguments(TrainingArguments):
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found by type or name."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of a view in pixels; none: what the backbone's config says, else 224."}
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
    views: str | None = field(default=None, metadata={"help": f"Augmentation: one of {', '.join(TWO_VIEWS)}."})
    jitter_strength: float | None = field(default=None, metadata={"help": "Multiplies the colour jitter; none: 1."})
    blur_probability: float | None = field(default=None, metadata={"help": "None: the paper's."})
    solarize_probability: float | None = field(default=None, metadata={"help": "None: 0."})

    def __post_init__(self):
        super().__post_init__()
        if self.views is not None:
            check_known("views", self.views, TWO_VIEWS)
        if (self.jitter_strength or 0) < 0:
            raise InputError(f"jitter_strength must not be negative, found {self.jitter_strength}.")
        for name in ("blur_probability", "solarize_probability"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"{name} must lie in [0, 1], found {getattr(self, name)}.")


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


__all__ = [
    "AudioArguments",
    "ImageArguments",
    "PairArguments",
    "SentenceArguments",
    "TextArguments",
    "TokenArguments",
    "TwoViewArguments",
    "WordArguments",
]
