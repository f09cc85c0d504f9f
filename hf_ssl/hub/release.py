"""The release folder of contract C1, from what a run leaves to its evaluation and its push.

A Python user does as the scripts do: `check_run(model, args)`, `run = train(...)`, `finish_run(run, processor)`; or
`save_release` alone.
"""

import copy
import filecmp
import json
import logging
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..data import image_processor
from ..data.audio import SPEAKER_COLUMNS
from ..errors import InputError
from ..evaluation import EVALUATIONS, PROTOCOLS, modality_of, results_table
from ..evaluation.conditions import SAMPLES
from ..evaluation.encoders.loading import one_line, released_encoder
from ..evaluation.plots import draw_all, save_loss
from ..evaluation.processes import process_state
from ..evaluation.run import FROZEN
from ..evaluation.sources import Source
from ..methods._base import SSLModel
from ..training.arguments import RunArguments, check_known
from ..training.checkpoints import RUN_FILE, from_main, full_config, write_json
from ..training.loop import TrainingRun
from ..training.records import redact
from .card import HISTORY, card_template, write_card
from .transfer import MEASURED, PARTIAL_RELEASE, check_repo_id, open_repository, push_release

logger = logging.getLogger(__name__)


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
    card_template(model_class.config_class.model_type.removeprefix("ssl_"))
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
        if asked & (FROZEN | {"fine_tune", "layer_probe", "accuracy"}):
            named = args.label_column
            source.find_label(test, args.label_column, SPEAKER_COLUMNS if modality == "audio" else ())
    except InputError as error:
        if named:
            raise
        logger.warning("The run will end without some or all of its evaluation: %s", error)


def save_release(run: TrainingRun, processor, pictures=()):
    """Leave the release in `run.args.output_dir`: the native encoder, its processor and the card at the root, the whole
    model under pretraining/, pictures under images/. Called on the main process.

    pictures: {name: function of a path that saves it}. Raises InputError if the disk is full; each file of an earlier release
    is then still whole.
    """
    folder = Path(run.args.output_dir)
    staging = folder / PARTIAL_RELEASE
    shutil.rmtree(staging, ignore_errors=True)
    try:
        released_encoder(run.model.export_encoder()).save_pretrained(staging)
        released_processor(processor).save_pretrained(staging)
        run.model.save_pretrained(staging / "pretraining")
        write_json(staging / "pretraining" / HISTORY, run.history)
        draw_all(staging, {"loss": partial(save_loss, run.history)} | dict(pictures))
        if any(not _is_same(path, folder / path.name) for path in staging.glob("*.safetensors")):
            # what was measured on, and drawn with, other weights
            for name in MEASURED:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "images", ignore_errors=True)
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        write_card(folder)
    except Exception as error:  # of a full disk safetensors and tokenizers have their own words
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
            raise
        raise InputError(f"The release could not be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
    except Exception as error:
        logger.warning("Training goes on, but this checkpoint was not pushed: %s", redact(str(error)))


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
    if run.is_main_process:
        logger.info("The release is in %s", args.output_dir)


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
        if results["results"]:  # a map of words has no numbers
            print(results_table(results))
