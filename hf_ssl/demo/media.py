"""How each kind of row is asked for and shown: images, texts, recordings."""

import base64
import io
from functools import wraps
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from ..errors import InputError
from .release import NOUNS

NEIGHBOURS = {"image": 10, "text": 6, "audio": 5}  # that are shown
SMALL, LETTERS = 224, 400  # pixels up to which images are enlarged; of a text that are shown
IMAGES = """{{#each value}}
<figure><img src="{{this.image}}" alt="{{this.caption}}"><figcaption>{{this.caption}}</figcaption></figure>
{{/each}}"""
IMAGES_STYLE = """
display: grid; grid-template-columns: repeat(auto-fill, minmax(max(92px, 17%), 1fr)); gap: 12px;
figure { margin: 0; font-size: 13px; line-height: 1.3; text-align: center; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0; border-radius: 4px; image-rendering: pixelated; }
"""
TABLE = """{{#if value}}<table><tr>%s</tr>
{{#each value}}<tr>{{#each this}}<td>{{this}}</td>{{/each}}</tr>{{/each}}</table>{{/if}}"""
TABLE_STYLE = """
table { width: 100%; margin: 0; border-collapse: collapse; font-size: 14px; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top; border: none; overflow-wrap: anywhere; }
tr:nth-child(even) { background: var(--table-even-background-fill); }
td:nth-child(1), th:nth-child(1) { white-space: nowrap; }
"""


def friendly(function):
    """`function`, whose InputErrors are one sentence on the page."""

    @wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except InputError as error:
            raise gr.Error(escape(str(error), quote=False), title="", print_exception=False) from None

    return wrapped


def upload(kind, label):
    """What a value of this kind is given by: a file, or a text that is typed."""
    if kind == "text":
        return gr.Textbox(label=label, placeholder="Type or paste a text", lines=4)
    if kind == "audio":
        return _refusing(gr.Audio(type="filepath", label=label, sources=["upload", "microphone"]), kind)
    sources = ["upload", "clipboard", "webcam"]
    return _refusing(gr.Image(type="filepath", image_mode=None, label=label, sources=sources, height=280), kind)


def _refusing(component, kind):
    """A component that says in a sentence that a file is none of its kind, which gradio looks at before any function of ours."""
    read = component.preprocess

    def preprocess(payload):
        try:
            return read(payload)
        except Exception as error:
            raise gr.Error(
                f"This {NOUNS[kind]} cannot be read: choose another file.", title="", print_exception=False
            ) from error

    component.preprocess = preprocess
    return component


def given(kind, value):
    """What `upload` has given as a value that encoders read. Raises InputError if nothing was."""
    if value is None or kind == "text" and not value.strip():
        raise InputError("Type a text first." if kind == "text" else f"Choose an {kind} file first.")
    return value if kind == "text" else {"bytes": Path(value).read_bytes(), "path": Path(value).name}


def results(kind, label):
    """The components that `show` fills, a list."""
    if kind == "image":
        return [gr.HTML([], html_template=IMAGES, css_template=IMAGES_STYLE, js_on_load=None, elem_id="neighbours")]
    if kind == "text":
        return [table("cosine", "text", "label")]
    return [gr.Audio(label=label, interactive=False, visible=i == 0) for i in range(NEIGHBOURS[kind])]


def table(*headers):
    """A table of what is a list of rows of strings; nothing of an empty one."""
    template = TABLE % "".join(f"<th>{header}</th>" for header in headers)
    return gr.HTML([], html_template=template, css_template=TABLE_STYLE, js_on_load=None)


def show(gallery, found):
    """What `results` show, a value for their only component or a list for several. found: [(row, cosine)]."""
    kind = gallery.encoder.kind
    if kind == "image":
        return [
            {"image": address(picture(gallery.item(row))), "caption": _titled(gallery.captions[row], cosine)}
            for row, cosine in found
        ]
    if kind == "text":
        return [[f"{cosine:.2f}", shortened(gallery.item(row)), gallery.captions[row]] for row, cosine in found]
    players = [
        gr.Audio(sound(gallery, row), label=_titled(gallery.captions[row] or f"row {row}", cosine), visible=True)
        for row, cosine in found
    ]
    return players + [gr.Audio(visible=False)] * (NEIGHBOURS[kind] - len(players))


def _titled(caption, cosine):
    return f"{caption}, {cosine:.2f}" if caption else f"{cosine:.2f}"


def picture(pixels, side=SMALL):
    """A PIL image of uint8 (C, H, W), small ones enlarged without blur."""
    pixels = pixels.permute(1, 2, 0).numpy()
    pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = side // max(image.size)
    return image.resize((image.width * factor, image.height * factor), Image.NEAREST) if factor > 1 else image


def address(image, kind="png", **settings):
    """A PIL image as a data address, for HTML."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def sound(gallery, row):
    """(rate, int16 samples) of a recording, as players take it."""
    waveform = gallery.item(row)
    waveform = waveform / waveform.abs().max().clamp(min=1e-6)
    return gallery.encoder.processor.sampling_rate, (waveform * 32767).short().numpy()


def shortened(text, letters=LETTERS):
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


__all__ = [
    "NEIGHBOURS",
    "address",
    "friendly",
    "given",
    "picture",
    "results",
    "shortened",
    "show",
    "sound",
    "table",
    "upload",
]
