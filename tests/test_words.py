"""Text as word numbers, the training of word vectors, and what is done with them."""

import gzip
import json
import logging
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from processes import launch, run_plain
from test_scripts import complaints, run, run_card
from transformers import AutoModel, AutoTokenizer

from hf_ssl import Word2VecConfig, Word2VecForPreTraining
from hf_ssl.data import DataError, load_split, text_rows
from hf_ssl.data.words import Corpus, split_words, word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation.protocols.words import WordVectors, word_analogies, word_similarity
from hf_ssl.hub.conversion.word2vec import convert_word2vec
from hf_ssl.training.arguments import WordArguments
from hf_ssl.training.word_loop import train_words

TEXTS = ["The cat, the DOG;\n\nthe Cat's 2 dogs", "été Straße\n", None, "", "the end the end"]


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """300 of the embedded documents, in three shards."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(3):
        rows = load_split(None, "train", sample="text").select(range(100 * number, 100 * number + 100))
        rows.to_parquet(folder / f"train-{number:05d}-of-00003.parquet")
    load_split(None, "validation", sample="text").to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


def corpus(folder, streaming=False, **settings):
    return Corpus(*text_rows(load_split(str(folder), streaming=streaming)), **settings)


def test_words_are_runs_of_letters_and_digits_and_lines_stay_apart():
    lists = split_words(pa.array(TEXTS)).to_pylist()
    assert lists == [
        ["the", "cat", "the", "dog"],
        ["the", "cat", "s", "2", "dogs"],
        ["été", "straße"],
        ["the", "end", "the", "end"],
    ]
    assert split_words(pa.array(["A b-c  d\te"]), prepared=True).to_pylist() == [["A", "b-c", "d", "e"]]


def test_the_tokenizer_splits_as_the_corpus_does():
    texts = load_split(None, "validation", sample="text")["text"][:20]
    lists = split_words(pa.array(texts))
    words = sorted({word for line in lists.to_pylist() for word in line})[::2]  # every other word is unknown
    tokenizer, numbers = word_tokenizer(words), {word: number for number, word in enumerate(words, start=1)}
    for text in texts:
        expected = [numbers.get(word, 0) for line in split_words(pa.array([text])).to_pylist() for word in line]
        assert tokenizer(text)["input_ids"] == expected
    words = ["istanbul", "हिन्दी", "café", "cafe\u0301"]
    assert word_tokenizer(words)("İstanbul हिन्दी Café Cafe\u0301")["input_ids"] == [1, 2, 3, 4]
    assert split_words(pa.array(["İstanbul हिन्दी Café Cafe\u0301"])).to_pylist() == [words]
    spaces = [f"a{chr(code)}b" for code in (*range(1, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x3000, 0xFEFF)]
    backend = word_tokenizer(["a"], prepared=True).backend_tokenizer.pre_tokenizer
    for text in spaces:
        parts = [part for line in split_words(pa.array([text]), prepared=True).to_pylist() for part in line]
        assert [part for part, _ in backend.pre_tokenize_str(text)] == parts


def test_the_unknown_words_own_name_is_no_word():
    """As in text that went through a vocabulary before."""
    rows = datasets.Dataset.from_dict({"text": ["[UNK] aa [UNK] bb aa [UNK]"] * 9})
    text = Corpus(rows, "text", prepared=True)
    assert text.words == ["aa", "bb"] and text.unknown == 27
    [(_, _, ids, _)] = take(text.blocks(1), 1)
    assert ids.tolist()[:4] == [1, 2, 1, 0]
    assert word_tokenizer(text.words, prepared=True)("aa [UNK] bb cc")["input_ids"] == [1, 0, 2, 0]


def test_counts_and_blocks(documents):
    whole = corpus(documents)
    counted = {}
    for line in split_words(pa.array(load_split(str(documents))["text"])).to_pylist():
        for word in line:
            counted[word] = counted.get(word, 0) + 1
    assert dict(zip(whole.words, whole.counts[1:].tolist(), strict=True)) == {
        word: count for word, count in counted.items() if count >= 5
    }
    assert (whole.counts[1:].diff() <= 0).all() and whole.unknown == sum(c for c in counted.values() if c < 5)
    blocks = [ids for epoch, _, ids, _ in take(whole.blocks(7), 7)]
    sizes = [int((ids != 0).sum()) for ids in blocks]
    assert sum(sizes) == whole.total and max(sizes) - min(sizes) <= 1
    known, lists = set(whole.words), split_words(pa.array(load_split(str(documents))["text"][:5])).to_pylist()
    first = [whole.words[number - 1] for number in blocks[0].tolist() if number]
    assert first[:50] == [word for line in lists for word in line if word in known][:50]


def take(source, count):
    return [next(source) for _ in range(count)]


def test_a_stream_gives_the_same_blocks_and_is_taken_up_anywhere(documents):
    whole, stream = corpus(documents), corpus(documents, streaming=True)
    assert stream.words == whole.words and torch.equal(stream.counts, whole.counts)
    blocks = take(whole.blocks(9), 18)
    streamed = take(stream.blocks(9), 18)
    for (epoch, number, ids, _), (other_epoch, other_number, other, _) in zip(blocks, streamed, strict=True):
        assert (epoch, number) == (other_epoch, other_number) and torch.equal(ids[ids != 0], other[other != 0])
    position = json.loads(json.dumps(streamed[3][3]))  # as a checkpoint keeps it
    for before, after in zip(streamed[4:], stream.blocks(9, 0, 4, position), strict=False):
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.parametrize(
    "texts, settings, message",
    [
        ([""], {}, "0 words that occur at least min_count=5"),
        (["one two three"], {}, "of 3 different ones"),
        ([None, None], {"min_count": 1}, "0 words"),
    ],
)
def test_texts_that_are_too_small_are_refused(texts, settings, message):
    rows = datasets.Dataset.from_dict({"text": texts}, datasets.Features({"text": datasets.Value("string")}))
    with pytest.raises(DataError, match=message):
        Corpus(rows, "text", **settings)


def train(folder, output_dir, streaming=False, objective="negative_sampling", **changes):
    """(history, table) of two epochs on `documents`, as the script does it."""
    from accelerate.utils import gather_object

    from hf_ssl.evaluation.processes import process_state

    settings = dict(
        output_dir=str(output_dir), dataset_name=str(folder), streaming=streaming, num_train_epochs=2, learning_rate=0.025,
        logging_steps=1, save_steps=1, cpu_threads=1, seed=3,
    )  # fmt: skip
    args, state = WordArguments(**settings | changes), process_state()
    own = dict(process=state.process_index, processes=state.num_processes, gather=lambda part: gather_object([part]))
    text = corpus(folder, streaming, **own)
    sizes = dict(model_type="ssl_word_vectors", vocab_size=len(text.words) + 1, hidden_size=32)
    torch.manual_seed(args.seed)
    model = Word2VecForPreTraining(Word2VecConfig(backbone_config=sizes, objective=objective))
    model.counts.copy_(text.counts)
    done = train_words(model, text, args)
    return done.history, done.model.words.embeddings.weight.detach().numpy().copy(), text.words


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(documents, tmp_path, streaming):
    """SIGKILL after the second checkpoint; weights and history bit by bit, on one thread."""
    history, table, _ = launch(train, documents, tmp_path / "whole", streaming)[0]
    killed = tmp_path / "killed"
    codes = launch(train, documents, killed, streaming, kill_when=(killed / "checkpoints/step_2/manifest.json").exists)
    assert codes == [-9]
    again = launch(resume, documents, killed, streaming)[0]
    assert again[0] == history and np.array_equal(again[1], table)
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def resume(folder, output_dir, streaming):
    return train(folder, output_dir, streaming, resume_from_checkpoint="auto")


def test_two_processes_train_one_table(documents, tmp_path):
    one = launch(train, documents, tmp_path / "one")[0]
    two = launch(train, documents, tmp_path / "two", processes=2)
    assert np.array_equal(two[0][1], two[1][1]) and two[0][2] == one[2]
    assert two[0][0][-1]["loss"] == pytest.approx(one[0][-1]["loss"], rel=0.1)
    unit = [t[1:400] / np.linalg.norm(t[1:400], axis=1, keepdims=True) for t in (one[1], two[0][1])]
    agreement = np.corrcoef(*((u @ u.T)[np.triu_indices(399, 1)] for u in unit))[0, 1]
    assert agreement > 0.5, agreement  # of the cosines of frequent words


def test_the_softmax_is_for_study_and_claims_no_folder(documents, tmp_path):
    with pytest.raises(InputError, match="objective 'softmax' is for study"):
        train(documents, tmp_path / "run", objective="softmax")
    assert not (tmp_path / "run").exists()


def test_a_text_of_few_words_is_trained_one_by_one(tmp_path):
    """Blocks would add up hundreds of updates of each word, and diverge."""
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(f"w{n}" for n in row) for row in torch.randint(20, (5000, 20), generator=generator).tolist()]
    datasets.Dataset.from_dict({"text": lines}).to_parquet(tmp_path / "train.parquet")
    history, table, _ = train(tmp_path, tmp_path / "run")
    assert np.isfinite(table).all() and history[-1]["loss"] < history[0]["loss"] + 1


def test_a_run_is_not_taken_up_on_another_text(tmp_path):
    for name, words in (("one", ["cat"] * 90 + ["sun"] * 60), ("other", ["sun"] * 90 + ["cat"] * 60)):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict({"text": [" ".join(words + ["moon", "dog"] * 20)] * 9}).to_parquet(
            tmp_path / name / "train.parquet"
        )
    train(tmp_path / "one", tmp_path / "run")
    (tmp_path / "one/train.parquet").write_bytes((tmp_path / "other/train.parquet").read_bytes())
    with pytest.raises(InputError, match="The text has changed since this run began"):
        train(tmp_path / "one", tmp_path / "run", resume_from_checkpoint="auto", num_train_epochs=4)


@pytest.fixture(scope="module")
def vectors():
    """Four capitals and countries in a regular place to each other, and some other words."""
    words = ["paris", "france", "rome", "italy", "Berlin", "germany", "tokyo", "japan", "cat", "dog"]
    generator = torch.Generator().manual_seed(0)
    capital = torch.randn(16, generator=generator)
    table = torch.randn(10, 16, generator=generator)
    for country in (1, 3, 5, 7):
        table[country - 1] = table[country] + 2 * capital
    table[9] = table[8] + 0.1
    return WordVectors(words, table)


def test_analogies_by_section(vectors, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text(
        ": capitals\nParis France Rome Italy\nParis France berlin Germany\n: other\nparis france oslo norway\n"
    )
    found = word_analogies(vectors, file)
    assert found == {
        "capitals": {"correct": 2, "questions": 2, "unknown": 0},
        "other": {"correct": 0, "questions": 0, "unknown": 1},
        "total": {"correct": 2, "questions": 2, "unknown": 1},
    }
    assert vectors.analogy("france", "paris", "japan")[0][0] == "tokyo"
    assert [word for word, _ in vectors.most_similar("cat", 1)] == ["dog"] and vectors.similarity("cat", "dog") > 0.9
    file.write_text("paris france rome\n")
    with pytest.raises(InputError, match="line 1: found 'paris france rome', expected four words"):
        word_analogies(vectors, file)
    with pytest.raises(InputError, match="The word 'oslo' is not among"):
        vectors.similarity("oslo", "cat")


def test_similarity_is_spearmans(vectors, tmp_path, caplog):
    from scipy.stats import spearmanr

    file, pairs = tmp_path / "pairs.tsv", [("cat", "dog"), ("Paris", "rome"), ("cat", "japan"), ("dog", "italy")]
    lines = [f"{one}\t{other}\t{score}" for (one, other), score in zip(pairs, (9.5, 7, 1, 2.5), strict=True)]
    file.write_text("# judged\nWord 1\tWord 2\tmean\n" + "\n".join([*lines, "cat\tunicorn\t3"]))
    with caplog.at_level(logging.INFO):
        found = word_similarity(vectors, file)
    assert "line 2, 'Word 1\tWord 2\tmean', is taken for titles" in caplog.text
    cosines = [vectors.similarity(one.lower(), other) for one, other in pairs]
    assert found == {"spearman": pytest.approx(spearmanr(cosines, [9.5, 7, 1, 2.5])[0]), "pairs": 5, "unknown": 1}
    for lines in (
        "cat\tdog\t9,5\nParis\trome\t7\ncat\tjapan\t1\ndog\titaly\t2,5",
        'cat,dog,"9,5"\nParis,rome,7\ncat,japan,1\ndog,italy,"2,5"',
        "cat;dog;9,5\nParis;rome;7\ncat;japan;1\ndog;italy;2,5",
        "\ufeffcat dog  9.5\nParis rome 7\ncat   japan 1\ndog italy 2.5",
    ):
        file.write_text(lines, encoding="utf-8")
        assert word_similarity(vectors, file) == found | {"pairs": 4, "unknown": 0}
    file.write_text("cat,dog,3\ncat,dog,5,9\n")  # 5, and something else, or 5.9?
    with pytest.raises(InputError, match="line 2: found 'cat,dog,5,9', expected two words and a number"):
        word_similarity(vectors, file)
    file.write_text("cat\tdog\t3\nrome\tdog\t3\n")
    with pytest.raises(InputError, match="2 pairs have both words in the vocabulary, which are judged alike"):
        word_similarity(vectors, file)
    file.write_text("cat\tdog\t3\nrome\tdog\t4\n")
    flat = WordVectors(vectors.words, torch.ones(10, 2))
    assert word_similarity(flat, file)["spearman"] == 0
    file.write_text("# judged\n\ncat\tdog\t3\ncat\tdog\tvery\n")
    with pytest.raises(InputError, match="line 4: found .* expected two words and a number"):
        word_similarity(vectors, file)


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.bin"])
def test_files_of_word2vec_come_and_go(vectors, tmp_path, name):
    vectors.save(tmp_path / name)
    again = WordVectors.load(tmp_path / name)
    assert again.words == vectors.words and torch.equal(again.vectors, vectors.vectors)
    code, out, err = run("convert_checkpoint.py", "word2vec", tmp_path / name, "--output_dir", tmp_path / "release")
    assert code == 0, err
    program = """
