"""Curves, maps and comparisons for cards and README, and how every picture is drawn and saved. matplotlib and scikit-learn are
imported when one is drawn."""

import json
import logging
import textwrap
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .comparison import mean
from .results import Metric, column_title, in_order, row_title

logger = logging.getLogger(__name__)
TSNE_POINTS, TSNE_PCA, PERPLEXITY = 2000, 50, 30.0  # 50 dimensions and perplexity 30: van der Maaten and Hinton 2008
MAP_WORDS, FEWEST_ON_MAP = 150, 8  # words of the map
SIDES = (  # where a label goes: offset in points and alignment
    (3, 0, "left", "center"), (-3, 0, "right", "center"), (0, 3, "center", "bottom"), (0, -3, "center", "top"),
    (2, 2, "left", "bottom"), (2, -2, "left", "top"), (-2, 2, "right", "bottom"), (-2, -2, "right", "top"),
)  # fmt: skip
MOST_COLUMNS = 4  # of a comparison, beside the time
PRETRAINED, RANDOM, REFERENCE = "#1f5fa8", "#8a8a8a", "#333333"
LINES = {
    "supervised": ":",
    "chance": "-.",
    "unigrams": (0, (5, 1, 1, 1, 1, 1)),
}  # of rows that are neither; others are dashed


def draw_all(folder, drawings):
    """Save {name: function of a path} as images/<name>.png in `folder`. A picture that cannot be drawn is named in the log:
    none is worth the numbers or the weights that it stands beside."""
    for name, draw in drawings.items():
        path = Path(folder) / "images" / f"{name}.png"
        try:
            draw(path)
        except Exception as error:
            path.unlink(missing_ok=True)
            logger.warning(
                "The picture '%s' could not be drawn: %s.", name, str(error).strip().rstrip(".").split("\n")[0]
            )


def pyplot():
    """matplotlib, as all pictures are drawn: to files only, since there may be no display, and with `$` as a letter, which
    in names of classes and in words is no beginning of a formula."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    import matplotlib.pyplot as plt

    return plt


def save(figure, path, dpi=100, **arguments):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, **arguments)
    pyplot().close(figure)


def save_loss(history, path):
    """The loss over the steps. history: the log entries of a run; nothing is drawn if there are none."""
    save_curves(history, {"loss": None}, "loss", path)


def save_curves(history, names, unit, path):
    """What a run logged over its steps. names: {metric: its name in the legend, None for no legend}; those that were not
    logged are left out, and without any nothing is drawn. unit: of the y axis."""
    logged = [name for name in names if any(name in entry for entry in history)]
    if not logged:
        return
    figure, axis = pyplot().subplots(figsize=(6, 3.5))
    for name in logged:
        entries = [entry for entry in history if name in entry]
        marker = "o" if len(entries) < 10 else None  # a line through one point is none
        values = [entry[name] for entry in entries]
        axis.plot([entry["step"] for entry in entries], values, marker=marker, label=names[name])
    axis.set(xlabel="step", ylabel=unit)
    axis.grid(alpha=0.3)
    if any(names[name] for name in logged):
        axis.legend()
    save(figure, path, bbox_inches="tight")


def tsne(features, seed=0):
    """Where t-SNE puts (N, D) features: (N, 2) float32, a NumPy array. Raises InputError for fewer than 3."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = features.numpy()
    if len(points) < 3:
        raise InputError(f"t-SNE needs at least 3 rows, found {len(points)}")
    if points.shape[1] > TSNE_PCA and len(points) > TSNE_PCA:
        points = PCA(TSNE_PCA, random_state=seed).fit_transform(points)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    start = "pca" if points.shape[1] > 1 else "random"
    return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(points)


