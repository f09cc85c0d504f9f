"""For encoders of images and texts: an image among classes whose names are typed."""

from functools import partial

import gradio as gr
import torch

from ..errors import InputError
from ..evaluation import PAIRS
from ..evaluation.protocols.zero_shot import PROMPTS
from .media import friendly, given, upload

TITLE = "Zero-shot"


def fits(release):
    return release.modality == PAIRS


@torch.no_grad()
def classify(release, path, names, prompt):
    """{class: probability}, the softmax of the model's scores. names: lines, or parts between commas. Raises InputError."""
    encoder = release.encoder
    classes = list(dict.fromkeys(name.strip() for name in names.replace("\n", ",").split(",") if name.strip()))
    if len(classes) < 2:
        raise InputError("Type two class names or more, each on its line or with commas between.")
    if "{}" not in prompt:
        raise InputError("The prompt needs {} where the name of the class goes.")
    image = encoder.read(given("image", path))
    if image is None:
        raise InputError(f"This image cannot be read: {encoder.reason}.")
    device = encoder.model.device
    tokens = encoder.texts.tokenize([prompt.replace("{}", name) for name in classes], device)
    scores = encoder.model(pixel_values=encoder.preprocess([image], device), **tokens).logits_per_image[0]
    return dict(zip(classes, scores.softmax(0).tolist(), strict=True))


def prompt_of(release):
    """Of our own methods the name alone, of others' the paper's prompt for photographs."""
    return "{}" if release.method else PROMPTS[0]


def build(release):
    with gr.Tab(TITLE):
        gr.Markdown("Which of your classes is it? No class was trained: the image is compared with the text of each.")
        with gr.Row():
            with gr.Column(min_width=280):
                image = upload("image", "Your image")
                names = gr.Textbox(
                    label="Classes", placeholder="dog, cat, bird", lines=3, info="with commas, or one a line"
                )
                prompt = gr.Textbox(prompt_of(release), label="Prompt", info="{} stands for the name of the class")
                button = gr.Button("Classify", variant="primary")
            with gr.Column(min_width=280):
                answer = gr.Label(label="Probabilities among these classes", num_top_classes=10)
    button.click(friendly(partial(classify, release)), [image, names, prompt], answer, api_name="zero_shot")
