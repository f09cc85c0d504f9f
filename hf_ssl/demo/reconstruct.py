"""For methods with `reconstruct(pixel_values, mask)` and `grid`, patches a side: what the mouse masks, the model fills in."""

from pathlib import Path

import gradio as gr
import numpy as np
import torch

from ..data import decode_image
from ..errors import InputError
from ..evaluation.encoders.images import processor_view
from ..evaluation.pictures import to_uint8
from .media import address, friendly, given, picture, upload

TITLE = "Fill in"
MASKED = 0.75  # of the patches, where they are drawn
SIDE = 448  # pixels up to which an image is enlarged
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
STYLE = """
figure { position: relative; max-width: 448px; margin: auto; user-select: none; text-align: center; }
figure div { position: relative; touch-action: none; }
img { width: 100%; display: block; margin: 0; image-rendering: pixelated; border-radius: 4px; }
.cells { position: absolute; inset: 0; display: grid; cursor: crosshair; }
.cells i { border: 1px solid rgba(128, 128, 128, 0.35); }
.cells i.masked { background: #808080; border-color: #929292; }
figcaption { height: 40px; padding-top: 6px; }
button { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 2px 12px; cursor: pointer;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
"""
CANVAS = """<figure><div><img alt="your image" draggable="false"><div class="cells"></div></div>
<figcaption><button class="random">Random mask</button> <button class="clear">Clear</button></figcaption></figure>"""
RESULT = """<figure><img src="${value}" alt="filled in"><figcaption>Filled in</figcaption></figure>"""


def fits(release):
    return hasattr(release.method, "reconstruct")


def random_mask(grid):
    """MASKED of the patches, as a list of 0 and 1, row by row."""
    order = np.random.default_rng().permutation(grid**2)
    return (order < round(MASKED * grid**2)).astype(int).tolist()


def pixels_of(release, value):
    """The evaluation view of a value such as a cell of the data holds, in the channels of the pretraining model: (1, C, H, W).
    Raises InputError if it cannot be read."""
    channels = release.pretraining.config.backbone_config.num_channels
    try:
        image = decode_image(value, channels)
    except Exception as error:
        raise InputError(f"This image cannot be read: {str(error).rstrip('.')}.") from error
    image = image.expand(release.encoder.channels, -1, -1) if channels == 1 else image  # as a release reads grey
    return release.encoder.preprocess([image])[:, :channels].cpu()


def seen(release, pixel_values):
    """The image of (1, C, H, W) normalised pixels, as PIL has it."""
    view = processor_view(release.encoder.processor, release.encoder.channels)
    channels = pixel_values.shape[1]
    return picture(to_uint8(pixel_values, view["mean"][:channels], view["std"][:channels])[0], SIDE)


def canvas(release, pixel_values, mask):
    """What the mouse paints on: the image as a data address, and the mask that is painted."""
    grid = release.pretraining.grid
    return {"image": address(seen(release, pixel_values)), "grid": grid, "mask": mask, "masked": MASKED}


def fill_in(release, pixel_values, mask):
    """The image with its masked patches filled in. mask: a list of 0 and 1, row by row."""
    model = release.pretraining
    mask = torch.tensor([mask], device=model.device)
    return seen(release, model.reconstruct(pixel_values.to(model.device), mask)[1])


def build(release):
    gallery = release.gallery
    [column] = gallery.data.column_names

    def paint(pixel_values, painted):
        return address(fill_in(release, pixel_values, painted["mask"]))

    def start(value):
        pixel_values = pixels_of(release, value)
        painted = canvas(release, pixel_values, random_mask(release.pretraining.grid))
        return pixel_values, painted, paint(pixel_values, painted)

    def another():
        return start(gallery.data[int(np.random.default_rng().integers(len(gallery)))][column])

    first = start(gallery.data[0][column])
    with gr.Tab(TITLE):
        gr.Markdown(
            "Drag over patches to mask them, or to show them again. The model sees the others and fills in the rest."
        )
        pixels = gr.State(first[0])
        with gr.Row():
            with gr.Column(min_width=280):
                painted = gr.HTML(
                    first[1], html_template=CANVAS, css_template=STYLE, js_on_load=SCRIPT, elem_id="patches"
                )
            with gr.Column(min_width=280):
                filled = gr.HTML(first[2], html_template=RESULT, css_template=STYLE, js_on_load=None, elem_id="filled")
        other = gr.Button("Another image")
        image = upload("image", "Your image")
    everything = [pixels, painted, filled]
    painted.input(
        friendly(paint), [pixels, painted], filled, api_visibility="private", show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip
    other.click(friendly(another), None, everything, api_visibility="private")
    image.upload(friendly(lambda path: start(given("image", path))), image, everything, api_visibility="private")
