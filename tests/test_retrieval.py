"""Finding the next sentence among others: chance, an oracle, ties, and a slow loop; cross-validation of sentences."""

import pytest
import torch
from datasets import Dataset
from test_segments import corpus

from hf_ssl import CPCTextConfig, CPCTextForPreTraining
from hf_ssl.data.words import Corpus, word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation import bag_of_words, load_text_encoder
from hf_ssl.evaluation.protocols.logistic_regression import cross_validated_accuracy
from hf_ssl.evaluation.protocols.next_sentence_retrieval import (
    bag_predictions,
    load_predictor,
    predictions,
    retrieval_accuracy,
    sentence_windows,
)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder with a small model at random initialisation and the words of `corpus`, which tell the document."""
    folder = tmp_path_factory.mktemp("release")
    tokenizer = word_tokenizer(Corpus(Dataset.from_dict({"text": corpus(40)}), "text", 1).words)
    backbone = dict(model_type="ssl_cpc_text_model", vocab_size=len(tokenizer), embedding_size=8, hidden_size=16)
    torch.manual_seed(0)
    model = CPCTextForPreTraining(CPCTextConfig(backbone_config=backbone, context_size=8))
    model.export_encoder().save_pretrained(folder)
    model.save_pretrained(folder / "pretraining")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_is_encoded_as_one_sentence(release):
    """The feature of the release is its pooler_output, whatever else is in the batch."""
    encoder = load_text_encoder(release)
    assert encoder.feature == "pooler_output"
    texts = ["aa ab. ac", "ba, bb; unheard bc bd be bf"]
    with torch.no_grad():
        together = encoder(encoder.preprocess(texts))
        ids = encoder.processor(texts[0], return_tensors="pt")["input_ids"]
        assert len(ids[0]) == 3
        torch.testing.assert_close(together[:1], load_predictor(release).embed(ids))


def test_chance_an_oracle_and_words(release):
    model, encoder, texts = load_predictor(release), load_text_encoder(release), corpus(40)
    windows = sentence_windows(encoder.processor, texts)
    sentences, guesses, present = predictions(model, windows)
    assert sentences.shape[:2] == windows.shape[:2] and guesses.shape == (len(windows), 5, 3, 16)
    chance = retrieval_accuracy(sentences, torch.zeros_like(guesses), present)
    assert chance == pytest.approx([0.01] * 3)  # all equal: one of a hundred each
    different = torch.nn.functional.normalize(
        torch.randn(*sentences.shape[:2], 64, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    ahead = torch.stack([different[:, k : k + 5] for k in (1, 2, 3)], 2)
    assert retrieval_accuracy(different, ahead, present) == [1.0] * 3
    bag = bag_of_words(encoder, texts)
    assert min(retrieval_accuracy(*bag_predictions(bag, windows, 3))) > 0.05  # a word tells the document


def test_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    sentences, guesses = torch.randn(9, 6, 4, generator=generator), torch.randn(9, 4, 2, 4, generator=generator)
    present = torch.arange(6) < torch.randint(2, 7, (9, 1), generator=generator)
    places = present.nonzero().tolist()
    expected, draws = [], torch.Generator().manual_seed(5)
    for k in (1, 2):
        asked = [(n, t) for n in range(9) for t in range(4) if present[n, t + k]]
        others = torch.randint(len(places) - 1, (len(asked), 19), generator=draws)
        right = 0
        for (n, t), row in zip(asked, others.tolist(), strict=True):
            rest = [place for place in places if place != [n, t + k]]
            scores = [float(guesses[n, t, k - 1] @ sentences[tuple(rest[i])]) for i in row]
            right += float(guesses[n, t, k - 1] @ sentences[n, t + k]) > max(scores)
        expected.append(right / len(asked))
    assert retrieval_accuracy(sentences, guesses, present, seed=5, candidates=20) == pytest.approx(expected)


def test_cross_validation_scores_rows_that_were_not_fitted():
    """Two classes a distance of 2 apart: Bayes' accuracy is Phi(1) = 84.1%; labels at random stay at chance."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    features = torch.randn(600, 20, generator=generator)
    features[:, 3] += 2.0 * labels
    assert cross_validated_accuracy(features, labels) == pytest.approx(0.841, abs=0.03)
    shuffled = labels[torch.randperm(600, generator=generator)]
    assert cross_validated_accuracy(features, shuffled) == pytest.approx(0.5, abs=0.06)
    with pytest.raises(InputError, match="at least 10 rows of each class, found 4 of one"):
        cross_validated_accuracy(features[:104], torch.tensor([0] * 100 + [1] * 4))


def test_equals_up_to_rounding_share_and_what_is_not_finite_is_refused():
    """The same sentence may come from two batches, which round otherwise."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-7 * torch.randn(30, 6, 8, generator=generator)
    sentences, guesses = torch.ones(30, 6, 8) + noise, torch.ones(30, 5, 1, 8)
    present = torch.ones(30, 6, dtype=torch.bool)
    assert retrieval_accuracy(sentences, guesses, present) == pytest.approx([0.01])
    sentences[3, 2, 1] = torch.nan
    with pytest.raises(InputError, match=r"1 of 180 rows of the sentences are not finite \(row 20\)"):
        retrieval_accuracy(sentences, guesses, present)


def test_cross_validation_of_few_rows():
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert 0 <= cross_validated_accuracy(features, torch.arange(200) % 20) < 0.3  # ten of each of 20 classes
    with pytest.raises(InputError, match="needs rows of at least two classes, found 1 in the training part"):
        cross_validated_accuracy(features, torch.full((200,), 7))


def test_bad_input_is_one_sentence(release):
    with pytest.raises(InputError, match="needs more than 100 sentences in documents of two or more, found 2"):
        sentence_windows(load_text_encoder(release).processor, ["aa\nbb", "", None])
    with pytest.raises(InputError, match="pretraining of '.*nowhere' is not a folder or Hub id"):
        load_predictor(release / "nowhere")
