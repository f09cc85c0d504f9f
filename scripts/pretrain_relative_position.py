"""Pretrain by telling where patches lie (Doersch et al. 2015).

hf-ssl pretrain relative_position                            # the embedded images, a few minutes on a CPU
hf-ssl pretrain relative_position --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain relative_position --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --num_train_epochs 100
"""

from hf_ssl import RelativePositionForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# of the paper are the patches; its plain SGD on a summed loss took a million steps, so optimizer and rate are rotation's
PAPER = dict(
    output_dir="outputs/relative_position", optim="sgd", learning_rate=0.0133, weight_decay=5e-4, image_size=398,
    lr_scheduler_type="cosine", min_crop_scale=0.35, per_device_train_batch_size=64, num_train_epochs=100,
)  # fmt: skip
# grey images have no colours to drop
SMALL = dict(
    backbone_config=resnet8(32), patch_size=8, gap=1, jitter=1, colour="keep", smallest_size=3, head_hidden_size=512
)
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.2, min_crop_scale=0.9, num_train_epochs=6, per_device_train_batch_size=128,
    warmup_steps=0.1, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
MEDIUM = dict(backbone_config=RESNET18, patch_size=24, gap=8, jitter=4, smallest_size=3, head_hidden_size=1024)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(MEDIUM, PAPER | dict(image_size=96), "96 px, thousands of photos"),
    "alexnet": Preset({}, PAPER, "398 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=RESNET50), PAPER, "398 px, the paper's patches with a ResNet-50"),
}


def main():
    pretrain_images(RelativePositionForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
