"""Pictures of images for the card: reconstructions, views, nearest neighbours of images and of patches, captions."""

import torch

from .encoders.images import decode_rows, spread_images
from .plots import pyplot, save
from .protocols.knn import nearest
from .protocols.low_label import balanced_subset

QUERIES, NEIGHBOURS = 8, 10
RIGHT, WRONG = "#2e9e4f", "#d0342c"
QUERY, FRAME = "#1f5fa8", "#bbbbbb"
# of the picture of patches: a cell in inches; as parts of a cell, the gap between encoders, the margin and the line of titles
CELL, GAP, MARGIN, HEAD = 0.62, 0.35, 0.05, 0.45


def save_reconstructions(model, rows, decoder, processor, path, count=8):
    """For methods with `reconstruct`: original, masked and reconstructed, `count` rows under a fixed mask."""
    images = list(spread_images(rows, decoder.column, decoder.channels, count).values())
    inputs = processor(images, return_tensors="pt", input_data_format="channels_first")
    pixel_values = inputs.pixel_values.to(model.device)
    noise = torch.rand(len(images), model.grid**2, generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        mask = model(pixel_values, noise=noise).mask
    batches = (pixel_values, *model.reconstruct(pixel_values, mask))
    batches = [to_uint8(batch, processor.image_mean, processor.image_std) for batch in batches]
    _save_lines(path, ("original", "masked", "reconstructed"), batches)


def save_views(model, rows, decoder, processor, path, count=8):
    """For methods that compare views: `count` rows, and two views of each below it."""
    images = list(spread_images(rows, decoder.column, decoder.channels, count).values())
    batch = decoder.view(**decoder.collate(list(images), torch.arange(len(images))))
    views = [to_uint8(batch[name], decoder.view.mean, decoder.view.std) for name in ("pixel_values", "pixel_values_2")]
    _save_lines(path, ("original", "view 1", "view 2"), [images, *views])


def save_pretext(model, rows, decoder, processor, path, count=8):
    """For methods with `pretext_lines`: their task on `count` rows, with the frame green where the model is right."""
    images = spread_images(rows, decoder.column, decoder.channels, count)
    inputs = processor(list(images.values()), return_tensors="pt", input_data_format="channels_first")
    numbers = torch.tensor(list(images), device=model.device)
    lines = model.eval().pretext_lines(
        inputs.pixel_values.to(model.device),
        sample_indices=numbers,
        sample_seeds=torch.arange(len(images)).to(numbers),
    )
    pictures = [to_uint8(line.images, processor.image_mean, processor.image_std) for line in lines]
    colours = [
        line.right if line.right is None else [RIGHT if each else WRONG for each in line.right.tolist()]
        for line in lines
    ]
    _save_lines(path, [line.name for line in lines], pictures, colours, [line.captions for line in lines])


def save_clusters(model, rows, decoder, processor, path, clusters=8, count=8):
    """For methods with `nearest_rows`: a line for each of some clusters, its size and the images nearest to its centre."""
    found = [(size, nearest) for size, nearest in model.nearest_rows(clusters, count) if nearest]
    width = max(len(nearest) for _, nearest in found)
    lines = [decode_rows(rows, decoder.column, decoder.channels, nearest) for _, nearest in found]
    blank = torch.full((1, 1, 1), 255, dtype=torch.uint8)
    lines = [[blank if image is None else image for image in line] + [blank] * (width - len(line)) for line in lines]
    _save_lines(path, [str(size) for size, _ in found], lines)


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


def save_patch_neighbours(path, queries, groups):
    """A line a query: the image that it is from, the patch, and, for each encoder, its nearest patches of other images.

    queries: Q triples (image, uint8 (C, H, W); (top, left, side) of the patch; patch, uint8 (C, s, s)). groups: {title: Q lists
    of patches, as many for each}.
    """
    lines, place, heads = len(queries), 2, [(0, 2, "query")]
    for title, found in groups.items():
        place += GAP
        heads.append((place, len(found[0]), title))
        place += len(found[0])
    plt = pyplot()
    figure = plt.figure(figsize=(CELL * (place + 0.1), CELL * (lines + HEAD)))
    axis = figure.add_axes((0, 0, 1, 1))  # one for all: an axis a patch takes seconds
    axis.set(xlim=(-0.05, place + 0.05), ylim=(lines, -HEAD))
    axis.axis("off")
    for number, (image, (top, left, side), patch) in enumerate(queries):
        height, width = image.shape[1:]
        scale = (1 - 2 * MARGIN) / max(height, width)  # cells a pixel
        x, y = 0.5 - width * scale / 2, number + 0.5 - height * scale / 2
        _place(axis, image, x, y, width * scale, height * scale, FRAME)
        box = (x + left * scale, y + top * scale), side * scale, side * scale
        axis.add_patch(plt.Rectangle(*box, fill=False, color=QUERY, linewidth=1.5))
        cells = [(1, patch, QUERY)]
        for (start, _, _), found in zip(heads[1:], groups.values(), strict=True):
            cells += [(start + i, each, FRAME) for i, each in enumerate(found[number])]
        for x, each, colour in cells:
            _place(axis, each, x + MARGIN, number + MARGIN, 1 - 2 * MARGIN, 1 - 2 * MARGIN, colour)
    for x, count, title in heads:
        fits = int(CELL * count / 0.085)  # letters of that size
        title = title if len(title) <= fits else f"{title[: fits - 3]}..."
        axis.text(x + MARGIN, -0.12, title, fontsize=9, va="bottom")
    save(figure, path, dpi=120)


def _place(axis, image, x, y, width, height, colour):
    """A uint8 image (C, H, W) with a frame, from its upper left corner, on an axis whose y grows downwards."""
    style = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest", "aspect": "auto"}
    axis.imshow(_pixels(image), extent=(x, x + width, y + height, y), **style)
    axis.add_patch(pyplot().Rectangle((x, y), width, height, fill=False, color=colour, linewidth=2))


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
        _show(picture, image, FRAME)
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


def to_uint8(pixel_values, mean, std):
    """Images as they were before they were normalised by `mean` and `std`, a number a channel: (N, C, H, W) uint8."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))
    return (pixel_values.cpu() * std + mean).clamp(0, 1).mul(255).byte()


def _save_lines(path, names, lines, colours=None, captions=None):
    """Lines of pictures, uint8 (C, H, W) each, one below the other with its name at the left.

    colours, captions: for each line those of its pictures' frames, and what stands below them, or None.
    """
    nothing = [None] * len(lines)
    size = (len(lines[0]), 3.2 * len(lines) / 3 + 0.15 * any(captions or ()))
    figure, axes = pyplot().subplots(len(lines), len(lines[0]), figsize=size, squeeze=False)
    for line_axes, name, line, frames, texts in zip(
        axes, names, lines, colours or nothing, captions or nothing, strict=True
    ):
        line_axes[0].set_ylabel(name)
        for axis, image, frame, text in zip(
            line_axes, line, frames or ["white"] * len(line), texts or [""] * len(line), strict=True
        ):
            _show(axis, image, frame)
            axis.set_xlabel(text, fontsize=7, labelpad=2)
    save(figure, path, bbox_inches="tight")


def _pixels(image):
    """A uint8 image (C, H, W) as matplotlib takes it: (H, W, 3), or (H, W) of fewer than three channels."""
    pixels = image.permute(1, 2, 0).numpy()
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]


def _show(axis, image, colour):
    axis.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
    axis.set_xticks([]), axis.set_yticks([])
    for side in axis.spines.values():
        side.set(color=colour, linewidth=2.5)


__all__ = [
    "choose_queries",
    "neighbour_rows",
    "save_captions",
    "save_neighbours",
    "save_patch_neighbours",
    "save_pretext",
    "save_reconstructions",
    "save_views",
    "to_uint8",
]
