"""Give a release of CPC for text the words of word vectors, by the linear map of its paper.

python -m hf_ssl.scripts.expand_vocabulary outputs/cpc_text outputs/word2vec --output_dir runs/more-words
python -m hf_ssl.scripts.expand_vocabulary outputs/cpc_text GoogleNews-vectors-negative300.bin --output_dir runs/google-words
"""

import argparse
from pathlib import Path

import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModel, AutoTokenizer

from hf_ssl.data.vocabulary import expand_vocabulary
from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation import WordVectors
from hf_ssl.evaluation.encoders.loading import load_weights
from hf_ssl.hub.conversion.release import Release, write_release
from hf_ssl.methods import CPCTextModel
from hf_ssl.training.records import public_name

CARD = """\
---
{{ card_data }}
---

# {{ name }}

The sentence encoder `{{ model }}` with {{ new }} more words, from the word vectors `{{ vectors }}` by the linear map that fits
the {{ shared }} words that both have ([Kiros et al. 2015](https://arxiv.org/abs/1506.06726), section 2.2). All else is as it was.

```python
from transformers import AutoModel, AutoTokenizer

# after `import hf_ssl` nothing needs trust_remote_code
tokenizer = AutoTokenizer.from_pretrained("{{ name }}", trust_remote_code=True)
model = AutoModel.from_pretrained("{{ name }}", trust_remote_code=True)
inputs = tokenizer(["A text.", "Another, longer text."], padding=True, return_tensors="pt")
features = model(**inputs).pooler_output  # (2, {{ width }})
```
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Release of CPC for text, a folder or Hub id.")
    parser.add_argument("vectors", help="Release of word vectors, or a file in word2vec's text or binary format.")
    parser.add_argument("--output_dir", type=Path, required=True, help="A folder that does not exist.")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    if args.output_dir.exists():
        raise InputError(f"output_dir '{args.output_dir}' exists: expected a new folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        raise InputError(f"'{args.model}' is not a folder or Hub id of a release.") from error
    model, _ = load_weights(AutoModel, args.model)
    if not isinstance(model, CPCTextModel):
        raise InputError(f"'{args.model}' holds a {type(model).__name__}: expected a release of CPC for text.")
    load = WordVectors.load if Path(args.vectors).is_file() else WordVectors.from_pretrained
    known = len(tokenizer)
    model, tokenizer, shared = expand_vocabulary(model, tokenizer, load(args.vectors))
    name, new = args.output_dir.resolve().name, len(tokenizer) - known
    data = ModelCardData(
        library_name="transformers", pipeline_tag="feature-extraction", tags=["hf_ssl", "cpc_text"], model_name=name
    )
    told = dict(name=name, model=public_name(args.model), vectors=public_name(args.vectors), new=new, shared=shared)
    card = ModelCard.from_template(data, template_str=CARD, width=model.config.hidden_size, **told)
    write_release(Release(model.eval(), tokenizer, None, card), args.output_dir.resolve(), args.vectors)
    print(f"Wrote {args.output_dir}: {new:,} new words by a map that fits {shared:,}.")


if __name__ == "__main__":
    run_script(main)
