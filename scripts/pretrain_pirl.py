"""Pretrain by seeing through jigsaw puzzles: shuffled tiles are to look like their image (Misra and van der Maaten 2019).

hf-ssl pretrain pirl                                         # the embedded images, a few minutes on a CPU
hf-ssl pretrain pirl --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain pirl --config_overrides tiles_weight=0.3 --output_dir runs/more_of_the_image
"""

from dataclasses import replace

from hf_ssl import PIRLForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8, two_views
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

TILES_CROP_SCALE = 0.6  # of an image's area, the least that is cut into tiles
# section 3.3 and VISSL's pirl_jigsaw_4node_resnet50.yaml: batch 1024, 800 epochs, cosine from 0.12
PAPER = dict(
    output_dir="outputs/pirl", views="moco_v1", optim="sgd", learning_rate=0.12, weight_decay=1e-4, image_size=224,
    lr_scheduler_type="cosine", per_device_train_batch_size=1024, num_train_epochs=800,
)  # fmt: skip
# instance discrimination's; rate, temperature and tiles_weight by kNN and probes on held-out training images
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.24, weight_decay=5e-4, num_train_epochs=16, per_device_train_batch_size=128,
    cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SMALL = dict(backbone_config=resnet8(32), tile_size=8, loss="softmax", temperature=0.1)
PHOTOS = PAPER | dict(
    image_size=96, learning_rate=0.03, weight_decay=5e-4, per_device_train_batch_size=256, num_train_epochs=200
)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, tile_size=24, noise_samples=4096, temperature=0.1), PHOTOS, "96 px, thousands of photos"
    ),
    "resnet50": Preset({}, PAPER, "224 px, the paper's"),
}  # fmt: skip


def image_and_tiles(args, size, processor):
    """The second crop, which is cut into tiles, takes in most of an image."""
    views = two_views(args, size, processor)
    image, tiles = views.recipes
    return replace(views, recipes=[image, replace(tiles, scale=(max(TILES_CROP_SCALE, tiles.scale[0]), 1.0))])


def main():
    pretrain_images(PIRLForPreTraining, PRESETS, TwoViewArguments, __doc__, image_and_tiles)


if __name__ == "__main__":
    run_script(main)
