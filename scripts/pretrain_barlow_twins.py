"""Pretrain by Barlow Twins (Zbontar et al. 2021).

hf-ssl pretrain barlow_twins                                 # the embedded images, a few minutes on a CPU
hf-ssl pretrain barlow_twins --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain barlow_twins --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --num_train_epochs 1000
"""

from hf_ssl import BarlowTwinsForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8, two_views
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_views
from hf_ssl.training.arguments import TwoViewArguments

# section 2.2: BYOL's views, batch 2048 in all (64 x 32 processes), 1000 epochs, 10 of them warm-up
PAPER = dict(
    output_dir="outputs/barlow_twins", views="byol", optim="lars", learning_rate=0.2, weight_decay=1.5e-6,
    per_device_train_batch_size=64, num_train_epochs=1000, warmup_steps=0.01,
)  # fmt: skip
# chosen by kNN and linear probes on held-out training images: AdamW, SimCLR's colours, weaker crops, no blur, a narrow head
MINUTES = PAPER | dict(
    image_size=28, views="simclr", min_crop_scale=0.3, blur_probability=0.0, optim="adamw", learning_rate=4e-3,
    weight_decay=0.05, num_train_epochs=10, warmup_steps=0.1, per_device_train_batch_size=128, cpu_threads=1,
    dataloader_num_workers=1,
)  # fmt: skip
# not the paper's: batches that one device holds, a narrower head
PHOTOS = PAPER | dict(image_size=96, per_device_train_batch_size=256, num_train_epochs=200)
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), projection_size=256), MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18, projection_size=2048), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's"),
}


def main():
    draw = {"views": save_views}
    pretrain_images(BarlowTwinsForPreTraining, PRESETS, TwoViewArguments, __doc__, two_views, pictures=draw)


if __name__ == "__main__":
    run_script(main)
