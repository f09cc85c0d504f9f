"""How well a method solves its own task on images that training has not seen: what its `forward` measures, in eval mode.

Images are seen as in any evaluation, whole and without augmentation. Beside it stands the same model at random
initialisation, and, among the method's metrics, chance.
"""

import inspect
from dataclasses import dataclass, fields

import torch
from transformers import AutoModelForPreTraining

from ...data.images import image_rows
from ...errors import InputError
from ...methods._random import fold_in, seed_from
from ..encoders.images import ImageEncoder
from ..encoders.loading import GREY, SSL_METHODS, load_weights, locate, pretraining_config
from ..features import extract
from ..processes import process_state
from ..results import ROWS, Metric, percent

FRACTIONS = ("accuracy", "chance", "tiles_right")  # metrics that are told in percent
TABLE = "the task on test images"
SETTINGS = {"view": "whole images, not augmented", "draws": "of each image, from its pixels and the seed"}


@dataclass
class TaskEncoder(ImageEncoder):
    """Its features, (N, M), are loss and metrics of the method's forward, those of the batch for each image of it."""

    seed: int = 0
    names: tuple = ()
    batch_size = 128

    def __call__(self, pixel_values):
        pixels = [
            int(total) for total in (pixel_values.double().sum((1, 2, 3)) * 1e6).tolist()
        ]  # the same in any batch
        if self.model.config.backbone_config.num_channels == 1:
            pixel_values = (pixel_values * pixel_values.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
        seeds = fold_in(torch.tensor(pixels, device=pixel_values.device), seed_from(self.seed))
        rows = {"sample_indices": seeds} if self.model.uses_sample_indices else {}  # which image is which, no more
        output = self.model(pixel_values, sample_seeds=seeds, **rows)
        metrics = {"loss": output.loss} | (output.metrics or {})
        metrics = {name: value.float() for name, value in metrics.items() if value.ndim == 0}
        self.names = tuple(metrics)
        return torch.stack(list(metrics.values())).expand(len(pixel_values), -1)


class Pretext:
    """The protocol `pretext`, as run.py describes. Columns: pretext_loss, pretext_accuracy ..."""

    SETTINGS = SETTINGS

    def __init__(self):
        self.METRICS = {}

    def run(self, encoders, source, output_dir):
        encoder = encoders["pretrained"]
        test, column = image_rows(source.drawn(source.test_rows()), *source.columns)
        source.found["image_column"] = column
        found = {}
        for row, model in self._models(encoder, source.seed, "random_initialisation" in encoders).items():
            known = {each.name: getattr(encoder, each.name) for each in fields(ImageEncoder)} | {"model": model}
            task = TaskEncoder(**known, seed=source.seed)
            measured = extract(task, test, (column,), description=f"{ROWS[row]}, the task", labelled=False)
            if not process_state().is_main_process:
                continue
            means = dict(zip(task.names, measured.features.double().mean(0).tolist(), strict=True))
            found[row] = {f"pretext_{name}": _told(name, value) for name, value in means.items()}
            self.METRICS = {f"pretext_{name}": _metric(name) for name in means}
        return found

    def _models(self, encoder, seed, baseline):
        """{row: the whole model of a release}. Raises InputError for what has none, or cannot be asked about new images."""
        repo, _ = locate(encoder.name)
        config = pretraining_config(repo, "pretraining", encoder.revision)
        if config is None:
            raise InputError(
                f"'{encoder.name}' has no pretraining/config.json: pretext asks the whole model of a release of ours."
            )
        method = SSL_METHODS[config.model_type]
        check_task(method, config, encoder.name)
        where = {"subfolder": "pretraining", "revision": encoder.revision, "dtype": torch.float32}
        pretrained, _ = load_weights(AutoModelForPreTraining, repo, **where)
        models = {"pretrained": pretrained.eval()}
        if baseline:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                models = {"random_initialisation": method(config).float().eval()} | models
        return models


def check_task(method, config, name):
    """Raise InputError, in one sentence, if the method's task asks for more than images that it has not seen."""
    wanted = inspect.signature(method.forward).parameters.values()
    wanted = [each.name for each in wanted if each.default is each.empty and each.kind is not each.VAR_KEYWORD][1:]
    if method.uses_sample_indices and _has_a_weight_for_each_row(method, config):
        raise InputError(
            f"pretext: the classes of '{name}' are the rows it was trained on, which test images are not."
        )
    if [each for each in wanted if each != "sample_indices"] != ["pixel_values"]:
        raise InputError(
            f"pretext: '{name}' compares {', '.join(wanted)}: expected a method that sees an image at a time."
        )


def _has_a_weight_for_each_row(method, config):
    def shapes(count):
        model = method(type(config).from_dict({**config.to_dict(), "num_samples": count}))
        return {name: each.shape for name, each in model.state_dict().items()}

    with torch.device("meta"):
        return shapes(2) != shapes(3)


def _told(name, value):
    return percent(value) if name in FRACTIONS else round(value, 4)


def _metric(name):
    title = name.replace("_", " ")
    if name in FRACTIONS:
        return Metric(f"{title} in the pretext task", title=title, table=TABLE)
    return Metric(f"{title} of the pretext task", kind=name, unit="", digits=4, title=title, table=TABLE)


__all__ = ["SETTINGS", "Pretext", "check_task"]
