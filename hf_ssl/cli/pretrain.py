"""From a recipe and the command line to a release: what each pretraining script ends in."""

import copy
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..data import ImageDecoder, LabelledCompanions
from ..data.labels import UnseenRows
from ..data.words import word_tokenizer
from ..errors import InputError
from ..evaluation.encoders.loading import released_encoder
from ..evaluation.pictures import save_pretext
from ..evaluation.plots import save_curves
from ..evaluation.processes import process_state
from ..evaluation.protocols.accuracy import BASELINES
from ..hub import check_run, finish_run, push_save
from ..methods import METHODS
from ..training import train
from ..training.arguments import LabelArguments, PairArguments, WordArguments
from ..training.word_loop import train_words
from .images import check_colours, choose_processor, first_size, image_data, log_network, one_view
from .labels import LABEL, labels_of_run
from .pairs import choose_towers, load_towers, pair_data, pair_decoder, pair_processor, pair_tokenizer, report_cut
from .parse import build_model, checked, parse_arguments
from .rows import held_out_rows, row_labels
from .text import word_corpus

logger = logging.getLogger(__name__)


class Preset(NamedTuple):
    """One recipe of a script: values of the method's config, values of its TrainingArguments, and what it is for."""

    config: dict
    training: dict
    purpose: str

    @property
    def image_size(self):
        """The side in pixels of what a network for images sees."""
        encoder = self.config.get("backbone_config", {})
        return self.training.get("image_size") or encoder.get("vision_config", encoder).get("image_size") or 224


def pretrain_images(
    model_class,
    presets,
    arguments_class,
    description,
    view,
    *,
    normalize=True,
    pictures=None,
    curves=None,
    held_out=False,
):
    """The whole of a script whose method sees images alone.

    view: (args, size, processor) to the augmentation. normalize: else pixels stay in [0, 1]. pictures: {name: function of
    (model, rows, decoder, processor, path)}, drawn for the card, besides that of the task if the method has `pretext_lines`; of
    images that are held out, if `held_out` and there are any, else of training images.
    curves: {picture: (names, unit) of `save_curves`}, of what was logged. A model with `row_labels` gets those of the data.
    """
    config, args = parse_arguments(model_class, presets, arguments_class, description)
    of_colours = model_class.needs_colours is not False  # split-brain's depends on its config
    processor = choose_processor(config, args, normalize, of_colours)
    size = processor.crop_size["height"]
    rows, decoder = image_data(args, config.backbone_config.num_channels, view(args, size, processor))
    count_samples(model_class, config, rows)
    set_image_size(config, size)
    model = build_model(model_class, config, args)
    if hasattr(model, "row_labels"):
        model.row_labels = row_labels(args)
    checked(lambda: model.check_images(size, size))
    if model.needs_colours:
        check_colours(rows, decoder)
    log_network(model, args, size, presets, first_size(rows, decoder.column))
    drawn = ({"pretext": save_pretext} if hasattr(model, "pretext_lines") else {}) | (pictures or {})
    shown = held_out_rows(args, decoder.column) if held_out else None
    if shown is not None:
        drawn = {name: partial(_draw_on, shown, draw) for name, draw in drawn.items()}
    pretrain(model, rows, decoder, args, processor, pictures=drawn, curves=curves)


def _draw_on(shown, draw, model, rows, *arguments):
    draw(model, shown, *arguments)


def pretrain_with_labels(model_class, presets, description, view):
    """The whole of a script whose method sees images, some of which have labels. view: (args, size, processor) to the
    augmentation of the unlabelled ones; the labelled ones have the first of its views."""
    config, args = parse_arguments(model_class, presets, LabelArguments, description)
    processor = choose_processor(config, args)
    size, channels = processor.crop_size["height"], config.backbone_config.num_channels
    rows, decoder = image_data(args, channels, view(args, size, processor))
    labels = labels_of_run(args)
    classes = dict(enumerate(labels.names))
    if config.name_or_path and config.backbone_config.id2label != classes:
        raise InputError(
            f"backbone '{args.backbone}' knows {config.backbone_config.num_labels} classes, which are not the "
            f"{len(classes)} of the data: go on from its encoder, the folder or id of a method without labels."
        )
    config.backbone_config.id2label, config.backbone_config.label2id = classes, {v: k for k, v in classes.items()}
    count_samples(model_class, config, rows)
    model = build_model(model_class, config, args)
    checked(lambda: model.check_images(size, size))
    checked(lambda: model.check_labels(args.unlabelled_per_label))
    log_network(model, args, size, presets, first_size(rows, decoder.column))
    begin = copy.deepcopy(model.backbone.state_dict())
    labelled = ImageDecoder(labels.column, channels, one_view(args, size, processor))

    def beside(decoder, companions):
        return LabelledCompanions(decoder, companions, LABEL, labelled, every=args.unlabelled_per_label)

    check_run(model, args)
    run = train(model, rows, beside(decoder, labels.used), args, on_save=partial(push_save, processor))
    if args.train_baselines:
        for row, companions in zip(BASELINES, (labels.used, labels.every), strict=True):
            if row != "all_labels" or len(labels.every) > len(labels.used) or args.label_noise:
                _train_baseline(row, config, begin, rows, beside(UnseenRows(), companions), args)
    finish_run(run, processor)


