"""From documents to rows of tokens: the original's pairs, packed text, vocabularies, and what comes of odd documents."""

import hashlib
import json
import random
import time

import datasets
import pytest
import torch
from transformers import BertTokenizer

from hf_ssl.data import DataError, TokenBatches, TrainLoader, load_split, sentences, token_rows, train_wordpiece
from hf_ssl.data import segments as parts
from hf_ssl.data.segments import RowMaker, packed, segment_pairs
from hf_ssl.data.wordpiece import SPECIAL_TOKENS

LETTERS = {
    token: i
    for i, token in enumerate((*SPECIAL_TOKENS, ".", *(f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij")))
}


@pytest.fixture(scope="module")
def tokenizer():
    """Of words of two letters, so that a sentence has as many tokens as words."""
    return BertTokenizer(vocab=LETTERS)


def corpus(documents=12, seed=0):
    """Texts of one sentence a line; all words of a document begin with one letter."""
    draw = random.Random(seed)
    sentence = lambda letter: " ".join(letter + draw.choice("abcdefghij") for _ in range(draw.randint(1, 12)))  # noqa: E731
    return ["\n".join(sentence("abcdefghij"[i % 10]) for _ in range(draw.randint(1, 20))) for i in range(documents)]


def as_data(texts):
    return datasets.Dataset.from_dict({"text": texts}, features=datasets.Features({"text": datasets.Value("string")}))


@pytest.mark.parametrize(
    "seed, max_seq_length, count, expected",
    [(0, 128, 111, "3203331e651e572e"), (1, 64, 201, "80d2757fefc9eee4"), (2, 16, 392, "3e17778680b47287")],
)
def test_pairs_are_the_originals(seed, max_seq_length, count, expected):
    """Recorded from create_instances_from_document of google-research/bert at commit eedf571, its masking taken out: the
    tokens, labels and segment ids of 30 documents, with the same random.Random."""
    draw = random.Random(seed)
    documents = [
        [
            [draw.randrange(1000) for _ in range(draw.choice([1, 4, 9, 25, 80]))]
            for _ in range(draw.choice([1, 2, 7, 40]))
        ]
        for _ in range(30)
    ]
    draw, rows = random.Random(seed), []
    for number in range(30):
        for a, b, is_random in segment_pairs(documents, number, max_seq_length - 3, draw):
            rows.append([["[CLS]", *a, "[SEP]", *b, "[SEP]"], int(is_random), [0] * (len(a) + 2) + [1] * (len(b) + 1)])
    assert len(rows) == count and hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == expected


def test_pairs_are_what_they_say(tokenizer):
    """Label 0 goes on in the document, 1 comes from another one; both segments have words and fit."""
    texts = corpus(40)
    rows = token_rows(as_data(texts), "text", tokenizer, 32, copies=3)
    running = [" ".join(text.split()) for text in texts]
    labels = rows["next_sentence_label"]
    assert 0.5 < sum(labels) / len(labels) < 0.75  # a lone sentence is always followed by a random one
    for row in rows:
        first, second = row["lengths"]
        assert sum(row["lengths"]) == len(row["input_ids"]) <= 32 and first >= 3 and second >= 2
        a, b = (tokenizer.decode(part) for part in (row["input_ids"][1 : first - 1], row["input_ids"][first:-1]))
        assert row["input_ids"][0] == 2 and row["input_ids"][first - 1] == row["input_ids"][-1] == 3
        homes = [[i for i, text in enumerate(running) if part in text] for part in (a, b)]
        assert all(homes)
        if row["next_sentence_label"] == 0:
            assert set(homes[0]) & set(homes[1])
        elif len(a.split()) > 4 and len(b.split()) > 4:
            assert not set(homes[0]) & set(homes[1])
    assert len(set(rows["seed"])) == len(rows)
    texts_only = token_rows(as_data(texts), "text", tokenizer, 32, pairs=False)
    assert len(set(texts_only["seed"])) == len(texts_only)


def test_rows_follow_from_the_seed_and_are_cached(tokenizer, tmp_path):
    as_data(corpus()).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    make = lambda **how: token_rows(load_split(str(tmp_path)), "text", tokenizer, 32, **how)  # noqa: E731
    first = make()
    tokenizer("aa bb", truncation=True, max_length=3)  # leaves its mark in the tokenizer
    again = make()
    assert first.cache_files == again.cache_files and first[:] == again[:]
    assert make(seed=1)[:] != first[:] and len(make(copies=2)) > 1.5 * len(first)
    streamed = token_rows(load_split(str(tmp_path), streaming=True), "text", tokenizer, 32)
    assert list(streamed) == list(first)


def test_packed_rows_are_full_and_whole():
    documents = [[[1] * 7, [2] * 30], [[3] * 3], [[4] * 5]]
    rows = list(packed(documents, 16, 90, 91))
    assert [sum(lengths) for _, lengths in rows] == [len(row) for row, _ in rows]
    assert all(len(row) > 16 - parts.SMALLEST for row, _ in rows[:-1]) and max(len(row) for row, _ in rows) == 16
    texts = []
    for row, lengths in rows:
        start = 0
        for length in lengths:
            text = row[start : start + length]
            assert text[0] == 90 and text[-1] == 91 and length >= 3
            texts += text[1:-1]
            start += length
    assert texts == [1] * 7 + [2] * 30 + [3] * 3 + [4] * 5


def test_batches_are_forwards_arguments(tokenizer):
    texts, seeds = corpus(6), torch.arange(4)
    rows = token_rows(as_data(texts), "text", tokenizer, 24)[:4]
    rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    batch = TokenBatches(0).collate(rows, seeds)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "next_sentence_label", "sample_seeds"}
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][i, :length].tolist() == row["input_ids"] and not batch["input_ids"][i, length:].any()
        assert batch["attention_mask"][i].sum() == length and batch["token_type_ids"][i].sum() == row["lengths"][1]
    assert torch.equal(batch["sample_seeds"], seeds)
    static = TokenBatches(0, static_masks=True).collate(rows, seeds)
    assert static["sample_seeds"].tolist() == [row["seed"] for row in rows]

    rows = list(token_rows(as_data(texts), "text", tokenizer, 24, pairs=False))
    batch = TokenBatches(0, pairs=False).collate(rows, torch.arange(len(rows)))
    several = next(i for i, row in enumerate(rows) if len(row["lengths"]) == 2)
    assert batch["document_ids"][several].unique_consecutive().tolist()[:2] == [1, 2]
    assert torch.equal(batch["document_ids"].ne(0), batch["input_ids"].ne(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_documents_goes_on_where_it_was(tokenizer, tmp_path, workers, monkeypatch):
    """Blocks of documents are cut to rows on the way: the state is a block and how much of it has been used."""
    monkeypatch.setattr(parts, "BLOCK", 5)
    for shard in range(3):
        name = f"train-{shard:05d}-of-00003.parquet"
        as_data(corpus(7 + 4 * shard, seed=shard)).to_parquet(tmp_path / name, batch_size=4)

    def loader():
        rows = token_rows(load_split(str(tmp_path), streaming=True), "text", tokenizer, 32)
        return TrainLoader(rows, TokenBatches(0), 4, 0, workers, buffer_size=8)

    through = loader()
    batches = iter(through)
    expected = []
    for step in range(40):
        expected.append(next(batches))
        if step == 16:
            state = json.loads(json.dumps(through.state_dict()))
    batches.close()
    assert through.epoch >= 1, "the test must cross an epoch"
    resumed = loader()
    resumed.load_state_dict(state)
    batches = iter(resumed)
    for batch in expected[17:]:
        again = next(batches)
        assert all(torch.equal(again[name], batch[name]) for name in batch)
    batches.close()


def test_odd_documents(tokenizer):
    make = lambda texts, **how: token_rows(as_data(texts), "text", tokenizer, 16, **how)  # noqa: E731
    for texts in ([], [""], ["", None, "\n \n"]):
        with pytest.raises(DataError, match=f"Nothing is left of the {len(texts)} documents in 'text'"):
            make(texts)
    [row] = make(["aa ab"])  # no other document, no other sentence
    assert row["next_sentence_label"] == 1 and row["lengths"] == [4, 3]
    rows = make(["aa", "", "ba bb", None])
    assert rows["next_sentence_label"] == [1, 1]
    assert {tuple(ids) for ids in rows["input_ids"]} == {
        tuple(tokenizer("aa", "ba bb")["input_ids"]), tuple(tokenizer("ba bb", "aa")["input_ids"])
    }  # fmt: skip
    [row] = make(["[MASK] aa [SEP]"], pairs=False)  # words of a text are no special tokens
    assert row["input_ids"].count(4) == 0 and row["input_ids"].count(3) == 1


def test_a_long_document_is_taken_in_pieces(tokenizer, monkeypatch):
    monkeypatch.setattr(parts, "PIECE", 60)
    monkeypatch.setattr(parts, "GROUP", 200)
    text = "\n".join(["aa ab ac ad ae"] * 100 + ["b" * 1000])
    groups = list(parts.document_groups([text, None, "ba"]))
    assert len(groups) > 10 and max(sum(len(s) for piece in group for s in piece) for group in groups) <= 200
    assert max(sum(map(len, piece)) for group in groups for piece in group) <= 60
    assert "".join(s for group in groups for piece in group for s in piece) == text.replace("\n", "") + "ba"
    rows = RowMaker(tokenizer, 16)({"text": [text]})
    assert len(rows["input_ids"]) > 30


@pytest.mark.parametrize(
    "prose",  # with | where a sentence ends
    [
        "It rained. |Then it\n|stopped! |Why?",
        'He said "Stop!" |She went on. |It cost 3.50 dollars. |(Much more.) |12 people saw it? no one did.',
        '"Stop!" she said. |"Who are you?" |"I?" |Wait... |What, e.g. in A. A. Milne, is a man of the U.S. Army?!',
        "Mr. Smith and Dr. E. Jones saw Fig. 5 on p. 7 (cf. Vol. 2). |Was it No. 3? |No. |It was I. |See example.com.",
        "Écoutez le roi. |Étienne vit la maison. |À la fin, M. Dupont partit. |« Ah ! » dit-il.",
        "¿Qué pasa? |¡Nada! |Él se fue. |Ñandú.",
        "Das ist z. B. Öl. |„Über uns?“ |Ärger!",
        "Король увидел старый дом. |Он стоял у воды. |Это дом А. С. Пушкина, т. е. музей? |Да!",
        "Ο βασιλιάς είδε το σπίτι. |Ήταν εκεί; |Όχι· έφυγε. |Κανείς δεν ζούσε εκεί.",
        "राजा ने पुराना घर देखा। |वह पानी के पास था।|क्या वहाँ कोई था? |नहीं॥",
        "国王看到了那座老房子。|它在水边！|“有人吗？”|“没有。”|圆周率是3.14。|好!|走．|完",
        "彼は「はい。」|「いいえ。」|今日は晴れ｡|Ｖ．１．５です。|終わり",
        "ذهب الولد إلى البيت. |هل كان هناك؟ |نعم.",
        "یہ گھر ہے۔ |وہ کہاں ہے؟",
        "1. First of all. |II. Then - as always. |(A) Else. :)",
    ],
)  # fmt: skip
def test_prose_is_cut_into_sentences(prose):
    """At any length of the lines."""
    expected, text = [sentence.strip() for sentence in prose.split("|")], prose.replace("|", "")
    assert sentences(text) == expected and sentences("\n".join([text] * 20)) == 20 * expected
    assert len(sentences(" ".join(text.split("\n") * 20))) >= 20 * (len(expected) - 2)


def write(folder, texts):
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_each_of_several_text_files_is_a_document(tokenizer, tmp_path, streaming, caplog):
    """Of a single one each paragraph, or each line: which, the log says. Documents of a stream are paired with each other."""
    texts = corpus(30)
    folder = write(tmp_path / "folder", texts)
    for name in (folder, folder / "*.txt"):
        rows = load_split(str(name), streaming=streaming)
        assert [row["text"] for row in rows] == texts
    pairs = list(token_rows(rows, "text", tokenizer, 32))
    assert 0.3 < sum(row["next_sentence_label"] == 0 for row in pairs) / len(pairs)
    if streaming:
        assert rows.num_shards == 1  # read together
        words = [set(tokenizer.convert_ids_to_tokens(row["input_ids"])) - {"[CLS]", "[SEP]"} for row in pairs]
        assert any(len({word[0] for word in of_row}) == 2 for of_row in words)

    for name, text, rows in (
        ("paragraphs", "aa\nab\n\nba\nbb\n", ["aa\nab", "ba\nbb\n"]),
        ("lines", "aa\nab\nba", ["aa", "ab", "ba"]),
        ("an empty line", "aa\n" * 300 + "\n" + "ab\n" * 300, ["aa"] * 300 + [""] + ["ab"] * 300),
    ):
        folder = write(tmp_path / name, [text])
        assert [row["text"] for row in load_split(str(folder), streaming=streaming)] == rows
    write(tmp_path / "odd", ["aa", "ab"])
    (tmp_path / "odd/002.txt").write_bytes(b"\xff\xfe")
    if streaming:
        assert len(list(load_split(str(tmp_path / "odd"), streaming=True))) == 2
        assert "002.txt is left out: it is not UTF-8" in caplog.text


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_documents_of_one_sentence_are_told_from_others(tokenizer, streaming, caplog):
    def make(texts):
        data = as_data(texts)
        return token_rows(data.to_iterable_dataset() if streaming else data, "text", tokenizer, 32)

    lone, whole = ["aa ab ac"] * 400, ["aa ab\nba bb\nca cb"] * 8
    with pytest.raises(DataError, match=r"Only 0 of 400 pairs of segments in 'text' follow each other"):
        make(lone)
    make(lone[:30] + whole)
    assert "of segments in 'text' follow each other: expected documents of several sentences" in caplog.text
    caplog.clear()
    make(whole * 5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_embedded_documents_stay_a_sentence_a_line():
    """But for 5 of 4,153 lines, such as "... the botany of corks etc. Phellem or cork"."""
    documents = load_split(None, "validation", sample="text")["text"]
    lines = [line.strip() for text in documents for line in text.split("\n") if line.strip()]
    found = [sentence for text in documents for sentence in sentences(text)]
    assert len(set(lines) - set(found)) <= 5 and len(found) - len(lines) <= 5


def test_a_vocabulary_is_the_same_at_every_run_and_says_if_it_is_small(caplog):
    texts = load_split(None, "validation", sample="text")["text"]
    one, other = (train_wordpiece(lambda: iter(texts), 2000) for _ in range(2))
    assert one.get_vocab() == other.get_vocab() and len(one) == 2000
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert one.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert one.tokenize("The People") == ["the", "people"]
    small = train_wordpiece(lambda: iter(["one two"]), 500)
    assert len(small) < 30 and f"has {len(small)} entries; vocab_size asks for 500" in caplog.text
    with pytest.raises(DataError, match="no words"):
        train_wordpiece(lambda: iter(["", " "]), 500)


def test_a_vocabulary_of_a_line_without_spaces(caplog, monkeypatch):
    """Which took a time that grew with the square of its length."""
    line, started = "".join(random.Random(0).choices("abcdefgh", k=300_000)), time.process_time()
    with pytest.raises(DataError, match="found 299,999 of 300,000 characters stand in words of more than 100"):
        train_wordpiece(lambda: iter([line]), 500)
    with_words = train_wordpiece(lambda: iter([f"one two {line}, three", "four"]), 500)
    assert time.process_time() - started < 20 and "299,999 of 300,019 characters stand in words" in caplog.text
    words = ["one two , three", "four"]
    assert with_words.get_vocab() == train_wordpiece(lambda: iter(words), 500).get_vocab()
    monkeypatch.setattr("hf_ssl.data.wordpiece.PIECE", 10)
    pieces = train_wordpiece(lambda: iter([" ".join(words)]), 500)
    assert pieces.get_vocab() == train_wordpiece(lambda: iter(words), 500).get_vocab()
