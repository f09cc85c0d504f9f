"""The release folder of contract C1 and its model card. Every number of a card is read from a file that a run wrote.

A Python user does as the scripts do: `check_run(model, args)`, `run = train(...)`, `finish_run(run, processor)`; or
`save_release` alone.
"""

import copy
import filecmp
import importlib.util
import json
import logging
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, TemplateNotFound

from ..data import image_processor
from ..data.audio import SPEAKER_COLUMNS
from ..errors import InputError
from ..evaluation import EVALUATIONS, PAIRS, PROTOCOLS, Metric, modality_of, results_table
from ..evaluation.encoders.loading import one_line, released_encoder
from ..evaluation.pictures import save_loss
from ..evaluation.processes import process_state
from ..evaluation.run import FROZEN
from ..evaluation.sources import Source
from ..methods import METHODS
from ..methods._base import SSLModel
from ..training.arguments import RunArguments, check_known
from ..training.checkpoints import RUN_FILE, from_main, full_config, write_json
from ..training.loop import TrainingRun
from ..training.records import command_line, public_name
from .transfer import EVAL_RESULTS, MEASURED, PARTIAL_RELEASE, check_repo_id, open_repository, push_release

logger = logging.getLogger(__name__)
_CARDS = importlib.util.find_spec("hf_ssl.model_cards")  # installed; else of a checkout that is run as it lies there
CARDS = Path(_CARDS.origin).parent if _CARDS else Path(__file__).parents[2] / "model_cards"
HISTORY = "history.json"
NOT_TRAINING = (  # arguments that have no part in what is learnt
    "output_dir", "resume_from_checkpoint", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy",
)  # fmt: skip
SAMPLES = {  # by what a model reads: the embedded data set's folder, and what it is
    "image": ("images", "the images that ship with hf_ssl (12,000 of Fashion-MNIST)"),
    "text": ("text", "the documents that ship with hf_ssl (1.4 million English words from twelve sources)"),
    "audio": ("speech", "the recordings that ship with hf_ssl (4 minutes read by six synthetic speakers)"),
    PAIRS: ("emoji", "the captioned emoji that ship with hf_ssl (2,543 drawings of 840 emoji)"),
}


def check_arguments(model_class, args):
    """Refuse, before any work, protocols that do not fit what the model reads, a method without card, and what is no
    repository. Raises InputError."""
    modality = modality_of(model_class)
    if modality not in EVALUATIONS:
        raise InputError(
            f"{model_class.__name__} has input_modalities={model_class.input_modalities}: expected those of "
            f"{', '.join(EVALUATIONS)}, such as ('image',)."
        )
    for protocol in args.eval_protocols.split(","):
        check_known("eval_protocols", protocol, ["none", *PROTOCOLS[modality]])
    _card_template(model_class.config_class.model_type.removeprefix("ssl_"))
    if args.push_to_hub:
        check_repo_id("hub_model_id", args.hub_model_id)


def check_run(model: SSLModel, args: RunArguments):
    """Refuse, before the training, what would end a run after it: see `check_arguments`, settings that cannot be written, a
    model that cannot be released, or a repository that cannot be had. Called by every process. Raises InputError."""
    check_arguments(type(model), args)
    _check_evaluation(model, args)
    try:
        json.dumps([full_config(model.config), asdict(args)])
    except TypeError as error:
        raise InputError(f"The settings of the run cannot be written to {RUN_FILE}: {error}.") from error
    _check_export(model)
    if args.push_to_hub:
        config, private = full_config(model.config), args.hub_private_repo
        from_main(process_state(), lambda: open_repository(args.hub_model_id, config, private) and None)


def _check_export(model):
    """Try the export on weights that are shapes only."""
    config = copy.deepcopy(model.config)
    try:
        with torch.device("meta"):
            encoder = released_encoder(type(model)(config).export_encoder())
        for each in (encoder.config, config):  # as saving does
            each.validate()
            each.to_json_string()
    except Exception as error:  # whatever a network makes of settings that do not go together
        raise InputError(
            f"{type(model).__name__} could be trained but not released with these settings: {one_line(error)}; change "
            "config_overrides."
        ) from error


def _check_evaluation(model, args):
    """Say before the training what the evaluation at its end will lack; refuse a split or label column that was named, and is not
    there."""
    asked, modality = set(args.eval_protocols.split(",")), modality_of(model)
    if asked <= {"none", "words"}:  # without data
        return
    source = Source(
        SAMPLES[modality][0], args.dataset_name, args.dataset_config_name, args.train_split, args.test_split,
        streaming=args.streaming, seed=args.seed,
    )  # fmt: skip
    source.hold_out(args.test_fraction, args.group_column, args.label_column)
    try:
        named = args.test_fraction is not None or args.test_split not in ("test", "validation")  # which presets say
        test = source.test_rows()
        if asked & (FROZEN | {"fine_tune"}):
            named = args.label_column
            source.find_label(test, args.label_column, SPEAKER_COLUMNS if modality == "audio" else ())
    except InputError as error:
        if named:
            raise
        logger.warning("The run will end without some or all of its evaluation: %s", error)


