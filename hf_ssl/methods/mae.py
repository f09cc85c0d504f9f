"""Masked autoencoder: hide 75% of an image's patches, encode the rest, reconstruct the hidden pixels.

He et al. 2021, https://arxiv.org/abs/2111.06377. Official code: https://github.com/facebookresearch/mae.
Encoder layers and decoder are transformers' ViT-MAE; the initialisation is the official one (transformers' own leaves
the position tables at zero when a model is built from a config, and then nothing is learnt).
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention, ViTMAEDecoder, ViTMAEEmbeddings

from ._base import SSLConfig, SSLModel, SSLOutput
from ._patches import patchify, sincos_positions, unpatchify
from ._random import MASK_STREAM, fold_in, uniform


@strict
class MAEConfig(SSLConfig):
    """Defaults: ViT-B/16 with the paper's decoder (section 4 and appendix A.1).

    backbone_config: a ViTConfig, the encoder that is released. mask_ratio: fraction of patches hidden from it.
    norm_pix_loss: reconstruct each patch normalised by its own mean and variance.
    """

    model_type = "ssl_mae"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="vit", init_kwargs={"layer_norm_eps": 1e-6})
    }

    backbone_config: dict | PreTrainedConfig | None = None
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048

    def validate_patches(self):
        vit = self.backbone_config
        if not isinstance(vit, ViTConfig):
            raise ValueError(f"backbone_config must be of model_type 'vit' for MAE, found '{vit.model_type}'.")
        if vit.image_size % vit.patch_size:
            raise ValueError(
                f"image_size must be divisible by patch_size, found image_size={vit.image_size} and "
                f"patch_size={vit.patch_size}."
            )
        for name, width in (("hidden_size", vit.hidden_size), ("decoder_hidden_size", self.decoder_hidden_size)):
            if width % 4:  # sine and cosine of two axes
                raise ValueError(f"{name} must be divisible by 4 for 2-D positions, found {width}.")
        visible = int((vit.image_size // vit.patch_size) ** 2 * (1 - self.mask_ratio))
        if not 0 < self.mask_ratio < 1 or visible == 0:
            raise ValueError(f"mask_ratio must hide some patches and leave at least one, found {self.mask_ratio}.")

    @property
    def vit_mae(self) -> ViTMAEConfig:
        """The same settings under the names of transformers' ViT-MAE."""
        vit = self.backbone_config
        shared = {name: getattr(vit, name) for name in _SHARED_WITH_VIT}
        own = {
            name: value for name, value in self.to_dict().items() if name.startswith(("decoder_", "mask_", "norm_"))
        }
        return ViTMAEConfig(**shared, **own, attn_implementation=self._attn_implementation)


_SHARED_WITH_VIT = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias"
).split()


