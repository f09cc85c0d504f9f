"""What a converter hands over, its model card, and the folder that is written from it."""

import hashlib
import os
import shutil
from dataclasses import dataclass

import safetensors
import transformers
from huggingface_hub import ModelCard, ModelCardData

from ...errors import InputError
from ...evaluation.encoders.loading import released_encoder
from ..release import released_processor


@dataclass
class Release:
    encoder: transformers.PreTrainedModel  # the root
    processor: object  # anything with save_pretrained: image processor, tokenizer
    pretraining: transformers.PreTrainedModel | None  # the whole model, where the file holds it
    card: ModelCard
    notes: tuple = ()  # lines for the user: what was not in the file


def write_release(release, folder, file):
    """Write to the side and rename, so that the folder is whole or not there. Raises InputError if a weight is not
    finite, which `file` gave."""
    for model in filter(None, (release.encoder, release.pretraining)):
        for name, weight in model.state_dict().items():
            if weight.is_floating_point() and not weight.isfinite().all():
                raise InputError(f"{file} holds values that are not finite, in what becomes the weight '{name}'.")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        released_encoder(release.encoder).save_pretrained(partial)
        released_processor(release.processor).save_pretrained(partial)
        if release.pretraining:
            release.pretraining.save_pretrained(partial / "pretraining")
        release.card.save(partial / "README.md")
        os.replace(partial, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"The release could not be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


CARD = """\
---
{{ card_data }}
---

# {{ name }}

{{ about }}

```python
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

image = Image.new("RGB", (300, 200))  # yours: ImageOps.exif_transpose(Image.open("photo.jpg"))
processor = AutoImageProcessor.from_pretrained("{{ name }}")
model = AutoModel.from_pretrained("{{ name }}")
features = model(**processor(image, return_tensors="pt")).{{ features }}
```

To fine-tune: `AutoModelForImageClassification.from_pretrained("{{ name }}", num_labels=10)`.
{%- if pretraining %} To pretrain further: `import hf_ssl`, then
`AutoModelForPreTraining.from_pretrained("{{ name }}", subfolder="pretraining")`.{% endif %}

## Licence

{{ licence }} Please cite the paper's authors.

## Model

| | |
|---|---|
{%- for what, value in table.items() %}
| {{ what }} | {{ value }} |
{%- endfor %}
| source file | SHA-256 `{{ sha256 }}`, MD5 `{{ md5 }}` |

{{ remarks }}

Converted with hf_ssl.
"""


def image_card(args, license, **pieces):
    """The card of an image encoder. license: as the Hub's metadata have it. pieces: the texts of CARD, Markdown."""
    name = args.output_dir.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["self-supervised-learning", "hf_ssl", args.kind],
        model_name=name,
        **license,
    )
    return ModelCard.from_template(data, template_str=CARD, name=name, **digests(args.file), **pieces)


def digests(path):
    """{"sha256", "md5"} of a file; official READMEs list beginnings of MD5."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
