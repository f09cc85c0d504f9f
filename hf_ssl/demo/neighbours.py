"""The rows of a data set whose features are nearest to those of what is uploaded or typed."""

from functools import partial

import gradio as gr

from .media import NEIGHBOURS, friendly, given, results, show, upload

TITLE = "Nearest neighbours"


def fits(release):
    return True


def find(release, value):
    """Values for the results: the rows nearest to a file or text. Raises InputError if it cannot be read."""
    gallery, kind = release.gallery, release.encoder.kind
    return show(gallery, gallery.nearest(gallery.encode(given(kind, value)), NEIGHBOURS[kind]))


def build(release):
    kind, noun, count = release.encoder.kind, release.gallery.noun, len(release.gallery)
    look = friendly(partial(find, release))
    with gr.Tab(TITLE):
        gr.Markdown(
            f"The features of your {noun} beside those of {count:,} others: the nearest ones with their cosines."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                query = upload(kind, f"Your {noun}")
                button = gr.Button("Find neighbours", variant="primary")
            with gr.Column(scale=2, min_width=320):
                found = results(kind, "Neighbours")
    button.click(look, query, found, api_name="neighbours")
    if kind != "text":
        query.upload(look, query, found, api_visibility="private")
