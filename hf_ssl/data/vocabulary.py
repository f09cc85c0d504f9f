"""Words that a sentence encoder was not trained on, from word vectors that know them.

Kiros et al. 2015, https://arxiv.org/abs/1506.06726, section 2.2, as CPC for text does it: a linear map from the space of
word2vec to that of the encoder's own word vectors, by least squares on the words that both know; it takes the others over.
"""

import copy

import torch
from torch import nn

from ..errors import InputError
from .words import UNKNOWN, add_words, read_as


@torch.no_grad()
def expand_vocabulary(model, tokenizer, vectors):
    """(`model` with a row for each new word, `tokenizer` that knows them, how many words both knew); copies.

    model: a CPCTextModel. tokenizer: its own, of words. vectors: a `WordVectors`, whose words are taken as the tokenizer reads
    them: one that lowers case takes "Paris" for "paris", unless there is a "paris" too, and leaves out New_York, which it would
    take apart. The rows that there were stay as they are, the new ones follow in the order of `vectors`. Raises InputError if
    too few words are in both for a map.
    """
    own, number = tokenizer.get_vocab(), {}
    for place, word in enumerate(vectors.words):
        form = read_as(tokenizer, word)
        if form and form != UNKNOWN and (form == word or form not in number):
            number[form] = place
    shared = [word for word in number if word in own]
    new = [word for word in number if word not in own]
    table, width = model.get_input_embeddings().weight, vectors.vectors.shape[1]
    if len(shared) < width:
        raise InputError(
            f"The word vectors have {len(shared)} words in common with the model: expected at least {width}, the numbers of a "
            "vector."
        )
    rows = lambda words: vectors.vectors[[number[word] for word in words]].double()  # noqa: E731
    targets = table[[own[word] for word in shared]].double().cpu()
    mapping = torch.linalg.lstsq(rows(shared), targets, driver="gelsd").solution  # (width, embedding_size)
    added = (rows(new) @ mapping).to(table)

    model, tokenizer = copy.deepcopy(model), add_words(tokenizer, new)
    model.set_input_embeddings(
        nn.Embedding.from_pretrained(torch.cat([table[: len(own)], added]), freeze=False, padding_idx=0)
    )
    model.config.vocab_size = len(tokenizer)
    return model, tokenizer, len(shared)


__all__ = ["expand_vocabulary"]