class MAEForPreTraining(SSLModel):
    config: MAEConfig
    base_model_prefix = "vit"
    input_modalities = ("image",)
    _no_split_modules = ["ViTMAEEmbeddings", "ViTMAELayer"]
    _supports_flex_attn = False

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config.vit_mae)
        self.patch_size = config.backbone_config.patch_size
        self.grid = config.backbone_config.image_size // self.patch_size  # patches per side
        self.decoder = ViTMAEDecoder(config.vit_mae, num_patches=self.grid**2)
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W). The patches with the smallest `noise`, (N, L), stay visible; it is drawn from
        `sample_seeds`, (N,) int64, if there are any, and afresh if not."""
        if noise is None and sample_seeds is not None:
            noise = uniform(fold_in(sample_seeds, MASK_STREAM), self.grid**2)
        encoded = self.vit(pixel_values.to(self.dtype), noise=noise)
        tokens = encoded.last_hidden_state  # (N, 1 + visible, D)
        predicted = self.decoder(tokens, encoded.ids_restore).logits  # (N, L, patch_size^2 C)

        target = self.target(pixel_values)
        error = (predicted.float() - target).square().mean(-1)  # (N, L)
        # as many are hidden in each image, so that the mean over processes is the mean over all
        loss = (error * encoded.mask).sum() / encoded.mask.sum()
        return SSLOutput(loss=loss, logits=predicted, features=tokens[:, 0], mask=encoded.mask)

    def target(self, pixel_values):
        patches = patchify(pixel_values.float(), self.patch_size)  # (N, L, patch_size^2 C)
        if self.config.norm_pix_loss:
            mean = patches.mean(-1, keepdim=True)
            variance = patches.var(-1, keepdim=True)  # unbiased, as in the original
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        return patches

    @torch.no_grad()
    def reconstruct(self, pixel_values, mask):
        """(masked, reconstructed) images, (N, C, H, W) each: what `mask`, (N, L), is 1 for is hidden and filled in, whatever else
        is seen stays as it is. Patches are counted row by row, `grid` in each; every image has as many hidden."""
        mask = mask.to(pixel_values.device).bool()
        counts = mask.sum(1)
        if (counts != counts[0]).any():
            raise ValueError(f"mask must hide as many patches of each image, found {counts.tolist()}.")
        order = mask.long().argsort(dim=1, stable=True)  # the visible ones first
        tokens = self._encode(pixel_values, order[:, : mask.shape[1] - int(counts[0])])
        predicted = self.decoder(tokens, order.argsort(dim=1)).logits.float()

        patches, hidden = patchify(pixel_values, self.patch_size), mask[..., None].float()
        if self.config.norm_pix_loss:  # give each patch its own mean and variance back, as the paper's figures do
            mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        images = (patches * (1 - hidden), patches * (1 - hidden) + predicted * hidden)
        return tuple(unpatchify(image, self.patch_size, self.grid) for image in images)

    def embed(self, pixel_values):
        """The cls token after the last layer norm, no patch hidden: (N, D)."""
        return self._encode(pixel_values)[:, 0]

    def _encode(self, pixel_values, visible=None):
        """The cls token and those of the `visible` patches, (N, V) int64, or of all: (N, 1 + V, D)."""
        embeddings = self.vit.embeddings
        positions = embeddings.position_embeddings  # (1, 1 + L, D)
        tokens = embeddings.patch_embeddings(pixel_values.to(self.dtype)) + positions[:, 1:]
        if visible is not None:
            tokens = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))
        cls_token = (embeddings.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1)
        for layer in self.vit.layers:
            tokens = layer(tokens, None)
        return self.vit.layernorm(tokens)

    def export_encoder(self) -> ViTModel:
        """A plain ViTModel. Its pooler is the identity, so that `pooler_output` is the cls token: AutoModel builds a
        pooler in any case, and one that is not in the file would be random and different at each load."""
        config = type(self.config.backbone_config).from_dict(
            self.config.backbone_config.to_dict()
            | {"pooler_act": "linear", "pooler_output_size": self.config.backbone_config.hidden_size}
        )
        encoder = ViTModel(config)
        weights = self.vit.state_dict()
        weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
        weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)
        encoder.load_state_dict(weights)
        return encoder.float().eval()

    def set_attn_implementation(self, attn_implementation, **kwargs):
        self.vit.set_attn_implementation(attn_implementation, **kwargs)
        for config in (self.config, self.decoder.config):  # transformers' decoder works on a copy of the config
            config._attn_implementation = self.vit.config._attn_implementation

    @torch.no_grad()
    def _init_weights(self, module):
        _init_as_official(module)


class MAEEncoder(ViTMAEModel):
    """transformers' masking encoder with the official initialisation."""

    is_custom_code = MAEForPreTraining.is_custom_code

    @torch.no_grad()
    def _init_weights(self, module):
        _init_as_official(module)


def _init_as_official(module):
    """models_mae.py: linear layers and patch projection xavier-uniform, tokens N(0, 0.02), fixed position tables."""
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        bound = math.sqrt(6 / (fan_in + module.out_channels))  # as a linear layer, not as a convolution
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    elif isinstance(module, ViTMAEAttention):
        # the original draws query, key and value as one matrix of 3 D rows: narrower than what each has been drawn as
        for weight in (module.q_proj.weight, module.k_proj.weight, module.v_proj.weight):
            rows, columns = weight.shape
            init.copy_(weight, weight * math.sqrt((rows + columns) / (3 * rows + columns)))
    elif isinstance(module, ViTMAEEmbeddings):
        init.normal_(module.cls_token, std=0.02)
        _fill_positions(module.position_embeddings)
    elif isinstance(module, ViTMAEDecoder):
        init.normal_(module.mask_token, std=0.02)
        _fill_positions(module.decoder_pos_embed)


def _fill_positions(table):
    side = math.isqrt(table.shape[1] - 1)
    init.copy_(table, sincos_positions(side, side, table.shape[2])[None])


__all__ = ["MAEConfig", "MAEForPreTraining"]