def save_tsne(path, features, labels, names=None, seed=0, kind="image"):
    """t-SNE of at most TSNE_POINTS rows, drawn at random, coloured by class."""
    plt = pyplot()
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:TSNE_POINTS]
    points, classes = tsne(features[rows], seed), labels[rows].numpy()
    figure, axis = plt.subplots(figsize=(7.5, 5.5))
    present = np.unique(classes)
    colours = plt.get_cmap("tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "gist_rainbow")
    for number, label in enumerate(present):
        colour = colours(number if len(present) <= 20 else number / len(present))
        mine = points[classes == label]
        axis.scatter(*mine.T, s=6, color=colour, linewidths=0, label=names[label] if names else str(label))
    axis.set_xticks([]), axis.set_yticks([])
    axis.set_title(f"t-SNE of {len(points)} test {kind}s", fontsize=10)
    if len(present) <= 40:  # more names than that cover the picture
        columns = 1 + (len(present) - 1) // 20
        style = {"fontsize": 8, "markerscale": 2.5, "frameon": False, "ncol": columns}
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), **style)
    save(figure, path, bbox_inches="tight")


def save_word_map(path, vectors, count=MAP_WORDS, skip=50, seed=0):
    """Frequent words in two dimensions by t-SNE; the `skip` most frequent, mostly grammar, are left out. vectors: WordVectors."""
    from sklearn.manifold import TSNE

    shown = [n for n, word in enumerate(vectors.words) if len(word) > 2 and not word.isdigit()]
    skip = min(skip, max(0, len(shown) - count))
    chosen = shown[skip : skip + count]
    if len(chosen) < FEWEST_ON_MAP:
        logger.warning("There is no map of %d words.", len(chosen))
        return
    places = TSNE(
        2, perplexity=min(12, len(chosen) / 4), random_state=seed, metric="cosine", init="random"
    ).fit_transform(vectors.unit[chosen].numpy())
    figure, axis = pyplot().subplots(figsize=(12, 9), layout="tight")
    axis.scatter(*places.T, s=4)
    axis.set_axis_off()
    _label(axis, places, [vectors.words[number] for number in chosen])
    save(figure, path, dpi=110, bbox_inches="tight")


def _label(axis, places, texts):
    """A text beside each point, on the first side where it covers no other text or point; what fits nowhere is left out."""
    from matplotlib.transforms import Bbox

    axis.figure.draw_without_rendering()  # sets the layout, on which the distances in pixels depend
    points = axis.transData.transform(places)
    taken = [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in points]
    for place, text in zip(places, texts, strict=True):
        note = axis.annotate(text, place, (0, 0), textcoords="offset points", fontsize=8)
        for x, y, across, along in SIDES:
            note.set(position=(x, y), horizontalalignment=across, verticalalignment=along)
            box = note.get_window_extent()
            if not box.count_overlaps(taken):
                taken.append(box)
                break
        else:
            note.remove()


