"""New words for a trained encoder: the map, the tokenizer, and a release that plain transformers loads."""

import pytest
import torch
from processes import run_plain
from test_scripts import run

from hf_ssl import CPCTextModel, CPCTextModelConfig
from hf_ssl.data.vocabulary import expand_vocabulary
from hf_ssl.data.words import word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation import WordVectors

KNOWN = [f"w{number}" for number in range(12)]
MORE = ["Paris", "the", "The", "new_york", "w3", "W4", "rain"]  # in the case and form that others' vectors have


@pytest.fixture
def trained():
    """(encoder, tokenizer, word vectors of which the encoder's are a linear image, the map)."""
    torch.manual_seed(0)
    model = CPCTextModel(CPCTextModelConfig(vocab_size=13, embedding_size=6, hidden_size=8)).eval()
    vectors, mapping = torch.randn(len(KNOWN) + len(MORE) - 1, 5), torch.randn(5, 6)
    words = MORE[:4] + KNOWN + MORE[5:]
    with torch.no_grad():
        model.embeddings.weight[1:] = vectors[4:16] @ mapping
    return model, word_tokenizer(KNOWN), WordVectors(words, vectors), mapping


def test_new_words_are_mapped_and_old_ones_stay(trained):
    model, tokenizer, vectors, mapping = trained
    before = model.embeddings.weight.clone()
    larger, reader, shared = expand_vocabulary(model, tokenizer, vectors)
    assert shared == 12 and torch.equal(model.embeddings.weight, before) and len(tokenizer) == 13
    assert torch.equal(larger.embeddings.weight[:13], before)
    names = reader.convert_ids_to_tokens(range(13, len(reader)))
    assert names == ["paris", "the", "rain"]  # new_york would be taken apart, the exact form goes before another
    numbers = [vectors.number[word] for word in ("Paris", "the", "rain")]
    torch.testing.assert_close(larger.embeddings.weight[13:], vectors.vectors[numbers] @ mapping, rtol=1e-4, atol=1e-4)
    text = "The rain, in PARIS: w3 parish"
    assert reader(text)["input_ids"] == [14, 15, 0, 13, 4, 0] and tokenizer(text)["input_ids"] == [0, 0, 0, 0, 4, 0]
    old = tokenizer("w1 w2 w7", return_tensors="pt")["input_ids"]
    assert torch.equal(larger(old).pooler_output, model(old).pooler_output)


def test_too_few_words_in_common_are_refused(trained):
    model, tokenizer, vectors, _ = trained
    few = WordVectors(["w1", "w2", "else"], torch.randn(3, 5))
    with pytest.raises(InputError, match="have 2 words in common with the model: expected at least 5"):
        expand_vocabulary(model, tokenizer, few)


def test_the_script_leaves_a_release(trained, tmp_path):
    model, tokenizer, vectors, _ = trained
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors.save(tmp_path / "vectors.bin")
    arguments = [tmp_path / "model", tmp_path / "vectors.bin", "--output_dir", tmp_path / "larger"]
    code, out, err = run("expand_vocabulary.py", *arguments)
    assert code == 0 and "3 new words by a map that fits 12" in out, err
    card = (tmp_path / "larger/README.md").read_text()
    assert "`vectors.bin`" in card and str(tmp_path) not in card and "{{" not in card
    program = """
import sys
from transformers import AutoModel, AutoTokenizer
model, report = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(report.values()) and len(tokenizer) == model.config.vocab_size == 16
assert model(**tokenizer("Rain in Paris", return_tensors="pt")).pooler_output.abs().sum() > 0
"""
    run_plain(program, tmp_path / "larger")
    assert "exists: expected a new folder" in run("expand_vocabulary.py", *arguments)[2]
