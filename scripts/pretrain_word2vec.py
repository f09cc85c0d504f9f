"""Train word vectors by word2vec (Mikolov et al. 2013): skip-gram or CBOW.

accelerate launch scripts/pretrain_word2vec.py               # the embedded documents, a minute on a CPU
accelerate launch scripts/pretrain_word2vec.py --backbone cbow --dataset_name path/to/text --output_dir runs/mine
accelerate launch scripts/pretrain_word2vec.py --dataset_name wikimedia/wikipedia --dataset_config_name 20231101.en \\
    --streaming --config_overrides backbone_config.hidden_size=300,subsampling=1e-5 --output_dir runs/wikipedia
"""

from functools import partial

import torch

from hf_ssl import Word2VecConfig, Word2VecForPreTraining
from hf_ssl.cli import parse_arguments, word_corpus
from hf_ssl.data.words import word_tokenizer
from hf_ssl.errors import InputError, run_script
from hf_ssl.hub.release import finish_run, push_save
from hf_ssl.training.arguments import WordArguments
from hf_ssl.training.word_loop import train_words

# word2vec.c's defaults; the embedded documents are few, so they are read more often
ORIGINAL = dict(
    output_dir="outputs/word2vec", num_train_epochs=10, learning_rate=0.025, logging_steps=10, save_steps=1000,
    eval_protocols="linear_probe,words",
)  # fmt: skip
CBOW = ORIGINAL | dict(output_dir="outputs/word2vec-cbow", learning_rate=0.05)
RECIPES = {
    "skip-gram": ({}, ORIGINAL),
    "cbow": (dict(architecture="cbow"), CBOW),
    "skip-gram-hs": (dict(objective="hierarchical_softmax"), ORIGINAL),
    "cbow-hs": (dict(architecture="cbow", objective="hierarchical_softmax"), CBOW),
}


def main():
    config, args = parse_arguments(Word2VecConfig, RECIPES, WordArguments, __doc__)
    if args.backbone not in RECIPES:
        raise InputError(f"backbone '{args.backbone}' is unknown: word2vec begins anew, by one of {list(RECIPES)}.")
    corpus = word_corpus(args, config.min_count)
    config.backbone_config.vocab_size = len(corpus.words) + 1
    torch.manual_seed(args.seed)
    model = Word2VecForPreTraining(config)
    model.counts.copy_(corpus.counts)
    tokenizer = word_tokenizer(corpus.words, args.text_is_prepared)
    run = train_words(model, corpus, args, on_save=partial(push_save, tokenizer))
    finish_run(run, tokenizer)


if __name__ == "__main__":
    run_script(main)
