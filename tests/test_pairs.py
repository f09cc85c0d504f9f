"""Images with captions: what is found in a cell, what is skipped, cut and drawn, and the tokenizer that is learnt."""

import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter

import datasets
import pytest
import torch
from PIL import Image
from processes import run_plain
from test_scripts import run, run_card
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_ssl.data import (
    DataError,
    PairDecoder,
    RandomSquareCrop,
    TrainLoader,
    load_split,
    pair_rows,
    train_bpe,
    train_wordpiece,
)
from hf_ssl.data.pairs import captions, tags

WORDS = [
    "red heart, love",
    "grinning face",
    "a very long caption with many words in it",
    "flag: Peru",
    "dog, pet, animal",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(WORDS * 3, 600, 8)


def picture(number, size=(10, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def rows():
    """48 pairs, one red value each; rows 5 and 6 have no caption, row 7 no image; row 8 has three captions."""
    texts = [[WORDS[i % 5]] for i in range(48)]
    texts[5], texts[6], texts[8] = [], ["  \n"], ["first", "second", "third"]
    images = [{"bytes": picture(i), "path": None} for i in range(48)]
    images[7] = {"bytes": b"no picture", "path": None}
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    return datasets.Dataset.from_dict({"image": images, "captions": texts}, features=features)


def decoder(columns, tokenizer, max_seq_length=8):
    view = RandomSquareCrop(6, [0.0], [1.0], (0.5, 1.0))
    return PairDecoder(*columns, 3, view, tokenizer, max_seq_length)


@pytest.mark.parametrize(
    "value, found",
    [
        ("a  dog\n", ["a dog"]), (b"a dog", ["a dog"]), (None, []), (" ", []), (["a", "", None, "b "], ["a", "b"]),
        ({"width": 3, "caption": "a dog"}, ["a dog"]), ([{"raw": "a", "id": 1}, {"raw": "b"}], ["a", "b"]), ({"width": 3}, []),
    ],
)  # fmt: skip
def test_captions_of_a_cell(value, found):
    assert captions(value) == found


def test_broken_pairs_are_skipped_and_counted(rows, tokenizer):
    data, *columns = pair_rows(rows)
    reader = decoder(columns, tokenizer)
    loader = TrainLoader(data, reader, 16, seed=0)
    seen = []
    for _, batch in zip(range(3), loader, strict=False):
        batch = reader.view(**batch)
        seen += (batch["pixel_values"][:, 0, 0, 0] * 255).round().int().tolist()
        assert batch["pixel_values"].shape == (16, 3, 6, 6) and batch["input_ids"].shape[1] == 8
    assert loader.broken + loader.unfit == 3 and not {5, 6, 7} & set(seen) and len(set(seen)) > 40
    assert "is empty or missing" in loader.reasons["unfit"] and "cannot identify" in loader.reasons["broken"]
    assert reader.seen == 48 and reader.cut == sum(number % 5 == 2 for number in seen if number != 8)


def test_a_long_caption_keeps_its_end(tokenizer):
    reader = decoder(("image", "text", None), tokenizer)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    batch = reader.collate([(image, [WORDS[2]], []), (image, ["dog"], [])], torch.tensor([1, 2]))
    long, short = batch["input_ids"]
    assert long[-1] == tokenizer.eos_token_id and batch["attention_mask"].sum(1).tolist() == [8, 3]
    assert long.tolist() == tokenizer(WORDS[2], truncation=True, max_length=8)["input_ids"]
    assert short[:3].tolist() == tokenizer("dog")["input_ids"] and batch["cut"] == 1


def test_one_of_several_captions_is_drawn_for_each_epoch(tokenizer):
    reader = decoder(("image", "text", None), tokenizer)
    image, texts = torch.zeros(3, 8, 8, dtype=torch.uint8), ["first", "second", "third"]
    draws = torch.arange(300)
    drawn = reader.collate([(image, texts, [])] * 300, draws)["input_ids"]
    assert torch.equal(drawn, reader.collate([(image, texts, [])] * 300, draws)["input_ids"])
    counts = [sum(row.tolist() == tokenizer(text, padding="max_length", max_length=drawn.shape[1])["input_ids"] for row in drawn)
              for text in texts]  # fmt: skip
    assert sum(counts) == 300 and min(counts) > 70


def test_tags_follow_the_caption(tokenizer):
    reader = decoder(("image", "text", "tags"), tokenizer, max_seq_length=32)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = [(image, ["owl"], list("abcde")), (image, ["owl"], ["a"]), (image, ["owl"], [])]
    texts = [
        tokenizer.batch_decode(reader.collate([row] * 400, torch.arange(400))["input_ids"], skip_special_tokens=True)
        for row in rows
    ]
    found = [Counter(text.replace(" ", "") for text in of_row) for of_row in texts]
    assert set(found[2]) == {"owl"} and set(found[1]) == {"owl", "owl,a"} and min(found[1].values()) > 150
    parts = [text.split(",") for text in found[0].elements()]
    assert all(first == "owl" and len(set(drawn)) == len(drawn) for first, *drawn in parts)
    assert all(70 < count < 130 for count in Counter(map(len, parts)).values()) and len(found[0]) > 50
    assert all(90 < count < 150 for count in Counter(tag for _, *drawn in parts for tag in drawn).values())


def test_tags_of_a_cell():
    assert (
        tags(["bird", "night, wise", None]) == tags("bird, night,wise, ") == ["bird", "night", "wise"]
        and tags(None) == []
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_are_taken_up_exactly(rows, tokenizer, streaming):
    """Views, captions, tags and their counts after a break are those of a run without one."""
    rows = rows.add_column("tags", [list("abcde")[: i % 6] for i in range(48)])
    data, *columns = pair_rows(rows.to_iterable_dataset(num_shards=3) if streaming else rows, tags_column="tags")

    def batches(loader, count):
        return [{name: value for name, value in batch.items()} for _, batch in zip(range(count), loader, strict=False)]

    whole = batches(TrainLoader(data, decoder(columns, tokenizer), 10, seed=1, buffer_size=7), 9)
    first = TrainLoader(data, decoder(columns, tokenizer), 10, seed=1, buffer_size=7)
    batches(first, 4)
    second = TrainLoader(data, decoder(columns, tokenizer), 10, seed=1, buffer_size=7)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one, other in zip(whole[4:], batches(second, 5), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["folder", "shards"])
def files(request, tmp_path):
    """Twelve pairs, the third without caption: image files with metadata.csv, or webdataset shards with .txt or .json."""
    if request.param == "folder":
        lines = ["file_name,caption"]
        for i in range(12):
            (tmp_path / f"{i}.png").write_bytes(picture(i))
            lines.append(f'{i}.png,"{WORDS[i % 5] if i != 2 else ""}"')
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
        return str(tmp_path), None
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for i in range(6 * shard, 6 * shard + 6):
                text = WORDS[i % 5] if i != 2 else ""
                for name, content in ((f"{i:03d}.png", picture(i)), (f"{i:03d}.txt", text.encode()),
                                      (f"{i:03d}.json", json.dumps({"caption": text, "width": 10}).encode())):  # fmt: skip
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return str(tmp_path / "*.tar"), "json"


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_and_shards(files, tokenizer, streaming):
    name, other_column = files
    for column in (None, other_column):
        data, *columns = pair_rows(load_split(name, streaming=streaming), text_column=column)
        reader = decoder(columns, tokenizer)
        loader = TrainLoader(data, reader, 6, seed=0, buffer_size=12)
        batches = [reader.view(**batch) for _, batch in zip(range(4), loader, strict=False)]
        assert loader.unfit >= 1 and "is empty or missing" in loader.reasons["unfit"]
        pixels = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches]).mul(255).round().int().tolist()
        for number, ids in zip(pixels, (ids for batch in batches for ids in batch["input_ids"]), strict=True):
            expected = tokenizer(WORDS[number % 5], truncation=True, max_length=8)["input_ids"]
            assert ids[: len(expected)].tolist() == expected


def test_other_columns_are_refused(rows):
    with pytest.raises(DataError, match="text_column 'label' holds int64"):
        pair_rows(rows.add_column("label", list(range(48))), text_column="label")
    with pytest.raises(DataError, match="tags_column 'tags' holds int64 values: expected words"):
        pair_rows(rows.add_column("tags", [[1, 2]] * 48), tags_column="tags")
    with pytest.raises(DataError, match="No text column was found"):
        pair_rows(rows.remove_columns("captions"))


def test_the_tokenizer_is_native_and_the_same_at_every_run(tmp_path):
    texts = ["a red heart", "two red hearts, love", "a heart", "reading a red book"] * 2
    tokenizer = train_bpe(texts, 560)
    tokenizer.save_pretrained(tmp_path)
    program = """
import json, sys
from hf_ssl.data.bpe import train_bpe
texts = json.loads(sys.argv[1])
print(json.dumps(train_bpe(texts, 560).get_vocab()))
"""
    done = subprocess.run([sys.executable, "-c", program, json.dumps(texts)], capture_output=True, text=True)
    assert json.loads(done.stdout) == tokenizer.get_vocab() and "heart</w>" in tokenizer.get_vocab(), done.stderr
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        type(loaded) is CLIPTokenizer and loaded("Red  hearts!")["input_ids"] == tokenizer("red hearts!")["input_ids"]
    )
    assert loaded.decode(loaded("Ünï 漢字 heart")["input_ids"], skip_special_tokens=True) == "ünï 漢字 heart"
    ids = loaded("a heart")["input_ids"]
    assert ids[0] == loaded.bos_token_id == len(loaded) - 2 and ids[-1] == loaded.eos_token_id == len(loaded) - 1
    with pytest.raises(DataError, match="no words"):
        train_bpe([" ", ""], 600)


FEW = ("--max_steps", 4, "--per_device_train_batch_size", 8, "--eval_protocols", "none", "--vocab_size", 700)


def test_a_release_classifies_without_hf_ssl(tmp_path):
    """The script on the embedded emoji, in parts; what it leaves is a CLIPModel with its processor, in code that has never
    heard of hf_ssl. The captions that it has cut are told."""
    folder = tmp_path / "clip"
    code, _, err = run(
        "pretrain_clip.py", *FEW, "--output_dir", folder, "--micro_batch_size", 4, "--max_seq_length", 6
    )
    assert code == 0, err
    assert re.search(r"\n\d+ of 32 captions were longer than max_seq_length=6 and were cut\.", err), err
    assert "4 steps" in (folder / "README.md").read_text()
    history = json.loads((folder / "pretraining/history.json").read_text())
    assert history[-1]["temperature"] == pytest.approx(0.07, rel=0.05)
    run_card(folder, "probabilities.shape == (1, 2) and features.shape[0] == 1")
    program = """
import sys
from PIL import Image
from transformers import AutoModel, pipeline
model, report = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert type(model).__name__ == "CLIPModel" and not any(report.values()), report
assert model.config.text_config.eos_token_id == model.config.text_config.vocab_size - 1
classify = pipeline("zero-shot-image-classification", model=sys.argv[1])
for mode in ("RGB", "L"):
    found = classify(Image.new(mode, (90, 40)), candidate_labels=["dog", "red heart"], hypothesis_template="{}, icon")
    assert {answer["label"] for answer in found} == {"dog", "red heart"} and sum(a["score"] for a in found) > 0.999
"""
    run_plain(program, folder)


def test_locked_image_tuning_of_other_towers(tmp_path):
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    tokenizer = train_wordpiece(lambda: iter(["red heart love", "face flag dog animal"]), 60)
    vision = ViTModel(ViTConfig(**small, image_size=32, patch_size=16))
    text = BertModel(BertConfig(**small, vocab_size=len(tokenizer), max_position_embeddings=20))
    for name, parts in (
        ("vit", (vision, ViTImageProcessor(size={"height": 32, "width": 32}))),
        ("bert", (text, tokenizer)),
    ):
        for part in parts:
            part.save_pretrained(tmp_path / name)
    towers = ("--vision_tower", tmp_path / "vit", "--text_tower", tmp_path / "bert", "--max_seq_length", 12)
    folder = tmp_path / "locked"
    code, _, err = run(
        "pretrain_clip.py", *FEW, *towers, "--output_dir", folder, "--config_overrides", "freeze_vision=true"
    )
    assert code == 0, err
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "VisionTextDualEncoderModel" and not any(report.values())
    for name, value in vision.state_dict().items():
        assert torch.equal(value, model.vision_model.state_dict()[name]), name
    moved = [
        name
        for name, value in text.state_dict().items()
        if not torch.equal(value, model.text_model.state_dict()[name])
    ]
    assert "encoder.layer.0.output.dense.weight" in moved
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.image_processor.size["height"] == 32 and len(processor.tokenizer) == len(tokenizer)
    for config in ("config.json", "pretraining/config.json"):
        assert str(tmp_path) not in (folder / config).read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--vision_tower", "no/such/model"), "vision_tower 'no/such/model' is not a folder or Hub id"),
        (("--max_seq_length", 99), "max_seq_length 99 exceeds the text tower's 77 positions"),
        (("--vocab_size", 100), "vocab_size must be at least 515, found 100"),
        (("--text_column", "words"), "text_column 'words' is not in the data set"),
        (("--tags_column", "words"), "tags_column 'words' is not in the data set"),
        (("--tags_column", "category"), "tags_column 'category' holds ClassLabel values: expected words"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path):
    code, _, err = run("pretrain_clip.py", *FEW, "--output_dir", tmp_path / "run", *arguments)
    assert code == 1 and message in err
