"""How good each stage of a frozen image encoder is: kNN and a linear probe on its map, averaged to about one width for all.

The tables of conv1 to conv5 of Zhang et al. 2016, https://arxiv.org/abs/1611.09842, and of DeepCluster, Caron et al. 2018,
https://arxiv.org/abs/1807.05520 (https://github.com/facebookresearch/deepcluster, eval_linear.py), for any network. Deviations:
those of `linear_probe`, and the images are seen once, not in ten crops.
"""

from dataclasses import dataclass, field

from ..encoders.images import PixelEncoder
from ..encoders.stages import WIDTH, stage_encoder
from ..features import extract
from ..plots import draw_all, save_layers
from ..processes import process_state
from ..results import ROWS, Metric, percent
from ..sources import Splits
from .knn import knn_predict
from .linear_probe import linear_probe

EPOCHS = 35  # RotNet's of its probes of each layer (https://github.com/gidariss/FeatureLearningRotNet)
LEARNING_RATES = (0.01, 0.001)  # DeepCluster's 0.01; of the lower rates of linear_probe, since the features are wide
WEIGHT_DECAYS = (1e-4, 1e-2)  # DeepCluster's 1e-4; more, since the rows are few
PROBE = {"epochs": EPOCHS, "learning_rates": LEARNING_RATES, "weight_decays": WEIGHT_DECAYS}
SETTINGS = {
    "stages": "each of transformers' hidden_states; 0 is the stem or the embeddings, where a network tells them",
    "feature": "the stage's map, averaged over a square grid; of tokens those of the patches, class and registers left out",
    "width": f"as close as a grid comes to {WIDTH}, or to the numbers of the smallest map",
    "knn": "as knn",
    "linear_probe": "as linear_probe",
} | PROBE
NAMES = {"knn": "k-nearest-neighbour accuracy", "linear_probe": "linear probe accuracy"}


@dataclass
class LayerProbe:
    """The protocol `layer_probe`, as run.py describes. Columns: knn_stage0, linear_probe_stage0, knn_stage1 ..."""

    data: Splits
    METRICS: dict = field(default_factory=dict)  # those of the stages that were found
    SETTINGS = SETTINGS

    def run(self, encoders, source, output_dir):
        encoders = {row: each for row, each in encoders.items() if not isinstance(each, PixelEncoder)}
        found = {row: self._probe(row, encoder, source) for row, encoder in encoders.items()}
        if output_dir is not None:
            draw_all(output_dir, {"layers": lambda path: save_layers(path, _curves(found))})
        return found

    def _probe(self, row, encoder, source):
        """{column: percent}; {} but on the main process. The features are gone before another encoder's are made."""
        data, staged = self.data, stage_encoder(encoder)
        self.METRICS = _metrics(staged.shapes)
        train, test = (
            extract(staged, split, data.columns, data.label_column, description=f"{ROWS[row]}, stages, {name}")
            for name, split in (("train", data.train), ("test", data.test))
        )  # (M, D1 + D2 + ...)
        if not process_state().is_main_process:
            return {}
        if row == "pretrained":
            source.found |= data.counts(encoder, train, test)
            data.warn(*(part._replace(features=part.features[:, -staged.widths[-1] :]) for part in (train, test)))
        return _score_stages(train, test, staged.widths, data.classes(train, test), source.seed)


def _score_stages(train, test, widths, classes, seed):
    """{column: percent}. train, test: Features, of all stages side by side."""
    found = {}
    pairs = zip(train.features.split(widths, 1), test.features.split(widths, 1), strict=True)  # (M, D) each, no copies
    for stage, (train_features, test_features) in enumerate(pairs):
        predicted = knn_predict(train_features, train.labels, test_features, classes=classes)
        found[f"knn_stage{stage}"] = percent((predicted == test.labels).float().mean().item())
        probe = linear_probe(train_features, train.labels, test_features, test.labels, classes, seed=seed, **PROBE)
        found[f"linear_probe_stage{stage}"] = percent(probe.accuracy)
    return found


def _metrics(shapes):
    """{column: Metric}: a table for each protocol, a column for each stage, under its pooled shape."""
    metrics = {}
    for stage, shape in enumerate(shapes):
        pooled = " x ".join(map(str, shape))
        for protocol, name in NAMES.items():
            metrics[f"{protocol}_stage{stage}"] = Metric(
                f"{name} of stage {stage} ({pooled})", title=f"stage {stage} ({pooled})", table=f"{name} by stage"
            )
    return metrics


def _curves(found):
    """{name of the score: {row: [percent of each stage]}}."""
    return {
        name: {
            row: [value for column, value in numbers.items() if column.startswith(f"{protocol}_stage")]
            for row, numbers in found.items()
        }
        for protocol, name in NAMES.items()
    }


__all__ = ["LEARNING_RATES", "SETTINGS", "WEIGHT_DECAYS", "LayerProbe"]
