"""The model card of a release. Every number of it is read from a file that a run wrote."""

import importlib.util
import json
import os
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, TemplateNotFound

from ..errors import InputError
from ..evaluation import PAIRS, Metric, modality_of, results_table
from ..evaluation.conditions import (
    SAMPLES,
    data_name,
    measured_on,
    sample_name,
    setting_differences,
    settings_in_words,
    source_in_words,
)
from ..evaluation.results import evaluations
from ..methods import METHODS
from ..training.checkpoints import RUN_FILE
from ..training.records import NOT_TRAINING, command_line, plain, public_run, redact
from .transfer import EVAL_RESULTS

_CARDS = importlib.util.find_spec("hf_ssl.model_cards")  # installed; else of a checkout that is run as it lies there
CARDS = Path(_CARDS.origin).parent if _CARDS else Path(__file__).parents[2] / "model_cards"
HISTORY = "history.json"
# The versions of transformers that load a root with the features of this one, as tried. Before 5.4 configs were no data
# classes, which @strict in the code of our own architectures asks for; before 5.0 CLIP gave image features as a bare tensor.
# Native encoders were tried down to 4.57.
OLDEST_TRANSFORMERS = {"own": "5.4", PAIRS: "5.0", "native": "4.57"}
ALT_TEXTS = {
    "captions": "test images and the texts that the model ranks highest",
    "layers": "accuracy of each stage",
    "neighbours": "nearest neighbours",
    "patch_neighbours": "nearest patches of other images",
    "pretext": "the task on training images",
    "tsne": "t-SNE of the features",
    "word_map": "frequent words by t-SNE",
}


def write_card(folder: str | Path) -> None:
    """(Re)write README.md of a release from what its files say: the run, its history, its evaluation, its pictures."""
    folder = Path(folder)
    staging = folder / ".README.md.partial"
    ModelCard(render_card(folder)).save(staging)
    os.replace(staging, folder / "README.md")


def render_card(folder: Path, path: str | None = None) -> str:
    """The card of the release in `folder`. path: how its code names the folder; None: as whoever reads it here would."""
    run = json.loads((folder / RUN_FILE).read_text())
    output_dir, begun_as = run["arguments"]["output_dir"], run["arguments"]["backbone"] or ""
    run = public_run(run)
    history = json.loads((folder / "pretraining" / HISTORY).read_text())
    measured = evaluations(folder / EVAL_RESULTS)
    method = run["config"]["model_type"].removeprefix("ssl_")
    modality = modality_of(METHODS[method])
    arguments, facts, places = run["arguments"], run.get("facts", {}), run["places"]  # no facts before a run has saved
    stated = facts.get("data", {"title": None, "license": []})
    name = plain(Path(path or folder.resolve()).name)
    if path is None:
        begun_there = Path(output_dir).resolve() == folder.resolve()
        path = output_dir if begun_there else str(folder)  # however the folder is named when it is evaluated
    dataset, is_local = arguments["dataset_name"], places.get("dataset_name", {"local": False})["local"]
    is_preset = "/" not in begun_as and not places.get("backbone", {"local": False})["local"]
    begun_from = None if is_preset else arguments["backbone"]
    unused = ("momentum",) if arguments.get("optim") == "adamw" else ("adam_beta1", "adam_beta2", "adam_epsilon")
    theirs = facts.get("weights_license", [])
    licences = theirs or [arguments["license"]] if arguments.get("license") else theirs
    data = ModelCardData(
        library_name="transformers",
        license=licences[0] if len(licences) == 1 else licences or None,
        base_model=begun_from if begun_from and begun_from.count("/") == 1 else None,
        tags=["self-supervised-learning", "hf_ssl", method],
        datasets=[dataset] if dataset and not is_local and dataset.count("/") == 1 else None,
        model_name=name,
        eval_results=_eval_results(measured, modality) or None,
    )
    template = card_template(method)
    shown = {
        k: v for k, v in arguments.items() if v not in (None, "", "none", -1) and k not in (*unused, *NOT_TRAINING)
    }
    source, sample = source_in_words(dataset, modality), sample_name(dataset, modality)
    text = template.render(
        card_data=data.to_yaml(),
        name=name,
        path=path,
        oldest=OLDEST_TRANSFORMERS[_root_kind(folder, modality)],
        shipped=sample is not None,
        sample=sample,
        dataset=f"{plain(stated['title'])} ({source})" if not sample and stated["title"] else source,
        licence=plain(", ".join(stated["license"]).upper()),
        config=run["config"],
        arguments={key: plain(value) if isinstance(value, str) else value for key, value in shown.items()},
        facts=facts,
        measured=_measured(facts) if facts else {},
        command=command_line(facts) if facts else None,
        last=history[-1] if history else {},
        results=[_shown(each, modality, measured[0]) for each in measured if each["results"] or each["pictures"]],
        settings=set().union(*(each["settings"] for each in measured)),
        pictures=sorted(path.name for path in (folder / "images").glob("*.png")),
    )
    # a name that is not UTF-8 as Python writes it: then the code on the card still names the folder
    return redact(text.encode(errors="backslashreplace").decode())


