"""What the pages' placeholders name, made real and small: folders of data, files of authors, repositories of the local Hub."""

import csv
import gzip
import io
import json
import shutil
from functools import reduce

import datasets
import soundfile
import test_convert
import test_convert_clip
import torch
import webdataset
from pages import MOST, smaller
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    TOKENIZER_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)

from hf_ssl.data import train_wordpiece
from hf_ssl.data.loading import SAMPLES
from hf_ssl.hub.conversion.clip import read_vocabulary

COLUMNS = (
    "caption",
    "title",
    "tags",
    "topic",
    "label",
    "kind",
)  # of the tables beside images; what is asked for is there


def sample(name, split, count):
    """Rows of an embedded sample; what is encoded stays so."""
    rows = datasets.load_dataset(str(SAMPLES / name), split=split)
    for column, kind in rows.features.items():
        if isinstance(kind, datasets.Image | datasets.Audio):
            rows = rows.cast_column(column, type(kind)(decode=False))
    short = rows.filter(lambda row: len(row["text"]) < 2000) if name == "text" else rows
    return short.select(range(count))


def names(rows, column):
    return [rows.features[column].int2str(number).split(" ")[0] for number in rows[column]]


def picture(row):
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


# -- folders ----------------------------------------------------------------------------------------------------------


