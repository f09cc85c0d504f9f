"""What an evaluation was made under: data, rows and settings. In words, and how they differ from another's."""

from pathlib import Path

from ..data.loading import EMBEDDED, is_embedded
from ..training.records import plain, public_name
from .encoders.loading import PAIRS

DRAWN = {"seed", "max_samples"}  # settings of an evaluation that say which rows it takes
DATA = {  # what tells the data of one evaluation from those of another
    "name", "local", "config", "train_split", "test_split", "test_fraction", "group_column", "train_split_rows",
    "test_split_rows", "passages", "max_length", "image_column", "text_columns", "audio_column", "label_column",
}  # fmt: skip
ROWS_READ = ("train_rows", "test_rows", "classes")
SAMPLES = {  # by what a model reads: the embedded data set's folder, and what it is
    "image": ("images", "the images that ship with hf_ssl (12,000 of Fashion-MNIST)"),
    "text": ("text", "the documents that ship with hf_ssl (1.4 million English words from twelve sources)"),
    "audio": ("speech", "the recordings that ship with hf_ssl (4 minutes read by six synthetic speakers)"),
    PAIRS: ("emoji", "the captioned emoji that ship with hf_ssl (2,543 drawings of 840 emoji)"),
}


def sample_name(dataset_name, modality):
    """Of the data set that an argument names the embedded sample's folder, None if it is none."""
    if not dataset_name:
        return SAMPLES[modality][0]
    return dataset_name.removeprefix(EMBEDDED) if is_embedded(dataset_name) else None


def source_in_words(dataset_name, modality):
    """The data set that an argument names, in Markdown."""
    sample = sample_name(dataset_name, modality)
    return dict(SAMPLES.values())[sample] if sample else plain(dataset_name)


def data_name(data):
    """The name of the data of an evaluation as it is published: whether it is a local one was decided then."""
    if not data.get("local", False):
        return public_name(data["name"]) if "local" not in data else data["name"]
    return Path(data["name"]).name or Path(data["name"]).resolve().name


def measured_on(results, modality):
    """The data and the rows of an evaluation in words; Markdown."""
    data, settings = results["dataset"], results["settings"]
    if not data:
        return "the weights alone"
    words = [source_in_words(data_name(data) if data["name"] else None, modality)]
    if data.get("config"):
        words[0] += f", config {plain(data['config'])}"
    for part, use in (("test", "test"), ("train", "training")):
        if (rows := data.get(f"{part}_rows")) is not None:
            words.append(f"{rows:,} {use} rows (split {plain(data[f'{part}_split'])})")
    if data.get("passages"):
        words.append(f"documents cut into passages of {data['passages']} words")
    if data.get("classes") and data.get("label_column"):
        words.append(f"{data['classes']:,} classes of the column {plain(data['label_column'])}")
    if settings.get("max_samples"):
        words.append(f"a sample of at most {settings['max_samples']:,} rows of a split")
    if data.get("rows_not_finite"):
        words.append(f"{data['rows_not_finite']} rows left out, whose features are not finite")
    return "; ".join(words)


def differences(results, other):
    """[(what, its value in `results`, in `other`)] of the conditions of two evaluations, the seed aside; what only one of them
    ran or names does not count."""
    data, others = ({**each["dataset"], "name": _published(each["dataset"])} for each in (results, other))
    keys = [key for key in data if key in DATA.union(ROWS_READ) and key in others]
    found = [(key.replace("_", " "), data[key], others[key]) for key in keys if data[key] != others[key]]
    return found + setting_differences(results, other)


def conditions(results):
    """What two runs that differ in their seed alone have in common: {"dataset", "settings"}."""
    data, settings = results["dataset"], results["settings"]
    return {
        "dataset": {key: value for key, value in data.items() if key in DATA.union(ROWS_READ)},
        "settings": {name: value for name, value in settings.items() if name != "seed"},
    }


def setting_differences(results, other):
    found = []
    for name, value in results["settings"].items():
        before = other["settings"].get(name, value)
        if isinstance(value, dict) and isinstance(before, dict):
            found += [
                (f"{name}'s {key}", value[key], before.get(key)) for key in value if value[key] != before.get(key)
            ]
        elif name != "seed" and value != before:
            found.append((name, value, before))
    return found


def settings_in_words(settings):
    """{protocol: its settings}; Markdown."""
    return {
        name: "; ".join(f"{key.replace('_', ' ')}: {plain(_listed(value))}" for key, value in each.items())
        for name, each in settings.items()
        if isinstance(each, dict)
    }


def _published(data):
    return data_name(data) if data.get("name") else None


def _listed(value):
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


__all__ = [
    "DATA",
    "DRAWN",
    "SAMPLES",
    "conditions",
    "data_name",
    "differences",
    "measured_on",
    "sample_name",
    "setting_differences",
    "settings_in_words",
    "source_in_words",
]
