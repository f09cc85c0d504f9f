"""Zero-shot classification and retrieval: plain functions against slow loops, and whole evaluations against features made
one image and one text at a time."""

import io
import itertools
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from hf_ssl.errors import InputError
from hf_ssl.evaluation import evaluate_pairs, find_modality, load_dual_encoder, random_encoder, results_table
from hf_ssl.evaluation.protocols import retrieval as retrieval_module
from hf_ssl.evaluation.protocols.retrieval import best_rank, chance, first_ranks, recalls
from hf_ssl.evaluation.protocols.zero_shot import class_embeddings, majority, top_accuracies

ROOT = Path(__file__).parents[1]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PIXELS = {"image_size": 16, "patch_size": 8}
LENGTH = 12  # positions of the text towers
CLASSES = ["red_thing", "green_thing", "blue_thing", "grey_thing", "dark_thing", "odd_thing", "lone_thing"]


def letters_tokenizer(**settings):
    """CLIP's tokenizer without merges: a token a letter."""
    pieces = [letter + end for end in ("", "</w>") for letter in sorted(ByteLevel.alphabet())]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], **settings)


def save(model, folder, **settings):
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, letters_tokenizer(model_max_length=LENGTH, **settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(1)
    size = len(letters_tokenizer())
    text = TOWER | {
        "vocab_size": size,
        "max_position_embeddings": LENGTH,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }
    config = CLIPConfig(projection_dim=8, text_config=text, vision_config=TOWER | PIXELS)
    return save(CLIPModel(config), tmp_path_factory.mktemp("clip"))


def picture(seed):
    """A PNG of noise around one colour."""
    generator = np.random.default_rng(seed)
    pixels = (generator.integers(0, 200, 3) + generator.integers(0, 56, (20, 24, 3))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(first, count):
    """Captions are shared by several images, row 0 and 1 are one image, some rows have no text or a long one."""
    captions = [f"a {string.ascii_lowercase[i % 13]} thing" for i in range(first, first + count)]
    captions[3], captions[4], captions[5] = "", None, "a very long text that goes on"
    images = [picture(first + max(i, 1)) for i in range(count)]
    labels = [i % 6 for i in range(first, first + count)]
    return {"image": images, "caption": captions, "label": labels, "lists": [[c, "also a thing"] for c in captions]}


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    kinds = {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "label": datasets.ClassLabel(names=CLASSES),
        "lists": datasets.List(datasets.Value("string")),
    }
    for split, first, count in (("train", 100, 40), ("test", 0, 30)):
        columns = rows(first, count)
        if split == "test":
            columns["image"][7] = {"bytes": b"broken", "path": None}
        data = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


# plain functions


def slow_recall(similarity, right, k):
    """A wrong candidate that is as similar comes first."""
    hits = 0
    for values, truth in zip(similarity.tolist(), right.tolist(), strict=True):
        order = sorted(range(len(values)), key=lambda i: (-values[i], truth[i]))
        hits += any(truth[i] for i in order[:k])
    return hits / len(similarity)


def many_to_many(images=11, texts=7, seed=0):
    """(features of both, pairs): each image has 1 to 3 texts; text 0 has no image."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        (i, int(torch.randint(1, texts, (), generator=generator))) for i in range(images) for _ in range(1 + i % 3)
    }
    features = torch.randn(images, 5, generator=generator), torch.randn(texts, 5, generator=generator)
    return *features, torch.tensor(sorted(pairs))


def test_recall_equals_a_slow_loop_and_a_tie_is_missed():
    images, texts, pairs = many_to_many()
    similarity, right = images @ texts.T, torch.zeros(11, 7, dtype=torch.bool)
    right[pairs[:, 0], pairs[:, 1]] = True
    for k in range(1, 7):
        assert (best_rank(similarity, right) < k).float().mean().item() == pytest.approx(
            slow_recall(similarity, right, k)
        )
        coarse = similarity.round()
        assert (best_rank(coarse, right) < k).float().mean().item() == pytest.approx(slow_recall(coarse, right, k))
    collapsed, one = torch.ones(11, 7), torch.eye(11, 7, dtype=torch.bool)[:7]
    assert (best_rank(collapsed[:7], one) == 6).all()  # whoever sees no difference has found nothing


@pytest.mark.parametrize("candidates", [2, 6, 40])
def test_a_collapsed_encoder_finds_nothing(candidates):
    """All features alike, but for what batches round: no right one is nearer than the others."""
    generator = torch.Generator().manual_seed(candidates)
    images, texts = 1 + 1e-7 * torch.randn(2, candidates, 16, generator=generator)
    pairs = torch.arange(candidates)[:, None].expand(-1, 2)
    assert set(recalls(images, texts, pairs).values()) == {0.0}
    images[1, 1] = torch.nan  # which is no nearer than anything, and would come first
    with pytest.raises(InputError, match=r"rows of the image features are not finite \(row 1\)"):
        recalls(images, texts, pairs)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_recalls_of_both_ways_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(retrieval_module, "CHUNK", chunk)
    images, texts, pairs = many_to_many()
    found = recalls(images, texts, pairs)
    cosines = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    right = torch.zeros(11, 7, dtype=torch.bool)
    right[pairs[:, 0], pairs[:, 1]] = True
    asked = right.any(0)  # a text without an image is no question, but stays a candidate
    assert not asked.all()
    expected = {f"image_to_text@{k}": slow_recall(cosines, right, k) for k in (1, 5)}
    expected |= {f"text_to_image@{k}": slow_recall(cosines.T[asked], right.T[asked], k) for k in (1, 5, 10)}
    assert found == pytest.approx({column: 100 * value for column, value in expected.items()}, abs=0.01)
    assert first_ranks(images, texts, pairs).shape == (11,)


def test_chance_is_the_mean_over_all_orders():
    _, _, pairs = many_to_many(images=4, texts=5)
    found = chance(4, 5, pairs, ks=(1, 2, 4))
    assert set(found) == {
        "image_to_text@1",
        "image_to_text@2",
        "image_to_text@4",
        "text_to_image@1",
        "text_to_image@2",
    }
    for way, side, candidates in (("image_to_text", 0, 5), ("text_to_image", 1, 4)):
        asked = pairs[:, side].unique().tolist()
        right = {q: set(pairs[pairs[:, side] == q, 1 - side].tolist()) for q in asked}
        for k in (1, 2):
            orders = list(itertools.permutations(range(candidates)))
            hits = [bool(right[q] & set(order[:k])) for q in asked for order in orders]
            assert found[f"{way}@{k}"] == pytest.approx(100 * sum(hits) / len(hits), abs=0.01)


def test_a_class_is_the_mean_of_unit_features_and_needs_a_text():
    texts, pairs = (
        torch.randn(4, 6) * torch.tensor([[1.0], [100.0], [1.0], [3.0]]),
        [(0, 0), (1, 0), (2, 2), (3, 2), (0, 2)],
    )
    found = class_embeddings(texts, torch.tensor(pairs), 3)
    for number in (0, 2):
        mean = sum(texts[t] / texts[t].norm() for t, c in pairs if c == number)
        torch.testing.assert_close(found[number], mean / mean.norm())
    assert not found[1].any()


def test_accuracies_and_the_most_frequent_answer():
    similarity = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    assert top_accuracies(similarity, torch.tensor([1, 3])) == {"zero_shot": 50.0, "zero_shot_top5": 100.0}
    assert top_accuracies(similarity, torch.tensor([0, 1])) == {"zero_shot": 0.0, "zero_shot_top5": 0.0}
    # five of five would say nothing
    assert top_accuracies(similarity[:, :5], torch.tensor([1, 0])) == {"zero_shot": 100.0}
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6])
    assert majority(labels, 7) == {"zero_shot": 30.0, "zero_shot_top5": 80.0}


# whole evaluations


@torch.no_grad()
def features_one_by_one(folder, data):
    """({row: unit feature of its image}, a function of a text), with transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    images = {}
    processor = CLIPImageProcessor.from_pretrained(folder)
    for i, row in enumerate(data.cast_column("image", datasets.Image(decode=False))):
        if row["image"]["bytes"] == b"broken":
            continue
        decoded = Image.open(io.BytesIO(row["image"]["bytes"]))
        feature = model.get_image_features(**processor(decoded, return_tensors="pt")).pooler_output[0]
        images[i] = feature / feature.norm()

    @torch.no_grad()
    def text(words):
        tokens = tokenizer([words], truncation=True, max_length=LENGTH, return_tensors="pt")
        feature = model.get_text_features(**tokens).pooler_output[0]
        return feature / feature.norm()

    return images, text


def test_retrieval_of_shared_missing_and_repeated_texts(clip, pairs_folder, tmp_path):
    results = evaluate_pairs(clip, str(pairs_folder), protocols=["retrieval"], output_dir=tmp_path)
    assert json.loads((tmp_path / "eval_results.json").read_text()) == json.loads(json.dumps(results))
    data = datasets.load_dataset(str(pairs_folder), split="test")
    captions = data["caption"]
    images, text = features_one_by_one(clip, data)
    distinct = sorted({caption for caption in captions if caption})
    shown = [i for i in images if captions[i] and i != 1]  # row 1 is the image of row 0, under another caption
    right = torch.tensor([[t == captions[i] or (i == 0 and t == captions[1]) for t in distinct] for i in shown])
    cosines = torch.stack([images[i] for i in shown]) @ torch.stack([text(t) for t in distinct]).T
    expected = {f"image_to_text@{k}": slow_recall(cosines, right, k) for k in (1, 5, 10)}
    asked = right.any(0)
    expected |= {f"text_to_image@{k}": slow_recall(cosines.T[asked], right.T[asked], k) for k in (1, 5, 10)}
    percents = {column: 100 * value for column, value in expected.items()}
    assert results["results"]["pretrained"] == pytest.approx(percents, abs=0.01)
    assert set(results["results"]) == {"chance", "random_initialisation", "pretrained"}
    told = results["dataset"]
    assert (told["test_rows"], told["rows_without_text"], told["broken_images"], told["truncated_texts"]) == (
        30,
        2,
        1,
        1,
    )
    assert (told["distinct_texts"], told["distinct_images"], told["text_columns"]) == (14, 26, ["caption"])
    assert (tmp_path / "images/captions.png").stat().st_size > 5000
    assert results_table(results).startswith("| | image to text@1 |")


def test_several_texts_in_one_row(clip, pairs_folder):
    results = evaluate_pairs(clip, str(pairs_folder), protocols=["retrieval"], text_column="lists", baselines=False)
    data = datasets.load_dataset(str(pairs_folder), split="test")
    images, text = features_one_by_one(clip, data)
    distinct = sorted({t for row in data["lists"] for t in row if t})
    shown = [i for i in images if i != 1]
    lists = {i: set(data[i]["lists"]) | (set(data[1]["lists"]) if i == 0 else set()) for i in shown}
    right = torch.tensor([[t in lists[i] for t in distinct] for i in shown])
    cosines = torch.stack([images[i] for i in shown]) @ torch.stack([text(t) for t in distinct]).T
    found = results["results"]["pretrained"]
    for k in (1, 5, 10):
        assert found[f"image_to_text@{k}"] == pytest.approx(100 * slow_recall(cosines, right, k), abs=0.01)


def test_zero_shot_by_names_in_prompts(clip, pairs_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a {}\n\nmy {}!\n")
    arguments = {"protocols": ["zero_shot"], "prompts": [str(tmp_path / "prompts.txt")]}
    results = evaluate_pairs(clip, str(pairs_folder), **arguments)
    data = datasets.load_dataset(str(pairs_folder), split="test")
    images, text = features_one_by_one(clip, data)
    names = [name.replace("_", " ") for name in CLASSES]
    embeddings = torch.stack([text(f"a {name}") + text(f"my {name}!") for name in names])
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    cosines = torch.stack(list(images.values())) @ embeddings.T
    right = torch.eye(7, dtype=torch.bool)[[data[i]["label"] for i in images]]
    expected = {
        "zero_shot": 100 * slow_recall(cosines, right, 1),
        "zero_shot_top5": 100 * slow_recall(cosines, right, 5),
    }
    assert results["results"]["pretrained"] == pytest.approx(expected, abs=0.01)
    assert results["results"]["chance"]["zero_shot"] == pytest.approx(100 * 5 / 29, abs=0.01)
    assert results["settings"]["zero_shot"]["prompts"] == ["a {}", "my {}!"]
    assert results["metrics"]["zero_shot"]["task"] == "zero-shot-image-classification"
    stream = evaluate_pairs(clip, str(pairs_folder), streaming=True, baselines=False, **arguments)
    assert stream["results"]["pretrained"] == results["results"]["pretrained"]


def test_zero_shot_by_the_training_captions_of_each_class(clip, pairs_folder, caplog):
    results = evaluate_pairs(clip, str(pairs_folder), protocols=["zero_shot"], class_texts="caption", baselines=False)
    data = datasets.load_dataset(str(pairs_folder))
    images, text = features_one_by_one(clip, data["test"])
    embeddings = []
    for number in range(6):
        captions = {row["caption"] for row in data["train"].remove_columns("image") if row["label"] == number}
        mean = sum(text(caption) for caption in captions if caption)
        embeddings.append(mean / mean.norm())
    cosines = torch.stack(list(images.values())) @ torch.stack(embeddings).T
    cosines = torch.cat([cosines, torch.full((len(images), 1), -2.0)], dim=1)  # nothing describes the last class
    right = torch.eye(7, dtype=torch.bool)[[data["test"][i]["label"] for i in images]]
    expected = {
        "zero_shot": 100 * slow_recall(cosines, right, 1),
        "zero_shot_top5": 100 * slow_recall(cosines, right, 5),
    }
    assert results["results"]["pretrained"] == pytest.approx(expected, abs=0.01)
    assert "1 of 7 classes have no training text" in caplog.text


def two_processes(folder, data):
    results = evaluate_pairs(folder, data, class_texts="caption", baselines=False)
    return results and results["results"]


def test_two_processes_give_the_numbers_of_one(clip, pairs_folder):
    found, other = launch(two_processes, str(clip), str(pairs_folder), processes=2)
    assert other is None and found == two_processes(str(clip), str(pairs_folder))


def test_siglip_reads_padded_texts_and_other_towers_their_own(tmp_path, pairs_folder):
    torch.manual_seed(0)
    size = len(letters_tokenizer())
    text = TOWER | {"vocab_size": size, "max_position_embeddings": LENGTH, "projection_size": 16}
    save(SiglipModel(SiglipConfig(text_config=text, vision_config=TOWER | PIXELS)), tmp_path / "siglip")
    encoder = load_dual_encoder(tmp_path / "siglip")
    assert encoder.texts.preprocess(["a", "a text"])[0]["input_ids"].shape == (2, LENGTH)

    towers = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**TOWER, **PIXELS),
        BertConfig(**TOWER, vocab_size=size, max_position_embeddings=LENGTH),
        projection_dim=8,
    )
    save(VisionTextDualEncoderModel(towers), tmp_path / "towers")
    for name in ("siglip", "towers"):
        assert find_modality(tmp_path / name) == "image and text"
        encoder = load_dual_encoder(tmp_path / name)
        other = random_encoder(encoder, seed=0)
        assert other.texts.model is other.model and other.model is not encoder.model
        results = evaluate_pairs(tmp_path / name, str(pairs_folder), protocols=["retrieval", "zero_shot", "knn"])
        assert {"image_to_text@5", "zero_shot", "knn"} <= set(results["results"]["pretrained"])
        assert set(results["results"]["raw_pixels"]) == {"knn"}


def test_bad_requests_are_said_in_one_sentence(clip, pairs_folder, tmp_path):
    data = str(pairs_folder)
    numbers = datasets.load_dataset(data, split="test").cast_column("label", datasets.Value("int64"))
    numbers.to_parquet(tmp_path / "numbers" / "test.parquet")
    nothing = datasets.load_dataset(data, split="test").select([3, 4])
    for split in ("train", "test"):
        nothing.to_parquet(tmp_path / "nothing" / f"{split}.parquet")
    vit = ViTModel(ViTConfig(**TOWER, **PIXELS))
    vit.save_pretrained(tmp_path / "vit")
    for name, arguments, expected in (
        (clip, {"protocols": ["words"]}, "Protocol 'words' is unknown"),
        (clip, {"prompts": ["a photo"]}, "prompts holds 'a photo': expected {} in each"),
        (clip, {"prompts": ["{}"], "class_texts": "caption"}, "prompts and class_texts 'caption' both describe"),
        (clip, {"class_texts": "title"}, "class_texts 'title' is no column of the training part: found"),
        (clip, {"text_column": "title"}, "text_column 'title' is not in the data set"),
        (
            clip,
            {"text_column": "label"},
            "text_column 'label' holds 1: expected a text, or a list of texts, in each row",
        ),
        (clip, {"dataset_name": str(tmp_path / "numbers")}, "holds numbers without names, which zero_shot needs"),
        (clip, {"dataset_name": str(tmp_path / "nothing")}, "text_column 'caption' holds no text in the 2 test rows"),
        (
            clip,
            {"dataset_name": str(tmp_path / "nothing"), "protocols": ["zero_shot"], "class_texts": "caption"},
            "class_texts 'caption' holds no text in the 2 training rows",
        ),
        (tmp_path / "vit", {}, "encodes images alone: expected an encoder of images and texts"),
    ):
        with pytest.raises(InputError) as error:
            evaluate_pairs(name, **{"dataset_name": data, "protocols": ["retrieval", "zero_shot"]} | arguments)
        assert expected in str(error.value), error.value


def test_the_script_takes_the_embedded_emoji(clip, tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(clip), "--max_samples", "80"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*script, "--output_dir", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["dataset"]["text_columns"] == ["name"] and results["dataset"]["label_column"] == "category"
    assert "column 'text'" in results["settings"]["zero_shot"]["class_texts"]
    assert run.stdout.strip() == results_table(results)
