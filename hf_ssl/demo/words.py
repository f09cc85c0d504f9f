"""For encoders whose vocabulary is of whole words: similar words and analogies."""

from functools import partial

import gradio as gr
from tokenizers.models import WordLevel

from ..errors import InputError
from ..evaluation import WordVectors
from .media import friendly, table

TITLE = "Words"
COUNT = 10


def fits(release):
    backend = getattr(release.encoder.processor, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, WordLevel)


def _typed(own, word):
    """A word as it is in the vocabulary, in lower case if it is not there as it is typed."""
    word = word.strip()
    if not word:
        raise InputError("Type a word first.")
    return word if word in own else word.lower()


def similar(own, word):
    """[[word, cosine]]. Raises InputError for a word that the vocabulary lacks."""
    return _rows(own.most_similar(_typed(own, word), COUNT))


def analogy(own, a, b, c):
    """[[word, cosine]] of what is to c as b is to a. Raises InputError for a word that the vocabulary lacks."""
    return _rows(own.analogy(*(_typed(own, word) for word in (a, b, c)), COUNT))


def _rows(found):
    return [[word, f"{cosine:.2f}"] for word, cosine in found]


def build(release):
    own = WordVectors.of_model(release.encoder.model, release.encoder.processor)
    with gr.Tab(TITLE):
        gr.Markdown(f"{len(own.words):,} words have a vector. Similar words have a large cosine.")
        with gr.Row():
            with gr.Column(min_width=280):
                word = gr.Textbox(label="Word", placeholder="france")
                look = gr.Button("Similar words", variant="primary")
                near = table("word", "cosine")
            with gr.Column(min_width=280):
                with gr.Row():
                    a = gr.Textbox(label="If", placeholder="man", min_width=80)
                    b = gr.Textbox(label="is to", placeholder="king", min_width=80)
                    c = gr.Textbox(label="as … is to ?", placeholder="woman", min_width=80)
                solve = gr.Button("Solve", variant="primary")
                answer = table("word", "cosine")
    gr.on([look.click, word.submit], friendly(partial(similar, own)), word, near, api_name="similar_words")
    gr.on([solve.click, c.submit], friendly(partial(analogy, own)), [a, b, c], answer, api_name="analogy")
