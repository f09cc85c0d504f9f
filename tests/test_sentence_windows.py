"""From documents to windows of sentences: nothing lost, nothing invented, and streams that go on where they were."""

import json

import pytest
import torch
from test_segments import as_data, corpus

from hf_ssl.data import DataError, TrainLoader, WindowBatches, load_split, sentence_rows
from hf_ssl.data import segments as parts
from hf_ssl.data.sentence_windows import WindowMaker
from hf_ssl.data.words import Corpus, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(Corpus(as_data(corpus(40)), "text", 1).words)


def test_windows_are_the_documents_cut(tokenizer):
    """Each sentence stands in one window, in its order; lengths differ by one at most; lone sentences are left out."""
    texts = corpus(30)
    rows = sentence_rows(as_data(texts), "text", tokenizer, 4, 100)["input_ids"]
    expected = [[tokenizer(line)["input_ids"] for line in text.split("\n")] for text in texts]
    assert [sentence for row in rows for sentence in row] == [s for lines in expected if len(lines) > 1 for s in lines]
    sizes, at = [len(row) for row in rows], 0
    for lines in (lines for lines in expected if len(lines) > 1):
        own = sizes[at : at + -(-len(lines) // 4)]
        at += len(own)
        assert sum(own) == len(lines) and max(own) - min(own) <= 1 and 2 <= min(own) and max(own) <= 4
    cut = sentence_rows(as_data(texts), "text", tokenizer, 4, 3)["input_ids"]
    assert cut == [[sentence[:3] for sentence in row] for row in rows]


def test_batches_are_padded(tokenizer):
    rows = [[[1, 2, 3], [4]], [[5], [6, 7], [8, 9]]]
    batch = WindowBatches(4).collate(rows, None)["input_ids"]
    assert batch.shape == (2, 4, 3) and batch[0].tolist() == [[1, 2, 3], [4, 0, 0], [0] * 3, [0] * 3]
    assert batch[1, 2].tolist() == [8, 9, 0] and not batch[1, 3].any()


def test_odd_documents(tokenizer):
    make = WindowMaker(tokenizer, 4, 8)
    assert make({"text": ["", None, "aa", "unheard of\naa", "\n \n", "..."]}) == {"input_ids": []}
    a, b = tokenizer("aa bb")["input_ids"]
    [row] = make({"text": ["aa unheard\n???\nnever\nbb"]})["input_ids"]
    assert row == [[a, 0], [b]]  # an unknown word keeps its place, a sentence of such none
    with pytest.raises(DataError, match="Nothing is left of the 2 documents in 'text': none has two sentences"):
        sentence_rows(as_data(["aa", "bb"]), "text", tokenizer, 4, 8)


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_it_is_said_if_most_sentences_are_not_used(tokenizer, streaming, caplog):
    def make(texts):
        data = as_data(texts)
        return sentence_rows(data.to_iterable_dataset() if streaming else data, "text", tokenizer, 4, 8)

    with pytest.raises(DataError, match="Only 2 of 302 sentences of some documents in 'text' are used: expected doc"):
        make(["aa\nbb", *["aa ab"] * 300])
    make(["aa\nbb"] * 10 + ["unknown"] * 60)
    assert "Only 20 of 80 sentences" in caplog.text
    caplog.clear()
    make(["aa\nbb"] * 10 + ["unknown"] * 10)
    assert not caplog.records


def test_a_stream_of_documents_goes_on_where_it_was(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 5)
    for shard in range(3):
        name = f"train-{shard:05d}-of-00003.parquet"
        as_data(corpus(7 + 4 * shard, seed=shard)).to_parquet(tmp_path / name, batch_size=4)

    def loader(streaming):
        rows = sentence_rows(load_split(str(tmp_path), streaming=streaming), "text", tokenizer, 4, 8)
        return TrainLoader(rows, WindowBatches(4), 4, 0, buffer_size=8)

    for streaming in (False, True):
        through, expected = loader(streaming), []
        for step, batch in zip(range(60), through, strict=False):
            expected.append(batch["input_ids"])
            if step == 16:
                state = json.loads(json.dumps(through.state_dict()))
        assert through.epoch >= 1, "the test must cross an epoch"
        resumed = loader(streaming)
        resumed.load_state_dict(state)
        for batch, again in zip(expected[17:], resumed, strict=False):
            assert torch.equal(again["input_ids"], batch)
