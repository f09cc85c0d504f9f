"""Pictures for the card: loss, reconstructions, views, nearest neighbours and t-SNE. matplotlib and scikit-learn are
imported when one is drawn."""

import logging
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .encoders.images import first_images
from .protocols.knn import nearest
from .protocols.low_label import balanced_subset

logger = logging.getLogger(__name__)
QUERIES, NEIGHBOURS = 8, 10
TSNE_POINTS, TSNE_PCA, PERPLEXITY = 2000, 50, 30.0  # 50 dimensions and perplexity 30: van der Maaten and Hinton 2008
RIGHT, WRONG = "#2e9e4f", "#d0342c"


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


def save_loss(history, path):
    """The loss over the steps. history: the log entries of a run; nothing is drawn if there are none."""
    if not history:
        return
    figure, axis = pyplot().subplots(figsize=(6, 3.5))
    marker = "o" if len(history) < 10 else None  # a line through one point is none
    axis.plot([entry["step"] for entry in history], [entry["loss"] for entry in history], marker=marker)
    axis.set(xlabel="step", ylabel="loss")
    axis.grid(alpha=0.3)
    save(figure, path, bbox_inches="tight")


def save_reconstructions(model, rows, decoder, processor, path, count=8):
    """For methods with `reconstruct`: original, masked and reconstructed, the first `count` rows under a fixed mask."""
    images = first_images(rows, decoder.column, decoder.channels, count)
    inputs = processor(images, return_tensors="pt", input_data_format="channels_first")
    pixel_values = inputs.pixel_values.to(model.device)
    noise = torch.rand(len(images), model.grid**2, generator=torch.Generator().manual_seed(0)).to(model.device)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
    batches = (pixel_values, *model.reconstruct(pixel_values, noise=noise))
    batches = [_to_uint8(batch, mean, std) for batch in batches]
    _save_lines(path, ("original", "masked", "reconstructed"), batches)


def save_views(model, rows, decoder, processor, path, count=8):
    """For methods that compare views: the first `count` rows, and two views of each below it."""
    images = first_images(rows, decoder.column, decoder.channels, count)
    batch = decoder.view(**decoder.collate(list(images), torch.arange(len(images))))
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (decoder.view.mean, decoder.view.std))
    views = [_to_uint8(batch[name], mean, std) for name in ("pixel_values", "pixel_values_2")]
    _save_lines(path, ("original", "view 1", "view 2"), [images, *views])


def choose_queries(labels, seed, queries=QUERIES):
    """Positions of the queries, one class after the other."""
    generator = torch.Generator().manual_seed(seed)
    present = labels.unique()
    present = present[torch.randperm(len(present), generator=generator)[:queries]]
    rows = balanced_subset(labels, 0.0, seed)  # one of each class
    rows = rows[torch.isin(labels[rows], present)]
    return rows[labels[rows].argsort()]


def neighbour_rows(train_features, test_features, queries, device=None):
    """The NEIGHBOURS nearest training rows of each query, (Q, NEIGHBOURS)."""
    return nearest(train_features, test_features[queries], NEIGHBOURS, device=device)[1]


def save_neighbours(path, query_images, query_labels, neighbour_images, neighbour_labels, names=None):
    """Query at the left, its nearest training images at the right, framed green if they are of its class, red if not.

    query_images: Q uint8 (C, H, W), neighbour_images: Q lists of them. query_labels: (Q,), neighbour_labels: (Q, n).
    """
    plt = pyplot()
    rows, columns = len(query_images), len(neighbour_images[0]) + 1
    widths = [1] + [0.25] + [1] * (columns - 1)  # a gap after the query
    size = (0.72 * (columns + 0.25) + 1.0, 0.76 * rows + 0.35)
    figure, axes = plt.subplots(rows, columns + 1, figsize=size, squeeze=False, width_ratios=widths)
    for row in range(rows):
        axes[row, 1].axis("off")
        _show(axes[row, 0], query_images[row], "black")
        label = int(query_labels[row])
        axes[row, 0].set_ylabel(names[label] if names else str(label), rotation=0, ha="right", va="center", fontsize=8)
        for axis, image, found in zip(axes[row, 2:], neighbour_images[row], neighbour_labels[row], strict=True):
            _show(axis, image, RIGHT if int(found) == label else WRONG)
    axes[0, 0].set_title("query", fontsize=8)
    axes[0, 2].set_title("nearest training images, nearest first", fontsize=8, loc="left")
    left = 1.1 / figure.get_figwidth()
    figure.subplots_adjust(left=left, right=0.99, top=0.93, bottom=0.02, wspace=0.08, hspace=0.08)
    save(figure, path)


