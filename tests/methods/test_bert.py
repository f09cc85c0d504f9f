import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import MethodTester
from processes import run_plain
from transformers import BertForMaskedLM, BertForPreTraining

from hf_ssl import BERTConfig, BERTForPreTraining
from hf_ssl.cli.parse import build_model
from hf_ssl.data import train_wordpiece
from hf_ssl.methods._masking import mask_tokens

CLS, SEP, MASK, WORDS = 2, 3, 4, 60
TINY_BERT = dict(
    model_type="bert", vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64,
)  # fmt: skip


def pairs(seed=0, rows=8, longest=24):
    """Rows of two segments that count upwards; the second goes on where the first ends, or is of another parity."""
    draw = random.Random(seed)
    batch = {name: [] for name in ("input_ids", "attention_mask", "token_type_ids", "next_sentence_label")}
    for _ in range(rows):
        first, second, start, label = (
            draw.randint(6, 10),
            draw.randint(6, longest - 14),
            draw.randint(5, 20),
            draw.randint(0, 1),
        )
        tokens = [start + 2 * i for i in range(first + second)]
        ids = [CLS, *tokens[:first], SEP, *(token + label for token in tokens[first:]), SEP]
        room = longest - len(ids)
        batch["input_ids"].append([token % WORDS for token in ids] + [0] * room)
        batch["attention_mask"].append([1] * len(ids) + [0] * room)
        batch["token_type_ids"].append([0] * (first + 2) + [1] * (second + 1) + [0] * room)
        batch["next_sentence_label"].append(label)
    return {name: torch.tensor(value) for name, value in batch.items()}


