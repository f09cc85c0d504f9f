"""A t-SNE map of the features of the gallery: what a point is shows where the mouse is, and larger where it clicks."""

from functools import cache, partial
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from ..evaluation.plots import tsne
from .media import address, friendly, picture, shortened, sound

TITLE = "Map"
THUMBNAIL, SPRITE_COLUMNS = (
    56,
    50,
)  # pixels of an image on the map, images in a row of the picture that holds all of them
MOST_ROWS = 1000  # of the gallery that are drawn: t-SNE takes seconds for each thousand
MOST_CLASSES = 40  # that are told apart by colour and named
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
ENLARGED = {"image": partial(gr.Image, height=280), "text": partial(gr.Textbox, lines=4), "audio": gr.Audio}
STYLE = """
.frame { position: relative; max-width: 900px; margin: auto; }
svg { width: 100%; height: auto; touch-action: pan-y; display: block; }
circle { stroke: transparent; stroke-width: 6px; cursor: pointer; }
circle.here { stroke: var(--body-text-color); stroke-width: 2px; }
.tip { position: absolute; pointer-events: none; display: none; max-width: 260px; padding: 6px; z-index: 10;
  background: var(--background-fill-primary); color: var(--body-text-color); font-size: 13px;
  border: 1px solid var(--border-color-primary); border-radius: 6px; box-shadow: 0 2px 8px rgba(0, 0, 0, 0.25); }
.tip .thumbnail { transform-origin: 0 0; image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; justify-content: center; font-size: 13px; }
.legend span::before { content: "●"; color: var(--dot); margin-right: 4px; }
"""
TEMPLATE = (
    '<div class="frame"><svg viewBox="-10 -10 1020 720"></svg><div class="tip"></div></div><div class="legend"></div>'
)


def fits(release):
    return True


def points(gallery):
    """What the map draws: rows of the gallery, and for each a place (x, y) in 1000 x 700, a class number, a caption, and a
    thumbnail or a text; the names of the classes and their colours."""
    rows = np.linspace(0, len(gallery) - 1, min(MOST_ROWS, len(gallery))).astype(int).tolist()
    places = tsne(gallery.features[rows])
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-9) * (1000, 700)
    labels = [gallery.labels[row] for row in rows]
    names = sorted(set(labels))
    coloured = 1 < len(names) <= MOST_CLASSES
    hues = [f"hsl({360 * i / len(names):.0f} 70% {(45, 60)[i % 2]}%)" for i in range(len(names))]
    drawn = {
        "rows": rows,
        "places": places.round(1).tolist(),
        "classes": [names.index(label) if coloured else 0 for label in labels],
        "names": names if coloured else [],
        "colours": hues if coloured else ["var(--primary-500)"],
        "captions": [gallery.captions[row] for row in rows],
    }
    if gallery.encoder.kind == "image":
        drawn |= {"thumbnails": thumbnails(gallery, rows), "side": THUMBNAIL, "columns": SPRITE_COLUMNS}
    if gallery.encoder.kind == "text":
        drawn["texts"] = [shortened(gallery.item(row), 200) for row in rows]
    return drawn


def thumbnails(gallery, rows):
    """The images of rows in one picture, as a data address."""
    lines = -(-len(rows) // SPRITE_COLUMNS)
    sheet = Image.new("RGB", (SPRITE_COLUMNS * THUMBNAIL, lines * THUMBNAIL), "white")
    for number, row in enumerate(rows):
        image = picture(gallery.item(row), THUMBNAIL).convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        line, column = divmod(number, SPRITE_COLUMNS)
        sheet.paste(image, (column * THUMBNAIL, line * THUMBNAIL))
    return address(sheet, "webp", quality=80)


def chosen(gallery, row):
    """What a click on a row shows: a picture, a text, or a recording."""
    kind = gallery.encoder.kind
    label = gallery.captions[row] or f"row {row}"
    if kind == "image":
        return gr.Image(picture(gallery.item(row)), label=label, visible=True)
    if kind == "text":
        return gr.Textbox(gallery.item(row), label=label, visible=True)
    return gr.Audio(sound(gallery, row), label=label, visible=True, autoplay=True)


def build(release):
    gallery, kind = release.gallery, release.encoder.kind
    draw = cache(partial(points, gallery))  # once for all visitors

    def opened(is_drawn):
        return (gr.skip() if is_drawn else draw()), True

    def clicked(event: gr.EventData):
        return chosen(gallery, event.row)

    with gr.Tab(TITLE) as tab:
        drawn = f"{min(MOST_ROWS, len(gallery)):,} {gallery.noun}s"
        gr.Markdown(f"{drawn} by t-SNE of their features: similar ones lie together. Click to enlarge.")
        plot = gr.HTML(html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, min_height=320, elem_id="map")
        enlarged = ENLARGED[kind](interactive=False, visible=False)
        is_drawn = gr.State(False)
    tab.select(friendly(opened), is_drawn, [plot, is_drawn], api_visibility="private")
    plot.click(friendly(clicked), None, enlarged, api_visibility="private")
