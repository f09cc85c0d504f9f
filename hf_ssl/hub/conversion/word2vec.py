"""Word vectors in word2vec's text or binary format, which gensim, GloVe's converter and fastText write too."""

import torch
from huggingface_hub import ModelCard, ModelCardData

from ...data.words import UNKNOWN, word_tokenizer
from ...errors import InputError
from ...evaluation.protocols.words import read_word2vec
from ...methods import Word2VecModel, WordVectorsConfig
from .release import Release, digests

CARD = """\
---
{{ card_data }}
---

# {{ name }}

The {{ count }} word vectors of `{{ file }}`, {{ width }} numbers each, copied value by value.

```python
from transformers import AutoModel, AutoTokenizer

# words are what stands between spaces, in the file's case; after `import hf_ssl` nothing needs trust_remote_code
tokenizer = AutoTokenizer.from_pretrained("{{ name }}", trust_remote_code=True)
model = AutoModel.from_pretrained("{{ name }}", trust_remote_code=True)
output = model(**tokenizer(["A text .", "Another , longer text ."], padding=True, return_tensors="pt"))
vectors, means = output.last_hidden_state, output.pooler_output  # (2, L, {{ width }}), (2, {{ width }})
```

Source file: SHA-256 `{{ sha256 }}`. The file does not say under which licence it stands: ask where it is from.

Converted with hf_ssl.
"""


@torch.no_grad()
def convert_word2vec(args):
    """Word vectors in word2vec's text or binary format: GoogleNews-vectors-negative300.bin, gensim's, others'."""
    words, vectors = read_word2vec(args.file)
    numbers = [number for number, word in enumerate(words) if word != UNKNOWN]
    if not numbers:
        raise InputError(f"{args.file} has no word but {UNKNOWN}, which is reserved.")
    model = Word2VecModel(WordVectorsConfig(vocab_size=len(numbers) + 1, hidden_size=vectors.shape[1])).eval()
    model.embeddings.weight[1:] = vectors[numbers]
    name = args.output_dir.resolve().name
    data = ModelCardData(
        library_name="transformers", pipeline_tag="feature-extraction", tags=["hf_ssl", "word2vec"], model_name=name
    )
    notes = [f"The word {UNKNOWN} is reserved and was left out."] if len(numbers) < len(words) else []
    if apart := [word for word in words if word.split() != [word]]:
        notes.append(
            f"{len(apart)} words, such as '{apart[0]}', are empty or have a space: the tokenizer never finds them."
        )
    sizes = {"name": name, "file": args.file.name, "count": f"{len(numbers):,}", "width": vectors.shape[1]}
    return Release(
        encoder=model,
        processor=word_tokenizer([words[number] for number in numbers], prepared=True),
        pretraining=None,
        card=ModelCard.from_template(data, template_str=CARD, **sizes, **digests(args.file)),
        notes=tuple(notes),
    )