class TestBERT(MethodTester):
    model_class = BERTForPreTraining
    config = dict(backbone_config=TINY_BERT, mask_token_id=MASK, special_token_ids=[CLS, SEP])
    chance_loss = torch.log(torch.tensor(55.0 * 2)).item()
    random_arguments = ("sample_seeds",)
    released_heads = ("cls.",)
    released_features = (
        "(output.last_hidden_state * (m := inputs['attention_mask'])[..., None]).sum(1) / m.sum(1)[:, None]"
    )

    def batch(self, seed=0):
        return pairs(seed) | {"sample_seeds": torch.arange(8) + 8 * seed}

    def inputs(self):
        return {name: self.batch()[name] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def masked_batch(self, model):
        """The batch with its masks drawn, as transformers takes it."""
        batch = self.batch()
        seeds, ids = batch.pop("sample_seeds"), batch.pop("input_ids")
        hidden, chosen, targets = model.mask(ids, batch["attention_mask"], seeds)
        labels = torch.full((ids.numel(),), -100).scatter(0, chosen, targets).view_as(ids)
        return batch | {"input_ids": hidden, "labels": labels}

    def test_loss_equals_transformers(self):
        """On the same masked batch, with logits at every position; loss and gradients."""
        model = self.model()
        native = BertForPreTraining(model.config.backbone_config)
        native.load_state_dict(model.state_dict())
        batch = self.masked_batch(model)
        theirs, ours, handed_in = native(**batch).loss, model(**self.batch()).loss, model(**batch).loss
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        torch.testing.assert_close(handed_in, theirs, rtol=0, atol=1e-6)
        theirs.backward()
        ours.backward()
        for (name, one), other in zip(model.named_parameters(), native.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)

    def test_loss_equals_a_slow_formula(self):
        """Word by word: the mean of -log p at the hidden words of the batch, plus the mean of -log p of the labels."""
        model = self.model().eval()
        batch = self.masked_batch(model)
        native = model.export_encoder()
        output = native(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        words = [
            -output.prediction_logits[row, place].log_softmax(0)[label].item()
            for row, labels in enumerate(batch["labels"].tolist()) for place, label in enumerate(labels) if label != -100
        ]  # fmt: skip
        follows = [-output.seq_relationship_logits[row].log_softmax(0)[label].item()
                   for row, label in enumerate(batch["next_sentence_label"])]  # fmt: skip
        expected = sum(words) / len(words) + sum(follows) / len(follows)
        assert model(**self.batch()).loss.item() == pytest.approx(expected, abs=1e-5)

    def test_vocabulary_is_scored_at_hidden_positions_only(self):
        model = self.model().eval()
        batch = self.batch()
        output = model(**batch)
        hidden, chosen, targets = model.mask(batch["input_ids"], batch["attention_mask"], batch["sample_seeds"])
        encoded = model.encode(hidden, batch["attention_mask"], batch["token_type_ids"])
        everywhere = model.cls.predictions(encoded.last_hidden_state)
        assert output.logits.shape == (8 * 4, WORDS)  # 4 of 24 tokens at most
        torch.testing.assert_close(output.logits, everywhere.flatten(0, 1)[chosen])
        used = targets != -100
        assert torch.equal(output.mask.flatten().nonzero()[:, 0], chosen[used].sort().values)

    def test_mask_belongs_to_the_sample(self):
        """The same alone, in another batch and with more padding."""
        model, batch = self.model(), self.batch()
        ids, mask, seeds = batch["input_ids"], batch["attention_mask"], batch["sample_seeds"]
        whole, _, _ = model.mask(ids, mask, seeds)
        alone, _, _ = model.mask(F.pad(ids[3:4], (0, 9)), F.pad(mask[3:4], (0, 9)), seeds[3:4])
        assert torch.equal(whole[3:4], alone[:, :24])
        assert not torch.equal(whole, model.mask(ids, mask, seeds + 1)[0])

    def test_the_heads_are_tied_and_drawn_as_transformers(self):
        model = self.model()
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
        for weight in (model.bert.encoder.layer[0].output.dense.weight, model.cls.predictions.transform.dense.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)

    @pytest.mark.parametrize("where", ["method", "backbone"])
    def test_untied_heads(self, tmp_path, where):
        """Words have one vector as input and another as output, wherever the config says so; the release has both."""
        backbone = TINY_BERT | ({"tie_word_embeddings": False} if where == "backbone" else {})
        own = {} if where == "backbone" else {"tie_word_embeddings": False}
        model = BERTForPreTraining(BERTConfig(**self.config | {"backbone_config": backbone}, **own)).eval()
        words, output = model.bert.embeddings.word_embeddings.weight, model.cls.predictions.decoder.weight
        assert not torch.equal(words, output) and not model.config.tie_word_embeddings
        ids, native = self.batch()["input_ids"], model.export_encoder()
        assert torch.equal(native.bert(ids).last_hidden_state, model.bert(ids).last_hidden_state)
        native.save_pretrained(tmp_path)
        begun = BERTForPreTraining(BERTConfig(**self.config | {"backbone_config": native.config}))
        begun.load_encoder(BertForPreTraining.from_pretrained(tmp_path))
        assert torch.equal(begun.bert.embeddings.word_embeddings.weight, words)
        assert torch.equal(begun.cls.predictions.decoder.weight, output)

    def test_begun_from_words_alone(self, tmp_path):
        """The pooler that a file of a masked language model lacks is not noise, if it is not to be trained."""
        BertForMaskedLM(self.model().config.backbone_config).save_pretrained(tmp_path)
        config = BERTConfig(**self.config, next_sentence_prediction=False)
        config.backbone_config.name_or_path = str(tmp_path)
        model = build_model(BERTForPreTraining, config, SimpleNamespace(seed=0))
        assert torch.equal(model.bert.pooler.dense.weight, torch.eye(32))
        model = BERTForPreTraining.from_pretrained(tmp_path, config=config)
        assert torch.equal(model.bert.pooler.dense.weight, torch.eye(32))

    def test_without_labels_only_words_count(self):
        model, batch = self.model().eval(), self.batch()
        label = batch.pop("next_sentence_label")
        both, words = model(**batch, next_sentence_label=label).loss, model(**batch).loss
        hidden, *_ = model.mask(batch["input_ids"], batch["attention_mask"], batch["sample_seeds"])
        follows = model.export_encoder()(
            hidden, batch["attention_mask"], batch["token_type_ids"]
        ).seq_relationship_logits
        torch.testing.assert_close(both, words + F.cross_entropy(follows, label))
        with pytest.raises(ValueError, match="next_sentence_prediction needs next_sentence_label"):
            model.train()(**batch)

    def test_words_only(self, tmp_path):
        """Without sentence pairs the pooler is not trained, and is not noise."""
        model = BERTForPreTraining(BERTConfig(**self.config, next_sentence_prediction=False))
        batch = self.batch()
        del batch["next_sentence_label"]
        model(**batch).loss.backward()
        untrained = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert untrained == {
            name for name, _ in model.named_parameters() if "pooler" in name or "relationship" in name
        }
        model.export_encoder().save_pretrained(tmp_path)
        encoder = BertForPreTraining.from_pretrained(tmp_path).bert
        output = encoder(batch["input_ids"])
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0].tanh())

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_packed_texts_do_not_see_each_other(self, attention):
        model = self.model().eval()
        model.set_attn_implementation(attention)
        ids = torch.randint(5, WORDS, (2, 20), generator=torch.Generator().manual_seed(0))
        texts = torch.tensor([[1] * 6 + [2] * 9 + [3] * 3 + [0] * 2, [1] * 20])
        whole = model.encode(ids, None, None, texts).last_hidden_state
        assert whole.isfinite().all()
        changed = ids.clone()
        changed[0, :6], changed[0, 15:] = 7, 9
        other = model.encode(changed, None, None, texts).last_hidden_state
        assert torch.equal(whole[0, 6:15], other[0, 6:15]) and not torch.equal(whole[0, :6], other[0, :6])
        alone = model.encode(ids[:1, 6:15], torch.ones(1, 9)).last_hidden_state  # positions count from 0 again
        torch.testing.assert_close(whole[0, 6:15], alone[0], rtol=1e-5, atol=1e-5)

    def test_packed_rows_train(self):
        model = BERTForPreTraining(BERTConfig(**self.config, next_sentence_prediction=False))
        batch = self.batch()
        texts = batch["attention_mask"] * (batch["token_type_ids"] + 1)
        output = model(batch["input_ids"], document_ids=texts, sample_seeds=batch["sample_seeds"])
        assert output.loss.isfinite() and not (output.mask.bool() & texts.eq(0)).any()

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"mask_probability": 1.5}, "mask_probability must lie in"),
            ({"random_fraction": 0.5}, "must add up to at most 1"),
            ({"max_predictions_per_seq": 0}, "max_predictions_per_seq"),
            ({"mask_token_id": WORDS}, "mask_token_id must lie in the vocabulary of 60"),
            ({"backbone_config": {"model_type": "vit"}}, "model_type 'bert'"),
        ],
    )
    def test_impossible_configs_are_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            BERTConfig(**self.config | change)


