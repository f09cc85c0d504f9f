"""CLIP: an image and its caption must find each other among all images and captions of the batch.

Radford et al. 2021, https://arxiv.org/abs/2103.00020. Official code, without training: https://github.com/openai/CLIP; its
open training: https://github.com/mlfoundations/open_clip. Towers, projections and temperature are transformers' CLIPModel, or
its VisionTextDualEncoderModel for other towers, with new weights drawn as the original draws them; one of the towers may be
frozen (locked-image tuning, Zhai et al. 2021, https://arxiv.org/abs/2111.07991).
"""

import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, CLIPTextConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextEmbeddings, CLIPVisionEmbeddings

from ._backbone import freeze_mask_tokens, native_copy
from ._base import SSLConfig, SSLModel, SSLOutput
from ._contrastive import pair_cross_entropy
from ._distributed import gather, world_size
from ._information import information_bound
from ._random import fold_in

MAX_LOGIT_SCALE = 100  # section 2.5


@strict
class SSLCLIPConfig(SSLConfig):
    """Defaults: ViT-B/32, as transformers has it.

    backbone_config: of model_type clip or vision-text-dual-encoder, the model that is released, with its projection and
    first temperature (logit_scale_init_value, the log of 1 / 0.07).
    freeze_vision, freeze_text: leave this tower as it is and train its projection alone. spare_duplicates: captions that are
    alike in a batch are not negatives of each other, nor are their images (not in the paper).
    """

    model_type = "ssl_clip"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="clip")}

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_vision: bool = False
    freeze_text: bool = False
    spare_duplicates: bool = False

    def validate_towers(self):
        if self.backbone_config.model_type not in ("clip", "vision-text-dual-encoder"):
            found = self.backbone_config.model_type
            raise ValueError(
                f"backbone_config must be of model_type 'clip' or 'vision-text-dual-encoder', found '{found}'."
            )


class CLIPForPreTraining(SSLModel):
    config: SSLCLIPConfig
    base_model_prefix = "clip"
    input_modalities = ("image", "text")
    compares_samples = True

    def __init__(self, config: SSLCLIPConfig):
        super().__init__(config)
        self.clip = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        freeze_mask_tokens(self.clip)
        self.micro_batch_size = 0  # rows that are encoded with gradient at a time, 0: all
        self.post_init()
        self.frozen = [
            tower
            for tower, is_frozen in (
                (self.clip.vision_model, config.freeze_vision),
                (self.clip.text_model, config.freeze_text),
            )
            if is_frozen
        ]
        for tower in self.frozen:
            tower.requires_grad_(False)

    def forward(self, pixel_values, input_ids, attention_mask=None, **kwargs):
        """pixel_values: (N, C, H, W). input_ids: (N, L), row i being the caption of image i. attention_mask: (N, L), 1 where
        there is text. The batch of all processes are the negatives. `logits`, (N, N), images by texts, are only made in
        eval mode."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        features = self._encode(self.embed, self.config.freeze_vision, pixel_values)  # (N, P)
        texts = self._encode(self.embed_text, self.config.freeze_text, input_ids, attention_mask)
        projections, projections_2 = (F.normalize(x.float(), dim=1) for x in (features, texts))

        scale = self.clip.logit_scale.exp()
        labels = text_labels(input_ids, attention_mask) if self.config.spare_duplicates else None
        loss = pair_cross_entropy(projections, projections_2, scale, labels)
        logits = None if self.training else scale * projections @ projections_2.T
        candidates = len(projections) * world_size()
        if labels is not None:
            candidates = candidates + 1 - occurrences(labels, gather(labels))  # (N,)
        return SSLOutput(
            loss=loss,
            logits=logits,
            features=features,
            projections=projections.detach(),
            projections_2=projections_2.detach(),
            metrics={"temperature": 1 / scale.detach()} | information_bound(loss, candidates),
        )

    def _encode(self, encode, frozen, *inputs):
        """`encode(*inputs)`, in parts of `micro_batch_size` rows: the features of all are kept, the activations of one part
        at a time, made again at the backward. So the batch has as many negatives as features fit in memory."""
        if not self.micro_batch_size:
            return encode(*inputs)
        parts = zip(*(x.split(self.micro_batch_size) for x in inputs), strict=True)
        if frozen:  # which keeps no activations
            return torch.cat([encode(*part) for part in parts])
        return torch.cat([checkpoint(encode, *part, use_reentrant=False) for part in parts])

    def check_batch(self, size, processes):
        if size * processes < 2:
            raise ValueError(f"CLIP needs other pairs to compare with: the batch of all processes is {size}.")

    def train(self, mode=True):
        """As torch's, but a frozen tower stays as in evaluation: no dropout, and batch statistics that do not move."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    @torch.no_grad()
    def after_step(self, progress):
        self.clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def embed(self, pixel_values):
        """The projected features of images, (N, P), not normalised."""
        return self.clip.get_image_features(pixel_values=pixel_values).pooler_output

    def embed_text(self, input_ids, attention_mask=None):
        """The projected features of texts, (N, P), not normalised."""
        if isinstance(self.clip.config.text_config, CLIPTextConfig):
            attention_mask = None  # the feature is the first end token's, which does not see what stands behind it
        return self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    @property
    def observed_module(self):
        """The tower of images."""
        return self.clip.vision_model

    def export_encoder(self):
        return native_copy(self.clip)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:  # transformers sets it when it builds the model, but not where a file lacks it
            init.constant_(self.clip.logit_scale, self.config.backbone_config.logit_scale_init_value)
            draw_as_original(self.clip)


