"""Encoders of texts: any model with a tokenizer, or a bag of words; reading their rows.

BERT's pooler is made for its next-sentence task, other checkpoints have none or get a random one at each load; so the
feature is the mean over the tokens' vectors, unless the architecture is ours, whose `pooler_output` is what it means.

A pair (u, v) has the feature [u, v, |u - v|, u * v], as InferSent's classifier (Conneau et al. 2017,
https://arxiv.org/abs/1705.02364): what one text says beside the other no single vector has.
"""

import inspect
from dataclasses import dataclass
from functools import partial

import datasets
import torch
from torch import nn
from transformers import AutoTokenizer

from ...data.loading import LABEL_COLUMNS, column_names, find_column
from ...data.text import text_rows
from ...errors import InputError
from .loading import load_model, locate, one_line

POOLED, CLS, MEAN = "pooler_output", "first token of last_hidden_state", "mean of last_hidden_state over tokens"
FEATURES = {"mean": MEAN, "pooler": POOLED, "cls": CLS}  # as `feature` names them
GLUE_PAIRS = (  # the columns of GLUE's tasks on two texts
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
MAX_LENGTH = 128  # tokens; what BERT's fine-tuning on GLUE reads
MOST_CHARACTERS = 2**18  # that are handed to a tokenizer, which takes all of a text apart before it cuts it
WORDS, COMPONENTS = 20_000, 300  # of the bag; 300 as most word vectors
FIT_ROWS = 20_000  # texts that a bag's words and components are found in


@dataclass
class TextEncoder:
    """`encoder(encoder.preprocess(texts))` gives features, (N, D) float32, of texts or (N, 4 D) of pairs (text, text).

    model: in eval mode, float32. processor: its tokenizer. feature: what is taken from it, a value of FEATURES.
    max_length: tokens that are read of a text.
    """

    model: nn.Module
    processor: object
    feature: str
    max_length: int
    name: str
    revision: str | None = None
    kind, unit, batch_size = "text", "text", 64
    padding = True  # to the longest text of a batch

    def find_columns(self, data, columns=(), label_column=None):
        return text_and_label(data, columns, label_column)

    def read(self, *texts):
        if not all(isinstance(text, str) for text in texts):
            return None
        texts = tuple(text[:MOST_CHARACTERS] for text in texts)
        return texts[0] if len(texts) == 1 else texts

    def too_long(self, items):
        """Of pairs each text counts by itself."""
        lengths = (len(ids) for ids in self.processor(_separate(items), verbose=False)["input_ids"])
        long = [length > self.max_length for length in lengths]
        return sum(any(long[i :: len(items)]) for i in range(len(items)))

    def preprocess(self, items, device=None):
        """N texts, or pairs of texts, to what the model reads, and whether they are pairs."""
        return self.tokenize(_separate(items), device), isinstance(items[0], tuple)

    def tokenize(self, texts, device=None):
        """Texts, or pairs to be read as one input, to the tensors that the model's forward names."""
        columns = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
        columns = [list(column) for column in columns]
        read = partial(self.processor, *columns, truncation=True, return_tensors="pt")
        tokens = read(max_length=self.max_length, padding=self.padding)
        if tokens["input_ids"].shape[1] == 0:  # no text has a token, nor does the tokenizer add any: padding alone
            tokens = read(max_length=1, padding="max_length")
        known = inspect.signature(self.model.forward).parameters
        return {name: tensor.to(device) for name, tensor in tokens.items() if name in known}

    def __call__(self, inputs):
        tokens, pairs = inputs
        features = self._features(tokens)
        return _combined(features) if pairs else features

    def _features(self, tokens):
        output = self.model(**tokens)
        if self.feature == POOLED:
            return output.pooler_output
        hidden = output.last_hidden_state  # (N, L, D)
        if self.feature == CLS:
            return hidden[:, 0]
        mask = tokens["attention_mask"].unsqueeze(-1).bool()
        return hidden.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)  # 0 of a text without tokens


@dataclass
class BagOfWords(TextEncoder):
    """tf-idf weights of a text's words, projected to the principal components of the training texts'.

    Dense and narrow, since the probe standardises each column: of 20,000 words it would blow the rarest up the most.
    """

    projection: object = None

    def too_long(self, items):
        return 0

    def preprocess(self, items, device=None):
        features = torch.from_numpy(self.projection.transform(_separate(items))).float()
        return features.to(device), isinstance(items[0], tuple)

    def _features(self, tokens):
        return tokens


