import math

import torch
import torch.nn.functional as F
from methods.tester import MethodTester

from hf_ssl import CLIPForPreTraining

BEGIN, END, WORDS = 38, 39, 40
TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_act="gelu")
TINY_CLIP = dict(
    model_type="clip", projection_dim=16, vision_config=TINY | dict(image_size=16, patch_size=8),
    text_config=TINY | dict(vocab_size=WORDS, max_position_embeddings=12, bos_token_id=BEGIN, eos_token_id=END,
                            pad_token_id=END),
)  # fmt: skip


def pairs(seed=0, rows=8):
    """Images with a bright stripe, and captions that name its place after a word that means nothing."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(16, generator=generator)[:rows]
    pixels = torch.randn(rows, 3, 16, 16, generator=generator) + 3 * F.one_hot(places, 16)[:, None, :, None]
    ids, mask = torch.full((rows, 8), END), torch.zeros(rows, 8, dtype=torch.long)
    for row, place in enumerate(places.tolist()):
        words = torch.randint(20, 30, (1 + place % 3,), generator=generator)
        text = torch.tensor([BEGIN, *words, place, END])
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


class TestCLIP(MethodTester):
    model_class = CLIPForPreTraining
    config = dict(backbone_config=TINY_CLIP)
    chance_loss = math.log(8)
    tolerance = 1e-5
    floor = 1e-7  # of the biases of keys, which change no attention
    released_call = "model.get_image_features(**inputs)"

    def batch(self, seed=0):
        return pairs(seed)
