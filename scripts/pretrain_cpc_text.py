"""Pretrain CPC for text (van den Oord et al. 2018): from the sentences so far, tell the next ones from others.

hf-ssl pretrain cpc_text                                     # the embedded documents, some minutes on a CPU
hf-ssl pretrain cpc_text --backbone paper --dataset_name path/to/documents --output_dir runs/mine
"""

from hf_ssl import CPCTextForPreTraining
from hf_ssl.cli import (
    Preset,
    build_model,
    parse_arguments,
    pretrain,
    sentence_data,
    sentence_tokenizer,
    text_documents,
)
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import SentenceArguments

# Adam at 2e-4 with 8 x 64 windows; how many steps, the paper does not tell
PAPER = dict(
    output_dir="outputs/cpc_text", test_split="validation", per_device_train_batch_size=64, num_train_epochs=5,
    learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.999,
    eval_protocols="linear_probe,next_sentence_retrieval",
)  # fmt: skip
# chosen by retrieval on a tenth of the training documents
MINUTES = PAPER | dict(
    window_sentences=16, per_device_train_batch_size=16, num_train_epochs=3, learning_rate=4.8e-2, lr_scheduler_type="cosine",
    warmup_steps=0.05, cpu_threads=1,
)  # fmt: skip
SMALL = dict(
    backbone_config=dict(model_type="ssl_cpc_text_model", embedding_size=128, hidden_size=256), context_size=256
)
PRESETS = {
    "small": Preset(SMALL, MINUTES, "minutes on a CPU, a million words"),
    "paper": Preset({}, PAPER, "the paper's, a billion words"),
}


def main():
    config, args = parse_arguments(CPCTextForPreTraining, PRESETS, SentenceArguments, __doc__)
    documents, column = text_documents(args)
    tokenizer = sentence_tokenizer(config, args)
    rows, decoder = sentence_data(config, args, documents, column, tokenizer)
    model = build_model(CPCTextForPreTraining, config, args)
    pretrain(model, rows, decoder, args, tokenizer, tokenizer)


if __name__ == "__main__":
    run_script(main)
