"""Pretrain CLIP (Radford et al. 2021): images and captions that find each other.

hf-ssl pretrain clip                                         # the embedded captioned emoji, some minutes on a CPU
hf-ssl pretrain clip --backbone vit-s-16 --dataset_name path/to/pairs --output_dir runs/mine   # a folder with metadata.csv, ...
hf-ssl pretrain clip --num_processes 8 --backbone vit-b-32 --dataset_name "path/to/shards/*.tar" --streaming \\
    --tokenizer_name openai/clip-vit-base-patch32 --max_steps 400000 --output_dir runs/vit-b-32    # webdataset shards
hf-ssl pretrain clip --vision_tower facebook/dinov2-small --config_overrides freeze_vision=true \\
    --dataset_name path/to/pairs --output_dir runs/locked    # locked-image tuning
"""

from hf_ssl import CLIPForPreTraining
from hf_ssl.cli import Preset, pretrain_pairs
from hf_ssl.errors import run_script


def clip(projection, vision, text, **patches):
    """vision, text: (width, layers, heads) of the towers."""
    (v, t) = (dict(hidden_size=w, num_hidden_layers=n, num_attention_heads=h, intermediate_size=4 * w, hidden_act="gelu")
              for w, n, h in (vision, text))  # fmt: skip
    return dict(
        backbone_config=dict(model_type="clip", projection_dim=projection, vision_config=v | patches, text_config=t)
    )


# tables 18 to 20: batch 32768 in all, 32 epochs; open_clip's optimizer settings are the same
PAPER = dict(
    output_dir="outputs/clip", per_device_train_batch_size=256, num_train_epochs=32, learning_rate=5e-4 * 256 / 32768,
    warmup_steps=2000, weight_decay=0.2, adam_beta2=0.98, adam_epsilon=1e-6, eval_protocols="zero_shot,retrieval",
)  # fmt: skip
# chosen on validation emoji: small batches and pieces of words, which unseen names share with seen ones
MINUTES = PAPER | dict(
    vocab_size=800, max_seq_length=32, min_crop_scale=0.5, per_device_train_batch_size=64, num_train_epochs=60,
    learning_rate=4e-3, warmup_steps=0.1, max_grad_norm=1.0, cpu_threads=2, dataloader_num_workers=1,
)  # fmt: skip
# not the paper's: ViT-S, and batches that one device holds with micro_batch_size
PHOTOS = PAPER | dict(
    per_device_train_batch_size=512, micro_batch_size=128, num_train_epochs=60, learning_rate=5e-4, warmup_steps=0.1,
    vocab_size=8000,
)  # fmt: skip
PRESETS = {
    "emoji": Preset(clip(128, (192, 5, 6), (128, 3, 4), image_size=64, patch_size=16), MINUTES, "64 px, minutes on a CPU"),
    "vit-s-16": Preset(clip(256, (384, 12, 6), (256, 6, 4), image_size=112, patch_size=16), PHOTOS, "112 px, thousands of pairs"),
    "vit-b-32": Preset(clip(512, (768, 12, 12), (512, 12, 8), patch_size=32), PAPER, "224 px, the paper's, 400 M pairs"),
    "vit-b-16": Preset(clip(512, (768, 12, 12), (512, 12, 8), patch_size=16), PAPER, "224 px, the paper's, 400 M pairs"),
    "vit-l-14": Preset(
        clip(768, (1024, 24, 16), (768, 12, 12), patch_size=14), PAPER | dict(learning_rate=4e-4 * 256 / 32768),
        "224 px, the paper's, 400 M pairs",
    ),
}  # fmt: skip


def main():
    pretrain_pairs(CLIPForPreTraining, PRESETS, __doc__)


if __name__ == "__main__":
    run_script(main)
