"""The page: one tab for each panel that fits the release, served on this machine."""

import logging

import gradio as gr

from ..errors import InputError
from . import feature_map, neighbours, reconstruct, words, zero_shot
from .release import load_release

logger = logging.getLogger(__name__)
# gradio's own choice for bold, the file of weight 600, lacks most letters
FONT = (gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif")
PANELS = (reconstruct, zero_shot, words, neighbours, feature_map)


def build_page(release):
    """The gradio.Blocks of a Release."""
    network = type(release.encoder.model).__name__
    parameters = release.encoder.model.num_parameters() / 1e6
    with gr.Blocks(title=f"{release.title}: hf_ssl", analytics_enabled=False) as page:
        gr.Markdown(f"# {release.title}\n{network}, {parameters:.1f} M parameters; beside it {release.gallery.title}.")
        with gr.Tabs():
            for panel in PANELS:
                if panel.fits(release):
                    panel.build(release)
    return page


def serve(name, *, port=None, share=False, wait=True, **settings):
    """Show a release, a folder or Hub id, on a page of this machine until Ctrl-C; returns the page, and its address.

    settings: of `load_release`. port: None for the first free one from 7860 on. share: also a public address, by a tunnel of
    gradio's. wait: else return at once. Raises InputError.
    """
    page = build_page(load_release(name, **settings))
    try:
        _, url, _ = page.launch(
            server_port=port, share=share, quiet=True, prevent_thread_lock=True, ssr_mode=False, footer_links=[],
            theme=gr.themes.Default(font=FONT),
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"port {port} cannot be had ({error}): choose another by port.") from error
    logger.info("The page is at %s (Ctrl-C ends it).", page.share_url or url)
    if wait:
        page.block_thread()
    return page, url