def save_release(run: TrainingRun, processor, pictures=()):
    """Leave the release in `run.args.output_dir`: the native encoder, its processor and the card at the root, the whole
    model under pretraining/, pictures under images/. Called on the main process.

    pictures: functions of a path that save one picture each, named by the function. Raises InputError if the disk is full;
    each file of an earlier release is then still whole.
    """
    folder = Path(run.args.output_dir)
    staging = folder / PARTIAL_RELEASE
    shutil.rmtree(staging, ignore_errors=True)
    try:
        released_encoder(run.model.export_encoder()).save_pretrained(staging)
        released_processor(processor).save_pretrained(staging)
        run.model.save_pretrained(staging / "pretraining")
        write_json(staging / "pretraining" / HISTORY, run.history)
        (staging / "images").mkdir()
        for name, draw in ({"loss": partial(save_loss, run.history)} | dict(pictures)).items():
            try:
                draw(staging / "images" / f"{name}.png")
            except Exception as error:  # no picture is worth the weights
                logger.warning("The picture '%s' could not be drawn: %s.", name, error)
        if any(not _is_same(path, folder / path.name) for path in staging.glob("*.safetensors")):
            # what was measured on, and drawn with, other weights
            for name in MEASURED:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "images", ignore_errors=True)
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
    except OSError as error:
        raise InputError(f"The release could not be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    write_card(folder)


def released_processor(processor):
    """`processor`, or, if it is one of grey pictures, its like of three equal channels, for `released_encoder`."""
    if len(getattr(processor, "image_mean", None) or ()) != 1:
        return processor
    size, normalize = processor.crop_size["height"], processor.do_normalize
    return image_processor(size, 3, normalize, processor.image_mean * 3, processor.image_std * 3)


def _is_same(path, other):
    return other.is_file() and filecmp.cmp(path, other, shallow=False)


def push_save(processor, run: TrainingRun):
    """Given to `train` as `on_save`: with `--hub_strategy every_save`, publish what the run has reached, with its training
    state. What goes wrong is logged, and training goes on: the end of the run pushes again."""
    if not run.args.push_to_hub or run.args.hub_strategy != "every_save":
        return
    try:
        save_release(run, processor)
        _push(run.args)
    except InputError as error:
        logger.warning("Training goes on, but this checkpoint was not pushed: %s", error)


def _push(args):
    everything = args.hub_strategy == "every_save"
    push_release(args.output_dir, args.hub_model_id, private=args.hub_private_repo, training_state=everything)


def finish_run(run: TrainingRun, processor, pictures=()) -> None:
    """What every script ends with: release, evaluation beside its baselines, card, push. Called by every process."""
    args = run.args
    if run.is_main_process:
        save_release(run, processor, pictures)
    process_state().wait_for_everyone()  # the others read what the main process has written
    evaluate_release(run)
    if args.push_to_hub and run.is_main_process:
        try:
            _push(args)
        except InputError as error:
            again = f"hf-ssl push {args.output_dir} {args.hub_model_id}"
            raise InputError(f"{error} The release is whole in {args.output_dir}: {again}.") from None


def evaluate_release(run):
    """The evaluation at the end of a run, as `--eval_protocols` says, into its folder and card."""
    args = run.args
    if args.eval_protocols == "none":
        return
    columns = [f"{modality}_column" for modality in run.model.input_modalities]

    def evaluate(protocols):
        return EVALUATIONS[modality_of(run.model)](
            args.output_dir,
            args.dataset_name,
            args.dataset_config_name,
            protocols=protocols,
            train_split=args.train_split,
            test_split=args.test_split,
            **{column: getattr(args, column) for column in columns},
            label_column=args.label_column,
            test_fraction=args.test_fraction,
            group_column=args.group_column,
            streaming=args.streaming,
            seed=args.seed,
            output_dir=args.output_dir,
        )

    def attempt(protocols):
        """(results, None), or (None, what was in the way of the main process, and all processes know it)."""
        try:
            results, error = evaluate(protocols), None
        except InputError as found:
            results, error = None, found
        return results, from_main(process_state(), lambda: error)

    asked = args.eval_protocols.split(",")
    done = asked
    results, error = attempt(asked)
    if error is not None:  # data without labels, or without a test split, are what pretraining is for
        done = []
        for protocol in asked if len(asked) > 1 else []:  # what one protocol lacks another may not need
            found, failed = attempt([protocol])
            if failed is None:
                results, done = found, [*done, protocol]
        if not done:
            logger.warning("The release is whole but was not evaluated: %s", error)
            return
        logger.warning("Evaluated by %s alone: %s", ", ".join(done), error)
    if run.is_main_process:
        write_card(args.output_dir)
        print(results_table(results))


def write_card(folder: str | Path) -> None:
    """(Re)write README.md of a release from what its files say: the run, its history, its evaluation, its pictures."""
    folder = Path(folder)
    run = json.loads((folder / RUN_FILE).read_text())
    history = json.loads((folder / "pretraining" / HISTORY).read_text())
    results_file = folder / EVAL_RESULTS
    results = json.loads(results_file.read_text()) if results_file.is_file() else None
    method = run["config"]["model_type"].removeprefix("ssl_")
    modality = modality_of(METHODS[method])
    arguments, facts = run["arguments"], run.get("facts", {})  # none of a run that has not saved yet
    stated = facts.get("data", {"title": None, "license": []})
    name = folder.resolve().name
    begun_there = Path(arguments["output_dir"]).resolve() == folder.resolve()
    path = arguments["output_dir"] if begun_there else str(folder)  # however the folder is named when it is evaluated
    dataset = arguments["dataset_name"] = public_name(arguments["dataset_name"])
    for place in ("tokenizer_name", "vision_tower", "text_tower"):
        if place in arguments:
            arguments[place] = public_name(arguments[place])
    backbone = arguments["backbone"] or ""
    begun_from = public_name(backbone) if "/" in backbone or Path(backbone).exists() else None  # no preset
    arguments["backbone"] = begun_from or backbone
    unused = ("momentum",) if arguments.get("optim") == "adamw" else ("adam_beta1", "adam_beta2", "adam_epsilon")
    data = ModelCardData(
        library_name="transformers",
        license=None if begun_from else "apache-2.0",  # weights of others keep their licence
        base_model=begun_from if begun_from and begun_from.count("/") == 1 else None,
        tags=["self-supervised-learning", "hf_ssl", method],
        datasets=[dataset] if dataset and dataset.count("/") == 1 else None,
        model_name=name,
        eval_results=_eval_results(results, modality) if results else None,
    )
    template = _card_template(method)
    shown = {k: v for k, v in arguments.items() if v not in (None, "", "none") and k not in (*unused, *NOT_TRAINING)}
    text = template.render(
        card_data=data.to_yaml(),
        name=name,
        path=path,
        shipped=dataset is None,
        dataset=f"{stated['title']} ({dataset})" if dataset and stated["title"] else dataset or SAMPLES[modality][1],
        licence=", ".join(stated["license"]).upper(),
        config=run["config"],
        arguments=shown,
        facts=facts,
        measured=_measured(facts) if facts else {},
        command=command_line(facts) if facts else None,
        last=history[-1] if history else {},
        results=results_table(results) if results else None,
        settings=results["settings"] if results else None,
        pictures=sorted(path.name for path in (folder / "images").glob("*.png")),
    )
    staging = folder / ".README.md.partial"
    ModelCard(text).save(staging)
    os.replace(staging, folder / "README.md")


def _card_template(method):
    try:
        return Environment(loader=FileSystemLoader(CARDS)).get_template(f"{method}.md")
    except TemplateNotFound as error:
        raise InputError(f"The method {method} has no card: {error.name} was not found in {CARDS}.") from error


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
    return {
        "parameters": f"{facts['parameters']:,}",
        f"{unit} seen": f"{facts['samples_seen']:,}",
        "time": f"{duration}, {facts['samples_seen'] / seconds:,.0f} {unit}/s",
        "hardware": f"{machine['name']}, {processes}, {facts['precision']}",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }


def _eval_results(results, modality):
    """The pretrained row as model-index entries."""
    dataset = public_name(results["dataset"]["name"]) or f"hf_ssl/samples/{SAMPLES[modality][0]}"
    entries = []
    for column, value in results["results"].get("pretrained", {}).items():
        metric = Metric(**results["metrics"][column])
        entry = EvalResult(
            task_type=metric.task or f"{modality.split()[0]}-classification",  # of what reads texts too, its images
            dataset_type=metric.dataset or dataset,
            dataset_name=metric.dataset or dataset,
            dataset_config=results["dataset"]["config"],
            dataset_split=results["dataset"]["test_split"],
            metric_type=metric.kind,
            metric_name=metric.name + (f" ({metric.unit})" if metric.unit else ""),
            metric_value=value,
        )
        entries.append(entry)
    return entries
