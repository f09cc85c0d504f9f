"""Evaluation of text encoders: features of real tokens only, documents as passages, GLUE's layouts, and refusals."""

import json
from types import SimpleNamespace

import datasets
import pytest
import torch
from jinja2 import Environment, FileSystemLoader
from processes import launch
from test_scripts import run
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5Model,
    TokenizersBackend,
    WhisperConfig,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_ssl import CPCTextModel, CPCTextModelConfig, Word2VecModel, WordVectorsConfig
from hf_ssl.data import load_split, passages, sentences
from hf_ssl.data.words import word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation import (
    LabelledRows,
    Metric,
    bag_of_words,
    evaluate_text,
    extract,
    find_modality,
    fine_tune_text,
    frozen,
    load_text_encoder,
    random_encoder,
    results_table,
    text,
)
from hf_ssl.evaluation.encoders.text import text_and_label
from hf_ssl.evaluation.protocols.fine_tune_text import TASKS, HeadOnFeature, NativeClassifier, _classifier, _scores
from hf_ssl.hub.card import CARDS, _eval_results

SOURCES = ("kjv", "python", "factbook")
SIZES = {
    "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A data set of documents from three of the embedded sources."""
    folder = tmp_path_factory.mktemp("documents")
    for split, count in (("train", 8), ("validation", 3)):
        data = load_split(None, split, sample="text")
        numbers = [data.features["source"].str2int(name) for name in SOURCES]
        rows = [row for number in numbers for row in [i for i, s in enumerate(data["source"]) if s == number][:count]]
        texts = [data[row]["text"][:6000] for row in rows]
        columns = {"text": texts, "source": [numbers.index(data[row]["source"]) for row in rows]}
        kinds = datasets.Features({"text": datasets.Value("string"), "source": datasets.ClassLabel(names=[*SOURCES])})
        datasets.Dataset.from_dict(columns, kinds).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def tokenizer(documents):
    """WordPiece, learnt from the documents."""
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(load_split(str(documents))["text"], SIZES["vocab_size"], show_progress=False)
    return BertTokenizer(vocab=learner.get_vocab())


def save(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tokenizer, tmp_path_factory):
    """A folder with a small BERT at random initialisation, heads and all, and its tokenizer."""
    torch.manual_seed(1)
    return save(BertForPreTraining(BertConfig(**SIZES)), tmp_path_factory.mktemp("bert"), tokenizer)


def labelled(texts, labels, **kinds):
    return datasets.Dataset.from_dict(texts | {"label": labels}).cast_column("label", kinds.get("label", CLASSES))


CLASSES = datasets.ClassLabel(names=["no", "yes"])
PAIR = {"sentence1": ["god is in heaven"] * 6, "sentence2": ["the module returns a list", None, "a", "b", "c", "d"]}


# encoders


@pytest.mark.parametrize("kind", ["cpc_text", "word2vec", "gpt2"])
def test_texts_without_words_have_features_too(kind, tmp_path):
    """First, or alone in a batch; where no tokenizer adds tokens of its own."""
    model = {
        "cpc_text": lambda: CPCTextModel(CPCTextModelConfig(vocab_size=3, embedding_size=4, hidden_size=8)),
        "word2vec": lambda: Word2VecModel(WordVectorsConfig(vocab_size=3, hidden_size=8)),
        "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, n_positions=16)),
    }[kind]()
    encoder = load_text_encoder(save(model, tmp_path, word_tokenizer(["aa", "bb"])))
    features = lambda *texts: encoder(encoder.preprocess(texts))  # noqa: E731
    with torch.no_grad():
        alone = features("aa bb")
        assert alone.abs().sum() > 0
        for texts in ([":)"], ["", ":)"], [":)", "aa bb"], ["aa bb", ""]):
            for text, feature in zip(texts, features(*texts), strict=True):
                torch.testing.assert_close(feature, alone[0] if text == "aa bb" else torch.zeros(8))
        assert features(("", ":)")).shape == (1, 32)
    if kind != "gpt2":
        extractor = pipeline("feature-extraction", model=encoder.model, tokenizer=encoder.processor)
        assert extractor("") == [[]] and extractor([":)", "aa"])[0] == [[]]


def test_features_are_the_mean_over_real_tokens(bert):
    encoder = load_text_encoder(bert)
    assert encoder.feature == "mean of last_hidden_state over tokens" and encoder.max_length == 64
    short, long = "And God said", "the population of the country is growing, and so is its economy"
    with torch.no_grad():
        together = encoder(encoder.preprocess([short, long]))
        hidden = BertModel.from_pretrained(bert)(**encoder.processor(short, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(together[:1], hidden.mean(1), atol=1e-5, rtol=1e-5)  # padding counts for nothing
        assert torch.equal(together, load_text_encoder(bert)(encoder.preprocess([short, long])))
        pooled = load_text_encoder(bert, feature="pooler")
        expected = BertModel.from_pretrained(bert)(**encoder.processor(long, return_tensors="pt")).pooler_output
        torch.testing.assert_close(pooled(pooled.preprocess([long])), expected)
        pairs = encoder(encoder.preprocess([(short, long)]))
    u, v = together
    torch.testing.assert_close(pairs[0], torch.cat([u, v, (u - v).abs(), u * v]), atol=1e-5, rtol=1e-5)


def test_a_random_pooler_is_not_a_feature(tokenizer, tmp_path):
    folder = save(BertForMaskedLM(BertConfig(**SIZES)), tmp_path, tokenizer)
    assert load_text_encoder(folder).feature.startswith("mean")
    with pytest.raises(InputError, match="has no trained pooler: its features can be mean or cls"):
        load_text_encoder(folder, feature="pooler")


class WordsConfig(PreTrainedConfig):
    model_type = "ssl_test_words"
    vocab_size: int = 600
    hidden_size: int = 16


class WordsModel(PreTrainedModel):
    """As our word vectors will be: an architecture of ours, with a pooler_output that means something."""

    config_class = WordsConfig

    def __init__(self, config):
        super().__init__(config)
        self.vectors = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        hidden = self.vectors(input_ids)
        mask = attention_mask[..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled + 1)


def test_word_vectors_and_decoders_are_encoders_too(tokenizer, tmp_path):
    AutoConfig.register(WordsConfig.model_type, WordsConfig, exist_ok=True)
    AutoModel.register(WordsConfig, WordsModel, exist_ok=True)
    words = load_text_encoder(save(WordsModel(WordsConfig()), tmp_path / "words", tokenizer))
    assert words.feature == "pooler_output" and words.max_length == 128
    with torch.no_grad():
        assert words(words.preprocess(["", "a list"])).shape == (2, 16)
    assert isinstance(_classifier(words, 2, "a list", "cpu")[0], HeadOnFeature)

    gpt = GPT2Model(GPT2Config(vocab_size=600, n_embd=16, n_layer=1, n_head=2, n_positions=40))
    no_pad = TokenizersBackend(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    encoder = load_text_encoder(save(gpt, tmp_path / "gpt", no_pad))
    classifier, read = _classifier(encoder, 2, "a list", "cpu")
    assert isinstance(classifier, NativeClassifier) and encoder.max_length == 40
    assert classifier(read(["a list", "in the beginning God created"])).shape == (2, 2)
    assert find_modality(tmp_path / "gpt") == "text"


def test_random_encoder_is_another_draw(bert):
    encoder = load_text_encoder(bert)
    first, second = (random_encoder(encoder, seed).model.embeddings.word_embeddings.weight for seed in (0, 1))
    assert not torch.equal(first, second) and first.shape == encoder.model.embeddings.word_embeddings.weight.shape


def test_what_is_not_a_text_encoder_is_said_in_one_sentence(bert, tokenizer, tmp_path):
    with pytest.raises(InputError, match="has no tokenizer: expected tokenizer.json"):
        load_text_encoder(save(BertModel(BertConfig(**SIZES)), tmp_path / "bare"))
    with pytest.raises(InputError, match="has 600 entries, the model 90: they do not belong together"):
        load_text_encoder(save(BertModel(BertConfig(**SIZES | {"vocab_size": 90})), tmp_path / "few", tokenizer))
    t5 = T5Model(T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="is an encoder with a decoder"):
        load_text_encoder(save(t5, tmp_path / "t5", tokenizer))
    with pytest.raises(InputError, match="feature 'max' is unknown: expected one of mean, pooler, cls"):
        load_text_encoder(bert, feature="max")
    with pytest.raises(InputError, match="max_length must be at least 3 and at most 64, .* found 65"):
        load_text_encoder(bert, max_length=65)


# data


def test_passages_hold_the_whole_document_in_order():
    document = load_split(None, "validation", sample="text")[3]["text"]
    parts = passages(document, 20)
    assert " ".join(parts) == " ".join(document.split()) and max(len(part.split()) for part in parts) <= 20
    whole = [sentence for sentence in sentences(document) if len(sentence.split()) <= 20]
    assert all(any(" ".join(sentence.split()) in part for part in parts) for sentence in whole)
    assert passages("a b\nc\n\nd e f g h", 3) == ["a b c", "d e f", "g h"] and passages("", 3) == []


def test_texts_that_are_cut_are_counted(bert):
    encoder = load_text_encoder(bert, max_length=8)
    texts = ["a list", "the list of the list of the list of the list", "", "and and and and and and"]
    lengths = [len(encoder.processor(text)["input_ids"]) for text in texts]
    assert lengths[1] > 8 == lengths[3] and encoder.too_long(texts) == 1
    assert encoder.too_long([(texts[1], texts[1]), (texts[0], texts[1]), (texts[0], texts[2])]) == 2  # of rows
    data = labelled({"text": [*texts, None]}, [0, 1, 0, 1, 0])
    found = extract(encoder, data, batch_size=2)
    assert found.too_long == 1 and found.skipped == 1 and found.rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "columns",
    [
        ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"),
        ("question1", "question2"),
    ],
)  # fmt: skip
def test_columns_of_glue_are_found(columns):
    data = labelled({name: ["a", "b"] for name in columns} | {"idx": [0, 1]}, [0, 1])
    assert text_and_label(data)[1:] == (columns, "label")
    assert text_and_label(data.to_iterable_dataset())[1:] == (columns, "label")
    assert text_and_label(data, columns[-1:])[1] == columns[-1:]


def test_bag_of_words_is_tf_idf_in_fewer_dimensions(bert):
    texts = ["god heaven earth", "heaven earth", "module list", "list of the module"]
    bag = bag_of_words(load_text_encoder(bert), texts)
    features = bag(bag.preprocess(texts))
    similar = nn.functional.cosine_similarity(features[:1], features)
    assert features.dtype == torch.float32 and similar[1] > 0.7 and similar[2:].abs().max() < 1e-4
    assert bag(bag.preprocess([("god", "list")])).shape == (1, 4 * features.shape[1])


def two_processes(folder, data):
    found = extract(load_text_encoder(folder, max_length=16), load_split(data, "validation"), batch_size=4)
    return [tensor.tolist() for tensor in found[:3]], found[3:]


def test_two_processes_give_the_rows_of_one_bit_for_bit(bert, documents):
    (two, counts), (other, _) = launch(two_processes, str(bert), str(documents), processes=2)
    one, counts_of_one = two_processes(str(bert), str(documents))
    assert two == one and counts == counts_of_one and len(one[1]) == 9 and other == [[], [], []]


# fine-tuning


def test_fine_tuning_learns_classes_and_numbers_and_leaves_the_encoder_alone(bert):
    encoder = load_text_encoder(bert, max_length=16)
    texts = ["god of heaven", "the list of modules"] * 40
    rows = LabelledRows(texts, torch.arange(80) % 2)
    settings = {"learning_rate": 1e-3, "min_steps": 30, "epochs": 1, "batch_size": 16}
    with frozen(encoder.model):
        scores = fine_tune_text(encoder, rows, rows, 2, fraction=0.5, task="mrpc", **settings)
    assert set(scores) == {"", "_f1"} and scores[""] == 1.0
    assert scores == fine_tune_text(encoder, rows, rows, 2, fraction=0.5, task="mrpc", **settings)
    pairs = LabelledRows([(text, "god of heaven") for text in texts], 5.0 * (1 - torch.arange(80) % 2))
    scores = fine_tune_text(encoder, pairs, pairs, None, fraction=0.5, **settings | {"min_steps": 100})
    assert set(scores) == {"_pearson", "_spearman"} and scores["_pearson"] > 0.9


def test_pairs_are_read_as_one_input_with_segments(bert):
    encoder = load_text_encoder(bert)
    tokens = encoder.tokenize([("god", "a list"), ("heaven", "modules of the list")])
    assert tokens["token_type_ids"][0].tolist()[:6] == [0, 0, 0, 1, 1, 1]
    classifier, _ = _classifier(encoder, 3, ("god", "a list"), "cpu")
    assert torch.equal(classifier.model.bert.pooler.dense.weight, encoder.model.pooler.dense.weight)


def test_scores_are_those_of_glue(bert):
    logits, labels = torch.tensor([[2.0, 1], [0, 1], [0, 1], [3, 0]]), torch.tensor([0, 1, 0, 1])
    assert _scores(logits, labels, TASKS["qqp"]) == {"": 0.5, "_f1": 0.5}
    assert _scores(logits, labels, TASKS["cola"]) == {"_matthews": 0.0}
    scores = _scores(torch.tensor([[1.0], [2], [9]]), torch.tensor([1.0, 2, 3]), TASKS["stsb"])
    assert scores["_spearman"] == pytest.approx(1) and scores["_pearson"] == pytest.approx(0.9177, abs=1e-3)
    assert set(_scores(torch.ones(3, 1), torch.tensor([1.0, 2, 3]), TASKS["stsb"]).values()) == {0.0}  # not nan
    rows = LabelledRows(["a", "b", "c"], torch.arange(3))
    with pytest.raises(InputError, match="Task 'mrpc' is measured by F1, which is for 2 classes: found 3"):
        fine_tune_text(load_text_encoder(bert), rows, rows, 3, task="mrpc")


# the whole


def test_sources_are_told_apart_and_a_later_run_completes_the_results(bert, documents, tmp_path):
    asked = {"cut_passages": True, "max_samples": 200, "output_dir": tmp_path}
    results = evaluate_text(bert, str(documents), protocols=["knn", "linear_probe", "tsne"], **asked)
    assert results["results"]["pretrained"]["linear_probe"] > 50 and results["dataset"]["passages"] == 32
    assert results["results"]["bag_of_words"]["linear_probe"] > 85
    assert results["dataset"]["train_rows"] == 200 and results["dataset"]["test_split"] == "validation"
    assert results["dataset"]["truncated_texts"] > 0 and results["pictures"] == ["images/tsne.png"]
    assert (tmp_path / "images/tsne.png").is_file()
    fine_tuning = {"fine_tune_fractions": [0.1], "fine_tune_learning_rate": 1e-3, "baselines": False}
    results = evaluate_text(bert, str(documents), protocols=["fine_tune"], **asked, **fine_tuning)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == json.loads(json.dumps(results))
    assert list(results["results"]) == ["bag_of_words", "random_initialisation", "pretrained"]
    assert results["settings"]["fine_tune"]["learning_rate"] == 1e-3
    lines = results_table(results).splitlines()
    assert lines[0] == "| | knn | linear probe | fine tune 10% |" and lines[2].startswith("| Bag of words | ")
    assert "accuracy with 10% of the labels" in results["metrics"]["fine_tune_10%"]["name"]


def test_a_protocol_brings_its_columns_rows_and_units(bert, monkeypatch, tmp_path):
    def guess(encoders, source, output_dir):
        assert source.test_rows().column_names[0] == "text" and source.test_split == "validation"
        return {"pretrained": {"mlm_loss": 6.25}, "unigrams": {"mlm_loss": 6.0}}

    metric = Metric("loss of masked words", "loss", "nats", 3, task="fill-mask")
    module = SimpleNamespace(run=guess, SETTINGS={"probability": 0.15}, METRICS={"mlm_loss": metric})
    monkeypatch.setitem(text.EXTRA, "masked_words", module)
    monkeypatch.setattr(text, "PROTOCOLS", (*text.PROTOCOLS, "masked_words"))
    results = evaluate_text(bert, protocols=["masked_words"], output_dir=tmp_path)
    assert results_table(results).splitlines()[0] == "| | mlm loss (nats) |"
    assert "| Unigrams | 6.000 |" in results_table(results)
    assert results["settings"]["masked_words"] == {"probability": 0.15}
    (entry,) = _eval_results([results], "text")
    assert (entry.metric_type, entry.task_type, entry.metric_value) == ("loss", "fill-mask", 6.25)
    assert (
        entry.metric_name == "loss of masked words (nats, at most 4,000 rows)"
        and entry.dataset_name == "hf_ssl/samples/text"
    )


def test_numbers_as_labels_are_for_fine_tuning(bert, tmp_path):
    columns = {"sentence1": ["god", "heaven"] * 8, "sentence2": ["a list"] * 16}
    for split in ("train", "validation"):
        data = labelled(columns, [0.5, 4.0] * 8, label=datasets.Value("float32"))
        data.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match="'label' holds numbers, not classes, .* leave out knn, linear_probe"):
        evaluate_text(bert, str(tmp_path))
    asked = {"protocols": ["fine_tune"], "fine_tune_fractions": [1.0], "baselines": False}
    results = evaluate_text(bert, str(tmp_path), **asked)
    assert set(results["results"]["pretrained"]) == {"fine_tune_pearson", "fine_tune_spearman"}


def glue(folder):
    """A data set as GLUE's: pairs, a test part with secret labels."""
    for split, labels in (("train", [0, 1] * 3), ("test", [-1] * 6), ("validation", [1, 0] * 3)):
        labelled(PAIR, labels).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_evaluate_py_takes_texts(bert, tmp_path):
    common = [bert, "--dataset_name", glue(tmp_path), "--output_dir", tmp_path / "out"]
    code, out, err = run("evaluate.py", *common, "--test_split", "validation", "--max_length", 12)
    assert code == 0 and out.startswith("| | knn | linear probe |"), err
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    assert results["dataset"]["text_columns"] == ["sentence1", "sentence2"] and results["dataset"]["broken_texts"] == 2
    WhisperConfig().save_pretrained(tmp_path / "whisper")
    for arguments, message in (
        (common, "label_column 'label' holds -1, as where labels are kept secret: evaluate on another part"),
        ([*common, "--image_column", "photo"], "The argument --image_column is not for an encoder of texts"),
        ([tmp_path / "whisper"], "reads input_features: expected an encoder of one of image, text, audio"),
    ):
        code, _, err = run("evaluate.py", *arguments)
        assert code == 1 and err.strip().splitlines()[-1].startswith("error: ") and message in err, err


def test_bad_requests_are_said_in_one_sentence(bert, tmp_path):
    common = {"dataset_name": str(glue(tmp_path)), "test_split": "validation"}
    for asked, message in (
        ({"text_column": "title"}, "text_column 'title' is not in the data set: found the columns"),
        ({"text_column": "label"}, "text_column 'label' holds int64 values: expected text"),
        ({"text_column_2": "title"}, "text_column_2 'title' is the second text of a pair"),
        ({"cut_passages": True}, "passages are cut from one text a row"),
        ({"task": "mrcp"}, "task 'mrcp' is unknown: expected one of cola"),
        ({"protocols": ["neighbours"]}, "Protocol 'neighbours' is unknown: expected some of knn"),
        ({"max_samples": 0}, "max_samples must be at least 1, found 0"),
        ({"max_samples": -3}, "max_samples must be at least 1, found -3"),
        ({"seed": -1, "test_fraction": 0.2}, r"seed must be at least 0 and below 2\*\*32, found -1"),
        ({"fine_tune_epochs": 0}, "fine_tune_epochs must be at least 1, found 0"),
        ({"fine_tune_fractions": [0.1, 0]}, "fine_tune_fractions must lie above 0 and be at most 1, found 0"),
        ({"fine_tune_fractions": [2]}, "fine_tune_fractions must lie above 0 and be at most 1, found 2"),
        ({"fine_tune_learning_rate": float("nan")}, "fine_tune_learning_rate must be a number above 0, found nan"),
        (
            {"protocols": ["words"], "word_files": ["one/s.txt", "other/s.txt"]},
            "word_files 'one/s.txt' and 'other/s.txt' have the same name: rename one",
        ),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_text(bert, **common | asked)


def test_the_card_of_a_text_encoder_says_how_to_use_it():
    template = Environment(loader=FileSystemLoader(CARDS)).get_template("text_encoder.md")
    config, known = {"backbone_config": {"hidden_size": 8}}, dict.fromkeys(("facts", "measured", "arguments"), {})
    card = template.render(card_data="x: 1", name="words", path="me/words", config=config, **known)
    assert "pipeline_tag: feature-extraction\n---" in card and 'AutoTokenizer.from_pretrained("me/words")' in card
    assert "# (2, 8), the mean over the tokens" in card
