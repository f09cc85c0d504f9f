"""Pretrain by recognising a view of an image in the places of another view (Bachman et al. 2019).

hf-ssl pretrain amdim                                        # the embedded images, a few minutes on a CPU
hf-ssl pretrain amdim --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain amdim --config_overrides fine_stage=-2,coarse_stage=-1,fine_grid=5,coarse_grid=3 --output_dir runs/later_maps
"""

from hf_ssl import AMDIMForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8, two_views
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# train.py: Adam at 2e-4 with beta1 0.8 for batches of 200, 2.56e-4 for the 256 that rates are given for
PAPER = dict(
    output_dir="outputs/amdim", views="moco_v2", blur_probability=0.0, min_crop_scale=0.3, learning_rate=2.56e-4,
    weight_decay=1e-5, adam_beta1=0.8, adam_beta2=0.999, lr_scheduler_type="constant", per_device_train_batch_size=200,
    num_train_epochs=150, image_size=128,
)  # fmt: skip
# rate and grids by kNN and probes on held-out training images
MINUTES = PAPER | dict(
    image_size=28, views="moco_v1", blur_probability=None, learning_rate=6e-3, adam_beta1=0.9, lr_scheduler_type="cosine",
    per_device_train_batch_size=128, num_train_epochs=10, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SMALL = dict(backbone_config=resnet8(32), projection_size=128, fine_grid=5, coarse_grid=3)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, projection_size=512), PAPER | dict(image_size=96), "96 px, thousands of photos"
    ),
    "resnet50": Preset({}, PAPER, "128 px, the paper's objective with a ResNet-50"),
}


def main():
    pretrain_images(AMDIMForPreTraining, PRESETS, TwoViewArguments, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