import sys
import torch
from transformers import AutoModel, AutoTokenizer
tokenizer, model = (auto.from_pretrained(sys.argv[1], trust_remote_code=True) for auto in (AutoTokenizer, AutoModel))
output = model(**tokenizer(["paris Berlin nowhere", "cat"], padding=True, return_tensors="pt"))
print(output.last_hidden_state.shape, output.pooler_output.sum(1).tolist())
"""
    printed = run_plain(program, tmp_path / "release")
    expected = [vectors.vectors[[0, 4]].mean(0).sum().item(), vectors.vectors[8].sum().item()]
    assert printed.startswith("torch.Size([2, 3, 16])")
    assert json.loads(printed.split("]) ")[1]) == pytest.approx(expected, abs=1e-4)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(InputError, match="ends after 9 of 10 words"):
        WordVectors.load(tmp_path / name)


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.bin", "vectors.txt.gz", "vectors.bin.gz"])
def test_odd_files_of_word2vec(tmp_path, caplog, name):
    """Lines of more than 4096 bytes, words that stand twice or are no UTF-8, and what else is in files that people have."""
    table, binary = torch.randn(5, 512, generator=torch.Generator().manual_seed(0)), ".bin" in name
    words = [b"caf\xe9", b"caf\xe8", "\u00e9t\u00e9".encode(), b"cat", b"caf\xe9"]

    def write(words, table, count):
        row = lambda v: v.numpy().astype("<f4").tobytes() if binary else " ".join(map(repr, v.tolist())).encode()  # noqa: E731
        rows = [word + b" " + row(vector) for word, vector in zip(words, table, strict=True)]
        data = b"%d 512\n%s\n" % (count, b"\n".join(rows))
        (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
        return tmp_path / name

    found = WordVectors.load(write(words, table, 5))
    assert found.words == ["caf\\xe9", "caf\\xe8", "\u00e9t\u00e9", "cat"] and torch.equal(found.vectors, table[:4])
    assert "1 words stand twice; the first of each is taken" in caplog.text
    release = convert_word2vec(SimpleNamespace(file=tmp_path / name, output_dir=tmp_path / "release"))
    again = WordVectors.of_model(release.encoder, release.processor)
    assert again.words == found.words and torch.equal(again.vectors, found.vectors)
    with pytest.raises(InputError, match="announces 3 words, but goes on after them"):
        WordVectors.load(write(words, table, 3))
    table[1, 7] = torch.nan
    with pytest.raises(InputError, match=r"the vector of 'caf.*', word 2, has numbers that are not finite"):
        WordVectors.load(write(words, table, 5))
    path = write(words, table.nan_to_num(), 5)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="ends after [34] of 5|could not be read"):
        WordVectors.load(path)


def test_of_words_that_stand_twice_the_first_counts():
    vectors = WordVectors(["cat", "dog", "cat"], torch.eye(3))
    assert vectors["cat"].tolist() == [1, 0, 0]


def test_what_the_formats_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="The word 'new york' is empty or has a space"):
        WordVectors(["new york"], torch.ones(1, 2)).save(tmp_path / "vectors.bin")
    assert not list(tmp_path.iterdir())
    (tmp_path / "vectors.bin").write_bytes(b"1000000000000 300\nthe ")
    with pytest.raises(InputError, match="announces 1000000000000 words of 300 numbers"):
        WordVectors.load(tmp_path / "vectors.bin")


ODD_ROWS = {  # file -> its words
    "spaces": (b"2 3\nnew york 0.1 0.2 0.3\nof 1 2 3\n", ["new york", "of"]),
    "many spaces": (b"2 3\nthe new york 0.1 0.2 0.3\nof 1 2 3\n", ["the new york", "of"]),
    "empty": (b"2 1\n 0.5\nof 1\n", ["", "of"]),
    "commas": (b"2 2\na, 1,5 2,5\nb 1,0 -2,0\n", ["a,", "b"]),
    "BOM": (b"\xef\xbb\xbf1 2\nthe 1 2", ["the"]),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_odd_rows_of_text_are_read(case, tmp_path):
    data, words = ODD_ROWS[case]
    (tmp_path / "vectors.txt").write_bytes(data)
    found = WordVectors.load(tmp_path / "vectors.txt")
    assert found.words == words and found.vectors.abs().max() <= 3
    if case == "commas":
        assert found.vectors.tolist() == [[1.5, 2.5], [1, -2]]
    release = convert_word2vec(SimpleNamespace(file=tmp_path / "vectors.txt", output_dir=tmp_path / "release"))
    apart = "1 words, such as '.*', are empty or have a space: the tokenizer never finds them"
    assert bool(re.search(apart, "".join(release.notes))) == (case in ("spaces", "many spaces", "empty"))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"2 2\nthe 1 2 3\nof 3 4 5\n", "announces vectors of 2 numbers, but the first one has more, found 'the 1'"),
        (b"2 2\nthe 1 2\nof 3 x\n", "ends after 1 of 2 words, or holds something else there"),
        (b"1 2\n[UNK] 1 2\n", "has no word but \\[UNK\\], which is reserved"),
    ],
)
def test_text_that_holds_other_rows_is_refused(data, message, tmp_path):
    (tmp_path / "vectors.txt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        convert_word2vec(SimpleNamespace(file=tmp_path / "vectors.txt", output_dir=tmp_path / "release"))


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "glove.txt").write_text("the 0.1 0.2\n")
    with pytest.raises(InputError, match="begins with 'the 0.1 0.2': expected the number of words"):
        WordVectors.load(tmp_path / "glove.txt")


def test_the_script_leaves_word_vectors_that_plain_transformers_loads(documents, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("king\tlord\t8\nking\tfunction\t1\nking\tqwertz\t1\n")
    folder = tmp_path / "run"
    code, _, err = run(
        "pretrain_word2vec.py", "--dataset_name", documents, "--output_dir", folder, "--num_train_epochs", 1,
        "--config_overrides", "backbone_config.hidden_size=16", "--eval_protocols", "linear_probe,words",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run("evaluate.py", folder, "--protocols", "words", "--word_files", pairs)
    assert code == 0 and "| Pretrained |" in out, err
    code, _, err = run("evaluate.py", folder, "--protocols", "knn", "--word_files", pairs)
    assert code == 1 and "is for the protocol words, found knn" in err, err
    results = json.loads((folder / "eval_results.json").read_text())["results"]["pretrained"]
    assert results["linear_probe"] > 0  # what the first evaluation found is kept
    assert results["unknown:pairs"] == pytest.approx(33.33) and abs(results["similarity:pairs"]) == 100
    card = (folder / "README.md").read_text()
    assert "{{" not in card and "images/word_map.png" in card and (folder / "images/word_map.png").is_file()
    run_card(folder, "vectors.shape[::2] == (2, 16) and means.shape == (2, 16)")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Word2VecModel" and not any(report.values())
    words = WordVectors.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(words["king"], model(**tokenizer("King!", return_tensors="pt")).pooler_output[0])
    for arguments, message in (
        (["--text_column", "label"], "text_column 'label' is not in the data set"),
        (["--text_column", "source"], "text_column 'source' holds int64 values: expected text"),
        (["--config_overrides", "min_count=10000000"], "0 words that occur at least min_count=10000000"),
        (["--optim", "sgd"], "The argument --optim is unknown"),
        (["--backbone", folder], "word2vec begins anew"),
        (["--config_overrides", "backbone_config.hidden_size=0"], "hidden_size must be at least 1"),
    ):
        code, _, err = run(
            "pretrain_word2vec.py", "--dataset_name", documents, "--output_dir", tmp_path / "no", *arguments
        )
        assert code == 1 and message in err and len(complaints(err)) == 1, err