def save_layers(path, curves):
    """A panel for each score, over the stages. curves: {name of the score: {row: [percent of each stage]}}."""
    figure, axes = pyplot().subplots(
        1, len(curves), figsize=(9, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, rows) in zip(axes[0], curves.items(), strict=True):
        for row in reversed(in_order(rows)):
            stages = range(len(rows[row]))
            hollow = {"markerfacecolor": "white"} if row == "random_initialisation" else {}
            colour = {"pretrained": PRETRAINED, "random_initialisation": RANDOM}.get(row, REFERENCE)
            axis.plot(stages, rows[row], color=colour, marker="o", label=row_title(row), **hollow)
        step = 1 + len(stages) // 14  # deep networks have more stages than numbers fit
        axis.set_xticks(stages[::step])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("stage")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("%")
    lines, titles = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside upper center", ncols=len(lines), frameon=False, fontsize=9)
    save(figure, path)


def save_comparison(path, comparisons):
    """A dot plot of comparisons of one modality, as `compare` gives them, one below the other: a line a method, a column a score.

    The mean over seeds is a dot on a line from the lowest to the highest. The file also holds the comparisons as JSON, under
    Description.
    """
    shown = [_columns(comparison) for comparison in comparisons]
    heights = [1.05 + 0.36 * len(comparison["methods"]) for comparison in comparisons]
    figure = pyplot().figure(figsize=(9, sum(heights) + 0.35), layout="constrained")
    parts = figure.subfigures(len(comparisons), height_ratios=heights, squeeze=False)[:, 0]
    drawn = {}
    for part, comparison, columns in zip(parts, comparisons, shown, strict=True):
        drawn |= _draw_comparison(part, comparison, columns)
    rows = in_order(drawn)
    names, style = [row_title(row) for row in rows], {"ncols": len(rows), "frameon": False, "fontsize": 9}
    figure.legend([drawn[row] for row in rows], names, loc="outside upper center", **style)
    save(figure, path, dpi=150, metadata={"Description": json.dumps(comparisons)})


def _columns(comparison):
    """What is drawn: scores that at least two methods have, or all if there is one method; as many as fit."""
    count = {
        column: sum(column in method["results"]["pretrained"] for method in comparison["methods"])
        for column in comparison["metrics"]
    }
    least = min(2, len(comparison["methods"]))
    return [column for column, methods in count.items() if methods >= least][:MOST_COLUMNS]


def _draw_comparison(part, comparison, columns):
    """One group of runs in a SubFigure; {row: what stands for it in the legend}."""
    methods, drawn = comparison["methods"], {}
    has_time = any(method["minutes"] for method in methods)
    axes = part.subplots(1, len(columns) + has_time, sharey=True, squeeze=False)[0]
    heights = range(len(methods) - 1, -1, -1)  # the best is above
    for axis, column in zip(axes, columns, strict=False):
        metric = Metric(**comparison["metrics"][column])
        better = ", lower is better" if metric.kind == "loss" else ""
        title = column_title(column, metric).replace(":", ": ") + better
        axis.set_title(textwrap.fill(title, 100 // len(axes), break_long_words=False), fontsize=9)
        for height, method in zip(heights, methods, strict=True):
            for row, numbers in method["results"].items():
                if column in numbers:
                    drawn[row] = _draw_row(axis, row, numbers[column], height)
    if has_time:
        axes[-1].set_title("minutes", fontsize=9)
        for height, method in zip(heights, methods, strict=True):
            if method["minutes"]:
                _draw_range(axes[-1], method["minutes"], height, marker="s", markersize=5, color=REFERENCE)
        axes[-1].set_xlim(left=0)
    for axis in axes:
        axis.set_yticks(heights, [method["label"] for method in methods])
        axis.set_ylim(-0.6, len(methods) - 0.4)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "left", "right"]].set_visible(False)
    where = (
        comparison["measured_on"] or "the record does not say on which rows and with which settings it was measured"
    )
    part.supxlabel(textwrap.fill(where, 130), fontsize=8, color=REFERENCE)
    return drawn


def _draw_row(axis, row, values, height):
    if row == "pretrained":
        return _draw_range(axis, values, height, marker="o", markersize=8, color=PRETRAINED, zorder=3)
    if row == "random_initialisation":
        hollow = {"markerfacecolor": "white", "markeredgewidth": 1.5}
        return _draw_range(axis, values, height, marker="o", markersize=7, color=RANDOM, **hollow)
    ends = [height - 0.5, height + 0.5]  # those of equal lines join to one
    [line] = axis.plot([mean(values)] * 2, ends, linestyle=LINES.get(row, "--"), color=REFERENCE, linewidth=1.2)
    return line


def _draw_range(axis, values, height, color, **style):
    axis.plot([min(values), max(values)], [height, height], color=color, linewidth=2, alpha=0.6)
    [dot] = axis.plot(mean(values), height, color=color, linestyle="", **style)
    return dot


__all__ = [
    "draw_all",
    "pyplot",
    "save",
    "save_comparison",
    "save_layers",
    "save_loss",
    "save_tsne",
    "save_word_map",
    "tsne",
]
