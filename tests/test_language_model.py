"""Held-out words and next sentences, against slow counts."""

import math

import pytest
import torch
from test_segments import LETTERS, corpus
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertTokenizer

from hf_ssl.errors import InputError
from hf_ssl.evaluation.protocols.language_model import (
    evaluate_language_model,
    load_language_model,
    random_language_model,
)

TINY = dict(vocab_size=len(LETTERS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def model_of(kind, seed=0):
    torch.manual_seed(seed)
    return kind(BertConfig(**TINY)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab=LETTERS)


def test_a_model_that_knows_the_frequencies_scores_the_unigram_loss(tokenizer):
    """Whose logits are the logarithms of the frequencies, wherever it looks."""
    texts = corpus(30)
    tokens = tokenizer(" ".join(" ".join(texts).split()), add_special_tokens=False, verbose=False)["input_ids"]
    counts = torch.tensor(tokens).bincount(minlength=len(LETTERS)).double()
    model = model_of(BertForMaskedLM)
    torch.nn.init.zeros_(model.cls.predictions.decoder.weight)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.copy_((counts / counts.sum()).clamp(min=1e-30).log())
    results = evaluate_language_model(model, tokenizer, texts, max_seq_length=32)
    assert set(results) == {"mlm_loss", "mlm_perplexity", "mlm_accuracy", "mlm_tokens", "unigram_loss"}
    assert results["mlm_loss"] == pytest.approx(results["unigram_loss"], rel=1e-4)
    assert results["mlm_perplexity"] == pytest.approx(math.exp(results["mlm_loss"]))
    assert results["mlm_tokens"] == pytest.approx(0.15 * len(tokens), rel=0.15)
    assert results["mlm_accuracy"] == pytest.approx(100 * counts.max().item() / len(tokens), abs=3)


def test_a_coin_is_no_better_than_a_coin_and_an_oracle_is(tokenizer):
    """An oracle of next sentences: all words of a document begin with one letter, so both segments' letters tell."""
    texts, model = corpus(30), model_of(BertForPreTraining)
    coin = evaluate_language_model(model, tokenizer, texts, max_seq_length=32)
    assert coin["nsp_pairs"] > 100 and coin["nsp_accuracy"] == pytest.approx(50, abs=12) and coin["nsp_p_value"] > 1e-3

    class Oracle(BertForPreTraining):
        def forward(self, input_ids, attention_mask, token_type_ids):
            output = super().forward(input_ids, attention_mask, token_type_ids)
            letter = (input_ids - 6) // 10
            first, second = (
                letter.where((input_ids > 5) & (token_type_ids == segment), -1).max(1).values for segment in (0, 1)
            )
            output.seq_relationship_logits = torch.stack([first == second, first != second], 1).float()
            return output

    oracle = evaluate_language_model(Oracle(model.config).eval(), tokenizer, texts, max_seq_length=32)
    assert oracle["nsp_accuracy"] > 85 and oracle["nsp_p_value"] < 1e-6 and oracle["nsp_pairs"] == coin["nsp_pairs"]


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM])
def test_anybodys_checkpoint_is_read_with_the_heads_it_has(tokenizer, kind, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, own = load_language_model(tmp_path)
    assert type(loaded) is kind
    texts = corpus(10)
    results = evaluate_language_model(loaded, own, texts, 32)
    assert results == evaluate_language_model(loaded, own, texts, 32, batch_size=64) | {
        name: pytest.approx(results[name], rel=1e-5) for name in ("mlm_loss", "mlm_perplexity")
    }
    assert results["mlm_loss"] != evaluate_language_model(loaded, own, texts, 32, seed=1)["mlm_loss"]
    random = random_language_model(loaded, seed=3)
    assert type(random) is kind and evaluate_language_model(random, own, texts, 32)["mlm_loss"] != results["mlm_loss"]


def test_bad_input_is_one_sentence(tokenizer, tmp_path):
    with pytest.raises(InputError, match="nothing to evaluate on: found no sentence in 2 documents"):
        evaluate_language_model(model_of(BertForMaskedLM), tokenizer, ["", None])
    with pytest.raises(InputError, match="is not a folder or Hub id of a masked language model"):
        load_language_model(tmp_path)
