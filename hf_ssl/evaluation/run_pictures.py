"""Pictures of a run: its loss, and what the model makes of images."""

from itertools import islice

import torch


def loss_curve(history, path):
    """The loss over the steps, from the log entries of a run."""
    figure, axes = _subplots(figsize=(6, 3.5))
    axes.plot([entry["step"] for entry in history], [entry["loss"] for entry in history])
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def reconstructions(model, rows, decoder, processor, path, count=8):
    """Three lines of images, original, masked and reconstructed: the first `count` rows, one fixed mask each."""
    images = [decoder.decode(row) for row in islice(rows, count)]
    pixel_values = processor(images, return_tensors="pt").pixel_values.to(model.device)
    noise = torch.rand(len(images), model.grid**2, generator=torch.Generator().manual_seed(0)).to(model.device)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (processor.image_mean, processor.image_std))
    masked, reconstructed = model.reconstruct(pixel_values, noise=noise)
    figure, axes = _subplots(3, count, figsize=(count, 3.2))
    for line, name, batch in zip(axes, ("original", "masked", "reconstructed"), (pixel_values, masked, reconstructed), strict=True):
        line[0].set_ylabel(name)
        for cell, pixels in zip(line, (batch.cpu() * std + mean).clamp(0, 1), strict=True):
            cell.imshow(pixels[:3].permute(1, 2, 0) if len(pixels) >= 3 else pixels[0], cmap="gray", interpolation="nearest")
            cell.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100, bbox_inches="tight")


def _subplots(*arguments, **options):
    """matplotlib takes a second to import, and most programs draw nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(*arguments, **options)
    pyplot.close(figure)  # out of pyplot's list; the figure itself stays
    return figure, axes