def _root_kind(folder, modality):
    own = json.loads((folder / "config.json").read_text())["model_type"].startswith("ssl_")
    return "own" if own else PAIRS if modality == PAIRS else "native"


def _shown(results, modality, first):
    """Of one evaluation what it was measured on, its table, and its pictures with what they show. first: the evaluation that
    stands above it, or itself."""
    names = {path: re.sub(r"_[0-9]+$", "", Path(path).stem) for path in results["pictures"]}
    changed = [f"{what} {plain(value)}" for what, value, _ in setting_differences(results, first)]
    if (seed := results["settings"].get("seed")) != first["settings"].get("seed", seed):
        changed.append(f"seed {seed}")
    return {
        "measured_on": "; ".join([measured_on(results, modality), *changed]),
        "settings": settings_in_words(results["settings"]),
        "table": results_table(results) if results["results"] else None,
        "pictures": {path: ALT_TEXTS.get(name, name) for path, name in names.items()},
    }


def card_template(method):
    try:
        return Environment(loader=FileSystemLoader(CARDS)).get_template(f"{method}.md")
    except TemplateNotFound as error:
        raise InputError(f"The method {method} has no card: {error.name} was not found in {CARDS}.") from error


def card_blocks(method, **shown):
    """{name: text} of the blocks that the card of a method has with these variables, for pages that quote some of them."""
    template = card_template(method)
    context = template.new_context(shown)
    for _ in template.root_render_func(context):  # rendering finds the template of the family that fills each block
        pass
    return {name: "".join(filled[0](context)).strip() for name, filled in context.blocks.items()}


def _measured(facts):
    """What the run was and took, in words."""
    machine, count = facts["hardware"], facts["processes"]
    processes = "1 process" if count == 1 else f"{count} processes"
    if "threads" in machine:
        processes += f" of {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    seconds, unit = max(facts["seconds"], 0.1), facts["unit"]
    duration = (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
    tracking = facts.get("tracking", {"pages": {}})
    pages = {
        f"log in {tracker}": f"[{plain(tracking['run'])}]({page})"
        if "://" in page
        else f"`{page}`, run {plain(tracking['run'])}"
        for tracker, page in tracking["pages"].items()
    }
    return {
        "parameters": f"{facts['parameters']:,}",
        f"{unit} seen": f"{facts['samples_seen']:,}",
        "time": f"{duration}, {facts['samples_seen'] / seconds:,.0f} {unit}/s",
        "hardware": f"{machine['name']}, {processes}, {facts['precision']}",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    } | pages


def _eval_results(measured, modality):
    """The pretrained rows of all evaluations as model-index entries; one for each column and split, of the most rows."""
    entries = {}
    for results in measured:
        data = results["dataset"]
        name = data_name(data) if data.get("name") else f"hf_ssl/samples/{SAMPLES[modality][0]}"
        sample = results["settings"].get("max_samples")
        for column, value in results["results"].get("pretrained", {}).items():
            metric = Metric(**results["metrics"][column])
            if metric.table:  # of parts of the encoder, and of the task
                continue
            of = [metric.unit] if metric.unit else []
            of += [f"at most {sample:,} rows"] if sample else []
            entry = EvalResult(
                task_type=metric.task
                or f"{modality.split()[0]}-classification",  # of what reads texts too, its images
                dataset_type=metric.dataset or name,
                dataset_name=metric.dataset or name,
                dataset_config=data.get("config"),
                dataset_split=data.get("test_split"),
                metric_type=metric.kind,
                metric_name=metric.name + (f" ({', '.join(of)})" if of else ""),
                metric_value=value,
            )
            entries.setdefault((entry.unique_identifier, column), entry)
    return list(entries.values())


__all__ = ["CARDS", "HISTORY", "card_blocks", "card_template", "render_card", "write_card"]