def test_as_many_are_hidden_as_in_the_original():
    """min(20, max(1, round(0.15 x length))), the length with [CLS] and [SEP], which are never hidden."""
    lengths = torch.arange(3, 180)
    ids = torch.full((len(lengths), 179), 9).masked_fill(torch.arange(179) >= lengths[:, None], 0)
    ids[:, 0] = CLS
    ids[torch.arange(len(lengths)), lengths - 1] = SEP
    hidden, positions, originals, used = mask_tokens(
        ids,
        ids.eq(9),
        lengths,
        lengths,
        probability=0.15,
        most=20,
        mask_id=MASK,
        vocab_size=WORDS,
        masked=1.0,
        random=0.0,
    )
    assert used.sum(1).tolist() == [min(20, max(1, round(0.15 * n))) for n in range(3, 180)]
    assert torch.equal(hidden.eq(MASK).sum(1), used.sum(1)) and originals[used].eq(9).all()
    for row in range(len(lengths)):
        places = positions[row][used[row]]
        assert len(places.unique()) == len(places) and (ids[row, places] == 9).all()
    nothing = mask_tokens(ids, ids.eq(8), lengths, lengths, probability=0.15, most=20, mask_id=MASK, vocab_size=WORDS)
    assert torch.equal(nothing[0], ids) and not nothing[3].any()


def test_eighty_ten_ten():
    """80% [MASK], 10% any word of the whole vocabulary, 10% unchanged; every position equally often."""
    rows, length = 4000, 32
    ids = torch.full((rows, length), 9)
    hidden, positions, _, used = mask_tokens(
        ids, torch.ones_like(ids, dtype=torch.bool), torch.full((rows,), length), torch.arange(rows), probability=0.15, most=20,
        mask_id=MASK, vocab_size=WORDS,
    )  # fmt: skip
    count = int(used.sum())
    assert count == 5 * rows
    now = Counter(hidden.gather(1, positions)[used].tolist())
    assert now[MASK] / count == pytest.approx(0.8 + 0.1 / WORDS, abs=0.01)
    assert now[9] / count == pytest.approx(0.1 + 0.1 / WORDS, abs=0.01)
    others = [now[word] for word in range(WORDS) if word not in (MASK, 9)]
    assert sum(others) / count == pytest.approx(0.1 * (WORDS - 2) / WORDS, abs=0.01) and min(others) > 10
    places = torch.bincount(positions[used], minlength=length) / count
    assert (places - 1 / length).abs().max() < 0.005


def test_fill_mask_and_classification_without_hf_ssl(tmp_path):
    """What the release is for: pipelines and heads of plain transformers."""
    tokenizer = train_wordpiece(lambda: iter(["the cat sat on the mat", "a dog ran over the hill"]), 60)
    config = BERTConfig(
        backbone_config=TINY_BERT | {"vocab_size": len(tokenizer)}, mask_token_id=4, special_token_ids=[2, 3]
    )
    BERTForPreTraining(config).export_encoder().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    program = """
import sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert type(tokenizer).__name__ == "BertTokenizer"
inputs = tokenizer("The cat", "a dog", return_tensors="pt")
assert tokenizer.decode(inputs["input_ids"][0]) == "[CLS] the cat [SEP] a dog [SEP]" and inputs["token_type_ids"].sum() == 3
guesses = pipeline("fill-mask", model=folder)("the [MASK] sat")
assert len(guesses) == 5 and all(0 < guess["score"] < 1 for guess in guesses)
for load in (AutoModel, AutoModelForMaskedLM):
    model, report = load.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and all(key.startswith(("cls.", "bert.pooler")) for key in report["unexpected_keys"])
assert torch.equal(AutoModel.from_pretrained(folder)(**inputs).pooler_output, AutoModel.from_pretrained(folder)(**inputs)[1])
classifier, report = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}, report
assert classifier(**inputs).logits.shape == (1, 3)
"""
    run_plain(program, tmp_path)