def _train_baseline(row, config, begin, rows, decoder, args):
    """Leave under baselines/ what the network of a semi-supervised run learns from labels alone: from the same weights, with the
    same settings, in as many steps. Called by every process."""
    logger.info("baseline: the same network, %s", row.replace("_", " "))
    folder = Path(args.output_dir) / "baselines" / row
    resumed = "auto" if args.resume_from_checkpoint else None
    changes = dict(output_dir=str(folder), resume_from_checkpoint=resumed, report_to="none")
    args = replace(args, **changes, push_to_hub=False, hub_model_id=None)
    method = METHODS["entropy_minimization"]
    model = method(method.config_class(backbone_config=copy.deepcopy(config.backbone_config), entropy_weight=0.0))
    model.backbone.load_state_dict(begin)
    run = train(model, rows, decoder, args)
    if run.is_main_process:
        released_encoder(run.model.export_encoder()).save_pretrained(folder)
    process_state().wait_for_everyone()


def pretrain_pairs(model_class, presets, description):
    """The whole of a script whose method sees images with captions."""
    config, args = parse_arguments(model_class, presets, PairArguments, description)
    choose_towers(config, args)
    rows, *columns = pair_data(args)
    tokenizer = pair_tokenizer(config, args, rows, columns[1:])
    processor = pair_processor(config, args, tokenizer)
    decoder = pair_decoder(config, args, columns, processor)
    model = build_model(model_class, config, args)
    load_towers(model)
    log_network(model, args, decoder.images.view.size, presets, first_size(rows, columns[0]))
    model.micro_batch_size = args.micro_batch_size
    pretrain(model, rows, decoder, args, processor, tokenizer)
    report_cut(decoder)


def pretrain_words(model_class, presets, description):
    """The whole of a script that trains word vectors, by their own loop."""
    config, args = parse_arguments(model_class, presets, WordArguments, description)
    if args.backbone not in presets:
        raise InputError(f"backbone '{args.backbone}' is unknown: word2vec begins anew, by one of {list(presets)}.")
    corpus = word_corpus(args, config.min_count)
    config.backbone_config.vocab_size = len(corpus.words) + 1
    torch.manual_seed(args.seed)
    model = model_class(config)
    model.counts.copy_(corpus.counts)
    tokenizer = word_tokenizer(corpus.words, args.text_is_prepared)
    check_run(model, args)
    finish_run(train_words(model, corpus, args, on_save=partial(push_save, tokenizer)), tokenizer)


def pretrain(model, data, decoder, args, processor, tokenizer=None, pictures=None, curves=None):
    """Check what can be checked, train, evaluate, leave the release, publish it if asked to. Called by every process."""
    check_run(model, args)
    run = train(model, data, decoder, args, tokenizer, on_save=partial(push_save, processor))
    drawn = {name: partial(draw, run.model, data, decoder, processor) for name, draw in (pictures or {}).items()}
    drawn |= {name: partial(save_curves, run.history, *curve) for name, curve in (curves or {}).items()}
    finish_run(run, processor, drawn)


def count_samples(model_class, config, rows):
    """Set `config.num_samples` of a method that remembers each sample; called before the model is built."""
    if not model_class.uses_sample_indices:
        return
    if not hasattr(config, "num_samples"):
        raise InputError(f"{type(config).__name__} lacks num_samples: int = 0, which uses_sample_indices asks for.")
    if not hasattr(rows, "__len__"):
        raise InputError(
            f"{model_class.__name__} remembers each sample by its row, which a stream does not number: leave out --streaming."
        )
    if config.num_samples not in (0, len(rows)):
        raise InputError(f"num_samples={config.num_samples} does not fit the data, which have {len(rows)} rows.")
    config.num_samples = len(rows)


def set_image_size(config, size):
    """Set `config.image_size` of a method that makes images of one size; called before the model is built."""
    if not hasattr(config, "image_size"):
        return
    if config.image_size not in (None, size):
        raise InputError(
            f"image_size {size} does not fit the model, which has {config.image_size}: leave out --image_size, or begin from the "
            "encoder of its release."
        )
    config.image_size = size
    checked(config.validate)


__all__ = [
    "Preset",
    "count_samples",
    "pretrain",
    "pretrain_images",
    "pretrain_pairs",
    "pretrain_with_labels",
    "pretrain_words",
    "set_image_size",
]
