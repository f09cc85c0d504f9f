"""Train word vectors by word2vec (Mikolov et al. 2013): skip-gram or CBOW.

hf-ssl pretrain word2vec                                     # the embedded documents, a minute on a CPU
hf-ssl pretrain word2vec --backbone cbow --dataset_name path/to/documents --output_dir runs/mine
hf-ssl pretrain word2vec --dataset_name wikimedia/wikipedia --dataset_config_name 20231101.en \\
    --streaming --config_overrides backbone_config.hidden_size=300,subsampling=1e-5 --output_dir runs/wikipedia
"""

from hf_ssl import Word2VecForPreTraining
from hf_ssl.cli import Preset, pretrain_words
from hf_ssl.errors import run_script

# word2vec.c's defaults; the embedded documents are few, so they are read more often
ORIGINAL = dict(
    output_dir="outputs/word2vec", num_train_epochs=10, learning_rate=0.025, logging_steps=10, save_steps=1000,
    eval_protocols="linear_probe,words",
)  # fmt: skip
CBOW = ORIGINAL | dict(output_dir="outputs/word2vec-cbow", learning_rate=0.05)
HIERARCHICAL = dict(objective="hierarchical_softmax")
PRESETS = {
    "skip-gram": Preset({}, ORIGINAL, "negative sampling: rare words, any size of text"),
    "cbow": Preset(dict(architecture="cbow"), CBOW, "negative sampling: the quickest"),
    "skip-gram-hs": Preset(HIERARCHICAL, ORIGINAL, "hierarchical softmax: no noise distribution"),
    "cbow-hs": Preset(dict(architecture="cbow") | HIERARCHICAL, CBOW, "hierarchical softmax: no noise distribution"),
}


def main():
    pretrain_words(Word2VecForPreTraining, PRESETS, __doc__)


if __name__ == "__main__":
    run_script(main)