def class_folders(folder):
    rows = sample("emoji", "train", 60)
    for number, (row, name) in enumerate(zip(rows, names(rows, "category"), strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture(row).save(folder / name / f"{number}.png")


def captioned(folder, split="train", count=40):
    """Images beside a metadata.csv; `photo` is a second column of images."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sample("emoji", split, count)
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "photo_file_name", *COLUMNS])
        for number, (row, topic) in enumerate(zip(rows, names(rows, "category"), strict=True)):
            picture(row).save(folder / f"{number}.png")
            tags = " ".join(row["keywords"])
            table.writerow([f"{number}.png"] * 2 + [row["text"], row["name"], tags, topic, topic, topic])


def captioned_splits(folder):
    captioned(folder / "train")
    captioned(folder / "test", "test", 30)


def text_files(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(sample("text", "train", 40)["text"]):
        (folder / f"{number}.txt").write_text(text)


def text_tables(folder, splits=("train", "test")):
    folder.mkdir(parents=True, exist_ok=True)
    rows = sample("text", "train", 900)
    labels = names(rows, "source")
    two = (
        [i for i, label in enumerate(labels) if label == name] for name in sorted(set(labels), key=labels.count)[-2:]
    )
    kept = [i for pair in zip(*two, strict=False) for i in pair]
    for part, split in enumerate(splits):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["body", "text", "label"])
            count = min(80, len(kept) // len(splits))
            for i in kept[count * part : count * (part + 1)]:
                table.writerow([rows[i]["text"][:600]] * 2 + [labels[i]])


def recordings(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for row in sample("speech", "train", 8):
        wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        soundfile.write(folder / f"{row['id']}.wav", wave, rate)


def parquet(folder, name, sizes, subfolder=""):
    """sizes: {split: (of the sample's split, how many rows)}."""
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for split, (source, count) in sizes.items():
        sample(name, source, count).to_parquet(folder / subfolder / f"{split}-00000-of-00001.parquet")


def tar_files(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = sample("emoji", "train", 40)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(shard, len(rows), 2):
                tar.write({"__key__": f"{number:03}", "jpg": picture(rows[number]), "txt": rows[number]["text"]})


BOTH = {"train": ("train", 200), "test": ("test", 100)}
PLACES = {  # below path/to; a glob's files stand in the folder itself
    "images": class_folders, "photos": class_folders, "folder": captioned, "pairs": captioned_splits,
    "documents": text_files, "text": text_files, "texts": text_tables,
    "labelled": lambda folder: text_tables(folder, splits=("train",)),
    "audio": recordings, "recordings": recordings,
    "speech": lambda folder: parquet(folder, "speech", {"train": ("train", 12), "test": ("test", 8)}),
    "fashion_mnist": lambda folder: parquet(folder, "images", BOTH),
    "emoji_captions": lambda folder: parquet(folder, "emoji", BOTH),
    "shards": tar_files,
}  # fmt: skip


def make_world(folder):
    """Everything that the pages take for granted."""
    for name, make in PLACES.items():
        make(folder / "path/to" / name)
    for pattern, source in (("*.txt", "documents"), ("*.tar", "shards")):
        for file in (folder / "path/to" / source).glob(pattern):
            shutil.copy(file, folder / "path/to")
    picture(sample("emoji", "train", 2)[1]).save(folder / "heart.png")
    picture(sample("emoji", "train", 2)[0]).save(folder / "photo.jpg")
    judged = [("three", "four", 8.1), ("king", "queen", 7.5), ("world", "house", 2.0), ("water", "time", 1.0)]
    (folder / "wordsim353.tsv").write_text("\n".join("\t".join(map(str, row)) for row in judged) + "\n")
    (folder / "questions-words.txt").write_text(": numbers\none two three four\nthree four one two\n")
    merge_file(folder / "bpe_simple_vocab_16e6.txt.gz")
    word_file(folder / "GoogleNews-vectors-negative300.bin")


# -- files of authors -------------------------------------------------------------------------------------------------


def mae_file(path):
    decoder = {"decoder_width": 512, "decoder_depth": 1} if "full" in path.name else {"decoder_width": 0}
    weights = test_convert.original_weights(side=7, patch=32, width=768, depth=1, mlp=96, **decoder)
    torch.save({"model": weights}, path)


def clip_file(path):
    sizes = {"input_resolution": 16, "context_length": test_convert_clip.LENGTH, "vocab_size": 525}
    weights = test_convert_clip.original_weights() | {name: torch.tensor(size) for name, size in sizes.items()}
    torch.save(weights, path)


def merge_file(path):
    text = "\n".join(["#version: 0.2", *test_convert_clip.MERGES, "left out</w>", ""])
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(text)


def word_file(path):
    """word2vec's binary format."""
    words = ["three", "four", "king", "queen", "man", "woman", "the", "of", "and", "house", "water", "time"]
    with open(path, "wb") as file:
        file.write(f"{len(words)} 8\n".encode())
        for word in words:
            file.write(f"{word} ".encode() + torch.randn(8).numpy().astype("<f4").tobytes() + b"\n")


AUTHORS = {  # of each kind of `hf-ssl convert` a function that writes a small file of that layout
    "mae": mae_file,
    "moco": lambda path: torch.save(test_convert.OriginalMoCo(mlp=True, depths=(1, 1, 1, 1)).checkpoint(), path),
    "simclr": lambda path: torch.save(test_convert.torchvision_resnet("Bottleneck").state_dict(), path),
    "clip": clip_file,
    "cpc_audio": lambda path: torch.save(
        {"config": {"arMode": "LSTM"}, "weights": test_convert.OriginalCPC().state_dict()}, path
    ),
    "word2vec": word_file,
}


# -- the Hub ----------------------------------------------------------------------------------------------------------


def image_set(folder, column, splits):
    """Photos of the size that their network sees, in colour."""
    for split in splits:
        rows = sample("emoji", "test" if split != "train" else "train", 60).select_columns(["image", "category"])
        rows = rows.rename_columns({"category": "label"} | ({"image": column} if column != "image" else {}))
        rows.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")


def speech_set(folder):
    for config, split, source in (
        ("clean", "train.100", "train"), ("clean", "train.360", "train"), ("clean", "validation", "test"),
        ("clean", "test", "test"), ("other", "train.500", "train"),
    ):  # fmt: skip
        place = folder / config / split
        place.mkdir(parents=True)
        rows = sample("speech", source, 16).select_columns(["audio", "text", "speaker", "id"])
        rows.rename_column("speaker", "speaker_id").to_parquet(place / "0000.parquet")


def glue_set(folder):
    text = sample("text", "train", 120)["text"]
    pairs = {f"sentence{part + 1}": [each[80 * part : 80 * part + 80] for each in text] for part in range(2)}
    rows = datasets.Dataset.from_dict(pairs | {"label": [i % 2 for i in range(120)], "idx": list(range(120))})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["not_equivalent", "equivalent"]))
    for split, start in (("train", 0), ("validation", 60), ("test", 90)):
        rows.select(range(start, start + 30)).to_parquet(folder / f"mrpc/{split}-00000-of-00001.parquet")


def review_set(folder):
    rows = sample("text", "train", 120)
    rows = datasets.Dataset.from_dict({"text": rows["text"], "label": [i % 2 for i in range(len(rows))]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    for split, start in (("train", 0), ("test", 60)):
        rows.select(range(start, start + 60)).to_parquet(folder / f"plain_text/{split}-00000-of-00001.parquet")


def article_set(folder):
    rows = sample("text", "train", 60).select_columns(["title", "text"])
    rows.to_parquet(folder / "20231101.en/train-00000-of-00001.parquet")


DATASETS = {
    "ILSVRC/imagenet-1k": lambda folder: image_set(folder, "image", ("train", "validation", "test")),
    "uoft-cs/cifar10": lambda folder: image_set(folder, "img", ("train", "test")),
    "openslr/librispeech_asr": speech_set,
    "nyu-mll/glue": glue_set,
    "stanfordnlp/imdb": review_set,
    "wikimedia/wikipedia": article_set,
}


def dataset_card(folder):
    """Says which files are which split, where folders are configurations, as the Hub's own cards do."""
    configs = []
    for config in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "data"):
        splits = {
            path.parent.name if path.parent != config else path.name.split("-")[0]
            for path in config.rglob("*.parquet")
        }
        files = [
            {
                "split": split,
                "path": f"{config.name}/{split}/*" if (config / split).is_dir() else f"{config.name}/{split}-*",
            }
            for split in sorted(splits)
        ]
        configs.append({"config_name": config.name, "data_files": files})
    metadata = {"license": "cc0-1.0"} | ({"configs": configs} if configs else {})
    (folder / "README.md").write_text(f"---\n{json.dumps(metadata)}\n---\n")


def model_type(repo_id):
    """The architecture that the name of a repository begins with, in transformers' names; None if it is none."""
    name = repo_id.split("/")[1].lower()
    fits = [kind for kind in CONFIG_MAPPING if name == kind or name.startswith(f"{kind.replace('_', '-')}-")]
    return max(fits, key=len, default=None)


def small_config(kind):
    """One whose random weights take milliseconds; images stay of the size of their processor."""
    config, values = AutoConfig.for_model(kind), {}
    for name, number in smaller(config):
        *owners, key = name.split(".")
        if key != "image_size":
            reduce(lambda inner, owner: inner.setdefault(owner, {}), owners, values)[key] = number
    for name, first, factor in (("hidden_sizes", 32, 2), ("depths", 1, 1), ("conv_dim", 16, 1)):  # a number a stage
        if (old := getattr(config, name, None)) is not None:
            values[name] = [first * factor**i for i in range(len(old))]
    return AutoConfig.for_model(kind, **values)


def model_repository(folder, repo_id):
    """A model of the architecture that the name tells, with what reads its input."""
    kind = model_type(repo_id)
    config = small_config(kind)
    texts = getattr(config, "text_config", config)
    if type(config) in TOKENIZER_MAPPING and hasattr(texts, "max_position_embeddings"):
        if texts is config:
            documents = lambda: iter(sample("text", "train", 40)["text"])  # noqa: E731
            tokenizer = train_wordpiece(documents, MOST["--vocab_size"], texts.max_position_embeddings)
        else:
            merge_file(folder / "merges.txt")
            tokenizer = read_vocabulary(folder / "merges.txt", test_convert_clip.VOCABULARY)
            texts.bos_token_id, texts.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        texts.vocab_size = len(tokenizer)
        tokenizer.save_pretrained(folder)
    if kind in IMAGE_PROCESSOR_MAPPING_NAMES:
        name = IMAGE_PROCESSOR_MAPPING_NAMES[kind]["torchvision"]
        get_image_processor_class_from_name(name)().save_pretrained(folder)
    elif kind in FEATURE_EXTRACTOR_MAPPING_NAMES:
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    auto = AutoModelForPreTraining if type(config) in MODEL_FOR_PRETRAINING_MAPPING else AutoModel
    auto.from_config(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


def repository(folder, repo_id):
    """(models or datasets, {path: content}) of a repository that a page names; None if there is no such one."""
    folder.mkdir(parents=True)
    if repo_id in DATASETS:
        DATASETS[repo_id](folder)
        dataset_card(folder)
    elif model_type(repo_id):
        model_repository(folder, repo_id)
    else:
        return None
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return "datasets" if repo_id in DATASETS else "models", files