def load_text_encoder(name_or_path, revision=None, max_length=None, feature=None):
    """A TextEncoder from a folder or Hub id: one of our releases or its `pretraining` part, or any text model that
    AutoModel and AutoTokenizer load. feature: a key of FEATURES, None for what the file's docstring says. Raises
    InputError if there is none, or if its features would be random."""
    if feature is not None and feature not in FEATURES:
        raise InputError(f"feature '{feature}' is unknown: expected one of {', '.join(FEATURES)}.")
    model, missing = load_model(name_or_path, revision)
    if model.main_input_name != "input_ids":
        reads = f"its model_type '{model.config.model_type}' reads {model.main_input_name}"
        raise InputError(f"'{name_or_path}' is not a text encoder: {reads}.")
    if model.config.is_encoder_decoder:
        raise InputError(f"'{name_or_path}' is an encoder with a decoder: expected an encoder or a decoder alone.")
    processor = load_tokenizer(name_or_path, revision, model.config.vocab_size)
    encoder = TextEncoder(model, processor, MEAN, 2, str(name_or_path), revision)
    encoder.max_length = _choose_length(encoder, max_length)
    encoder.feature = _choose_feature(encoder, feature, any("pooler" in key for key in missing))
    return encoder


def bag_of_words(encoder, items, seed=0):
    """A BagOfWords that stands beside `encoder`. items: training texts, or pairs, that words and components are found in."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    texts = _separate(items)
    words = TfidfVectorizer(max_features=WORDS, sublinear_tf=True)
    try:
        found = words.fit_transform(texts)
    except ValueError as error:
        raise InputError(f"The training texts give no bag of words: {one_line(error)}.") from error
    components = TruncatedSVD(min(COMPONENTS, *found.shape), random_state=seed).fit(found)
    name = f"{components.n_components} components of tf-idf"
    projection = make_pipeline(words, components)
    return BagOfWords(nn.Identity(), encoder.processor, name, encoder.max_length, encoder.name, projection=projection)


def text_and_label(data, columns=(), label_column=None):
    """(data with only these columns; the name of the text column, or of two; that of the label column).

    columns: one or two names; none: a pair that GLUE_PAIRS knows, else a text column found by name. Raises DataError if one is
    missing or holds no text.
    """
    label_column = find_column(data, label_column, "label", LABEL_COLUMNS, (datasets.ClassLabel,))
    names = column_names(data)
    pairs = [pair for pair in GLUE_PAIRS if set(pair) <= set(names)]
    columns = tuple(text_rows(data, name)[1] for name in columns or (pairs or [(None,)])[0])
    return data.select_columns([*columns, label_column]), columns, label_column


def _separate(items):
    """Texts as they are; pairs as all first texts, then all second ones."""
    return [text for side in zip(*items, strict=True) for text in side] if isinstance(items[0], tuple) else list(items)


def _combined(features):
    """Features of all first and all second texts, (2 N, D), to (N, 4 D)."""
    u, v = features.chunk(2)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def load_tokenizer(name_or_path, revision, vocab_size):
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(name_or_path)[0], revision=revision)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"'{name_or_path}' has no tokenizer that AutoTokenizer loads: {one_line(error)}.") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where there is no file
        raise InputError(
            f"'{name_or_path}' has no tokenizer: expected tokenizer.json or a vocabulary beside the weights."
        )
    if len(tokenizer) > vocab_size:
        found = f"has {len(tokenizer)} entries, the model {vocab_size}"
        raise InputError(f"The tokenizer of '{name_or_path}' {found}: they do not belong together.")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"The tokenizer of '{name_or_path}' has no pad_token: set one and save it.")
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, whatever it is
    tokenizer.padding_side = "right"
    return tokenizer


def longest(encoder):
    """How many tokens of a text its model takes."""
    config = encoder.model.config.get_text_config()
    most = encoder.processor.model_max_length  # a huge number if the tokenizer does not say
    if positions := getattr(config, "max_position_embeddings", None):
        # RoBERTa's positions begin after the padding's
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        most = min(most, positions - offset)
    return most


def _choose_length(encoder, max_length):
    most = longest(encoder)
    if max_length is not None and not 3 <= max_length <= most:
        raise InputError(
            f"max_length must be at least 3 and at most {most}, which '{encoder.name}' has, found {max_length}."
        )
    return max_length or min(MAX_LENGTH, most)


@torch.no_grad()
def _choose_feature(encoder, feature, pooler_is_random):
    try:
        output = encoder.model(**encoder.tokenize(["a text"]))
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise InputError(f"'{encoder.name}' does not encode texts alone: {one_line(error)}.") from error
    pooled = output.get("pooler_output") is not None and not pooler_is_random
    if feature == "pooler" and not pooled:
        raise InputError(f"'{encoder.name}' has no trained pooler: its features can be mean or cls.")
    if feature is None:
        ours = encoder.model.config.model_type.startswith("ssl_")
        return POOLED if pooled and ours else MEAN
    return FEATURES[feature]


__all__ = [
    "FEATURES",
    "FIT_ROWS",
    "MAX_LENGTH",
    "BagOfWords",
    "TextEncoder",
    "bag_of_words",
    "load_text_encoder",
    "load_tokenizer",
    "longest",
    "text_and_label",
]