def save_tsne(path, features, labels, names=None, seed=0, kind="image"):
    """t-SNE of at most TSNE_POINTS rows, drawn at random, coloured by class."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    plt = pyplot()
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:TSNE_POINTS]
    points, classes = features[rows].numpy(), labels[rows].numpy()
    if len(points) < 3:
        raise InputError(f"t-SNE needs at least 3 rows, found {len(points)}")
    if points.shape[1] > TSNE_PCA and len(points) > TSNE_PCA:
        points = PCA(TSNE_PCA, random_state=seed).fit_transform(points)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    points = TSNE(
        2, perplexity=perplexity, init="pca" if points.shape[1] > 1 else "random", random_state=seed
    ).fit_transform(points)

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


def save_captions(path, images, captions, letters=40):
    """Each image, uint8 (C, H, W), with texts beside it: captions[i] is a list of (rank from 0, text, cosine, whether it is
    right)."""
    columns, lines = 2, -(-len(images) // 2)
    size = (10, 1.3 * lines + 0.3)
    figure, axes = pyplot().subplots(lines, 2 * columns, figsize=size, squeeze=False, width_ratios=[1, 2.9] * columns)
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, texts) in enumerate(zip(images, captions, strict=True)):
        picture, beside = axes[i % lines, 2 * (i // lines) :][:2]
        picture.axis("on")
        _show(picture, image, "#bbbbbb")
        for place, (rank, text, cosine, right) in enumerate(texts):
            text = " ".join(text.split())
            text = text if len(text) <= letters else f"{text[: letters - 3]}..."
            style = {"color": RIGHT, "weight": "bold"} if right else {"color": "black"}
            style |= {"fontsize": 9, "va": "center", "transform": beside.transAxes}
            height = 1 - (place + 0.5) / max(6, len(texts))
            beside.text(0.11, height, f"{rank + 1}", ha="right", **style)
            beside.text(0.14, height, f"{cosine:.2f}  {text}", **style)
    title = "test images and the texts that the model ranks highest, with their cosines; the right one is green"
    figure.suptitle(title, fontsize=9, x=0.01, y=0.995, ha="left")
    top = 1 - 0.3 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, top=top, bottom=0.01, wspace=0.02, hspace=0.12)
    save(figure, path)


def pyplot():
    """matplotlib, as all pictures are drawn: to files only, since there may be no display, and with `$` as a letter, which
    in names of classes and in words is no beginning of a formula."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    import matplotlib.pyplot as plt

    return plt


def _to_uint8(pixel_values, mean, std):
    return (pixel_values.cpu() * std + mean).clamp(0, 1).mul(255).byte()


def _save_lines(path, names, lines):
    """Lines of pictures, uint8 (C, H, W) each, one below the other with its name at the left."""
    figure, axes = pyplot().subplots(len(lines), len(lines[0]), figsize=(len(lines[0]), 3.2), squeeze=False)
    for line_axes, name, line in zip(axes, names, lines, strict=True):
        line_axes[0].set_ylabel(name)
        for axis, image in zip(line_axes, line, strict=True):
            _show(axis, image, "white")
    save(figure, path, bbox_inches="tight")


def _show(axis, image, colour):
    pixels = image.permute(1, 2, 0).numpy()
    pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
    axis.set_xticks([]), axis.set_yticks([])
    for side in axis.spines.values():
        side.set(color=colour, linewidth=2.5)


def save(figure, path, dpi=100, **arguments):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, **arguments)
    pyplot().close(figure)


__all__ = [
    "choose_queries",
    "draw_all",
    "neighbour_rows",
    "pyplot",
    "save",
    "save_captions",
    "save_loss",
    "save_neighbours",
    "save_reconstructions",
    "save_tsne",
    "save_views",
]