@torch.no_grad()
def draw_as_original(clip):
    """Weights as clip/model.py draws them, where transformers draws others: there queries, keys and values begin with the spread
    that falls with depth and output projections with the full one, and the image tower, which the original leaves to torch,
    as the text tower. Biases stay zero, as transformers has them."""
    for tower in (clip.text_model, clip.vision_model):
        for module in tower.modules():
            if isinstance(module, CLIPTextEmbeddings | CLIPVisionEmbeddings | CLIPEncoderLayer):
                _draw_as_original(module, tower.config.initializer_factor)


def _draw_as_original(module, factor):
    if isinstance(module, CLIPTextEmbeddings):
        init.normal_(module.position_embedding.weight, std=factor * 0.01)
        return
    if isinstance(module, CLIPVisionEmbeddings):
        init.normal_(module.position_embedding.weight, std=factor * module.embed_dim**-0.5)
        _draw_uniform(module.patch_embedding.weight, factor)
        return
    attention, mlp, config = module.self_attn, module.mlp, module.self_attn.config
    width, layers = config.hidden_size, config.num_hidden_layers
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        if isinstance(config, CLIPTextConfig):
            init.normal_(projection.weight, std=factor * width**-0.5)
        else:
            _draw_uniform(projection.weight, factor * 1.5**0.5)  # Xavier's bound for the three stacked, (3 D, D)
    if isinstance(config, CLIPTextConfig):
        init.normal_(attention.out_proj.weight, std=factor * (2 * width * layers) ** -0.5)
    else:
        for linear in (attention.out_proj, mlp.fc1, mlp.fc2):
            _draw_uniform(linear.weight, factor)


def _draw_uniform(weight, factor):
    """U(-b, b), b = factor / sqrt(fan_in): torch's draw for a new layer at factor 1."""
    bound = factor * weight[0].numel() ** -0.5
    init.uniform_(weight, -bound, bound)


def text_labels(input_ids, attention_mask):
    """(N, L) to (N,) int64: the same number for the same text, however far it is padded."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (fold_in(input_ids, places) * attention_mask).sum(1)


def occurrences(labels, everyones):
    """How often each of `labels`, (N,), stands among `everyones`, (M,), in memory of N + M numbers."""
    ordered = everyones.sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)


__all__ = ["CLIPForPreTraining", "SSLCLIPConfig"]
