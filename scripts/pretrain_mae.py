"""Pretrain a masked autoencoder (He et al. 2021).

hf-ssl pretrain mae                                          # the embedded images, a few minutes on a CPU
hf-ssl pretrain mae --backbone vit-small-96 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain mae --num_processes 8 --backbone vit-base --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 250000
"""

from hf_ssl import MAEForPreTraining
from hf_ssl.cli import Preset, one_view, pretrain_images, vit
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_reconstructions
from hf_ssl.training.arguments import ImageArguments

# appendix A.1, table 8: batch 4096 in all (64 x 64 processes, or accumulated), 800 epochs, 40 of them warm-up
PAPER = dict(output_dir="outputs/mae", per_device_train_batch_size=64, num_train_epochs=800, warmup_steps=0.05)
SMALL = dict(
    backbone_config=vit(128, 4, 4, image_size=28, patch_size=7), norm_pix_loss=False, decoder_hidden_size=64,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=256,
)  # fmt: skip
# chosen by linear probes on held-out training images: weaker crops, plain pixels, a higher rate
MINUTES = PAPER | dict(
    per_device_train_batch_size=128, num_train_epochs=25, learning_rate=6e-3, warmup_steps=0.1, min_crop_scale=0.6,
    cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# not the paper's: a ViT-S on 12 x 12 patches, a lighter decoder, a higher rate for fewer and smaller steps
PHOTOS = PAPER | dict(num_train_epochs=400, learning_rate=6e-4, per_device_train_batch_size=256)
MEDIUM = dict(
    backbone_config=vit(384, 12, 6, image_size=96, patch_size=8), decoder_hidden_size=192,
    decoder_num_hidden_layers=4, decoder_num_attention_heads=6, decoder_intermediate_size=768,
)  # fmt: skip
PRESETS = {
    "vit-tiny-28": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "vit-small-96": Preset(MEDIUM, PHOTOS, "96 px, thousands of photos"),
    "vit-base": Preset(dict(backbone_config=vit(768, 12, 12)), PAPER, "224 px, the paper's"),
    "vit-large": Preset(dict(backbone_config=vit(1024, 24, 16)), PAPER, "224 px, the paper's"),
    "vit-huge": Preset(dict(backbone_config=vit(1280, 32, 16, patch_size=14)), PAPER, "224 px, the paper's"),
}


def main():
    draw = {"reconstructions": save_reconstructions}
    pretrain_images(MAEForPreTraining, PRESETS, ImageArguments, __doc__, one_view, pictures=draw)


if __name__ == "__main__":
    run_script(main)
