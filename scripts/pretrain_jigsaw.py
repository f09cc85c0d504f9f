"""Pretrain by solving jigsaw puzzles (Noroozi and Favaro 2016).

hf-ssl pretrain jigsaw                                       # the embedded images, a few minutes on a CPU
hf-ssl pretrain jigsaw --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain jigsaw --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --num_train_epochs 70
"""

from hf_ssl import JigsawForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# section 4.1 and the official solver: 256 puzzles a step, 350,000 steps, rate 0.01; there it falls to a tenth each 100,000 steps
PAPER = dict(
    output_dir="outputs/jigsaw", optim="sgd", learning_rate=0.01, weight_decay=5e-4, image_size=255,
    lr_scheduler_type="step", min_crop_scale=0.35, per_device_train_batch_size=256, num_train_epochs=70,
)  # fmt: skip
# grey images have no colours to lose
SMALL = dict(
    backbone_config=resnet8(32), tile_size=8, channel_shift=0, grey_probability=0.0, permutations=1000,
    tile_features_size=128, head_hidden_size=512,
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.2, lr_scheduler_type="cosine", warmup_steps=0.1, min_crop_scale=0.9, num_train_epochs=6,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
MEDIUM = dict(
    backbone_config=RESNET18,
    tile_size=24,
    channel_shift=1,
    permutations=200,
    tile_features_size=256,
    head_hidden_size=1024,
)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(MEDIUM, PAPER | dict(image_size=96, num_train_epochs=100), "96 px, thousands of photos"),
    "alexnet": Preset({}, PAPER, "255 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=RESNET50), PAPER, "255 px, the paper's puzzles with a ResNet-50"),
}


def main():
    pretrain_images(JigsawForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
