"""Documents as a run's data, and their vocabulary."""

from accelerate.utils import gather_object
from transformers import AutoTokenizer

from ..data import TokenBatches, WindowBatches, sentence_rows, text_rows, token_rows, train_wordpiece
from ..data.words import Corpus, word_tokenizer
from ..errors import InputError
from ..evaluation.processes import process_state
from ..training.checkpoints import from_main, kept_tokenizer
from .rows import log_rows, training_rows


def text_documents(args):
    """(documents, their column) that `--dataset_name` names."""
    documents = training_rows(args, "text")
    found = text_rows(documents, args.text_column)
    log_rows(args, documents, "documents")
    return found


def named_tokenizer(args, begun_from):
    """The tokenizer that a resumed run began with, that `--tokenizer_name` names, or that the model to go on from has, and
    its name; None if there is none of them. Called by every process."""
    kept = kept_tokenizer(args.output_dir, args.resume_from_checkpoint)
    name = kept or args.tokenizer_name or begun_from
    try:
        return (AutoTokenizer.from_pretrained(name) if name else None), name
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer_name '{name}' is not a folder or Hub id with a tokenizer.") from error


def take_vocabulary(native, tokenizer, name, begun_from):
    """The encoder of config `native` gets a row for each entry, unless it begins with rows of its own."""
    if not begun_from:
        native.vocab_size, native.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    elif len(tokenizer) > native.vocab_size:
        raise InputError(
            f"tokenizer_name '{name}' has {len(tokenizer)} entries, the encoder only {native.vocab_size}."
        )


def text_tokenizer(config, args, documents, column):
    """The tokenizer that a resumed run began with, that `--tokenizer_name` names or the backbone brings, or one learnt
    from the documents. `config` takes over its vocabulary. Called by every process."""
    native = config.backbone_config
    begun_from = config.name_or_path or native.name_or_path
    tokenizer, name = named_tokenizer(args, begun_from)
    if tokenizer is None and args.train_tokenizer:
        texts = lambda: (text or "" for block in documents.iter(1000) for text in block[column])  # noqa: E731
        tokenizer = from_main(process_state(), lambda: train_wordpiece(texts, args.vocab_size, args.max_seq_length))
    elif tokenizer is None:
        raise InputError("There is no vocabulary: name one by --tokenizer_name, or learn one by --train_tokenizer.")

    found = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("mask", "cls", "sep", "pad")}
    if None in found.values():
        raise InputError(f"tokenizer_name '{name}' is not of a masked language model: found {found}.")
    take_vocabulary(native, tokenizer, name, begun_from)
    if args.max_seq_length > native.max_position_embeddings:
        raise InputError(
            f"max_seq_length {args.max_seq_length} exceeds the backbone's {native.max_position_embeddings} positions: lower "
            "it, or set --config_overrides backbone_config.max_position_embeddings."
        )
    config.mask_token_id = found["mask_token_id"]
    config.special_token_ids = [found["cls_token_id"], found["sep_token_id"]]
    return tokenizer


def text_data(config, args, documents, column, tokenizer):
    """(rows of tokens, their decoder): pairs of segments, or packed text if the model predicts no next sentences."""
    pairs, state = config.next_sentence_prediction, process_state()
    with state.main_process_first():  # which prepares the rows for all
        rows = token_rows(documents, column, tokenizer, args.max_seq_length, pairs, args.dupe_factor, args.seed)
    return rows, TokenBatches(tokenizer.pad_token_id, pairs, args.static_masking)


def sentence_tokenizer(config, args):
    """The word tokenizer that is given, as in `text_tokenizer`, or the most frequent words of the documents. `config` takes
    over its vocabulary. Called by every process."""
    begun_from = config.name_or_path or config.backbone_config.name_or_path
    tokenizer, name = named_tokenizer(args, begun_from)
    if tokenizer is None:
        words = word_corpus(args, min_count=1).words[: args.vocab_size - 1]
        tokenizer = word_tokenizer(words, args.text_is_prepared)
    elif tokenizer.pad_token_id != 0 or tokenizer.unk_token_id != 0 or tokenizer.num_special_tokens_to_add():
        raise InputError(
            f"tokenizer_name '{name}' is not one of words: expected that of a cpc_text or word2vec release."
        )
    take_vocabulary(config.backbone_config, tokenizer, name, begun_from)
    return tokenizer


def sentence_data(config, args, documents, column, tokenizer):
    """(rows of windows of sentences, their decoder)."""
    if args.window_sentences <= config.prediction_steps:
        raise InputError(
            f"window_sentences must exceed prediction_steps={config.prediction_steps}, found {args.window_sentences}."
        )
    with process_state().main_process_first():  # which prepares the rows for all
        rows = sentence_rows(documents, column, tokenizer, args.window_sentences, args.max_sentence_words)
    return rows, WindowBatches(args.window_sentences)


def word_corpus(args, min_count):
    """The words of the text that `--dataset_name` names, counted by all processes together."""
    if args.num_train_epochs <= 0:
        raise InputError(f"There is nothing to train: num_train_epochs={args.num_train_epochs}.")
    documents, column = text_documents(args)
    state = process_state()
    gather = lambda part: gather_object([part])  # noqa: E731
    return Corpus(
        documents, column, min_count, args.text_is_prepared, state.process_index, state.num_processes, gather
    )
