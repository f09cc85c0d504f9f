"""Pretrain by telling rotations (Gidaris et al. 2018).

hf-ssl pretrain rotation                                     # the embedded images, a few minutes on a CPU
hf-ssl pretrain rotation --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain rotation --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --num_train_epochs 50
"""

from hf_ssl import RotationForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# config/ImageNet_RotNet_AlexNet.py: 192 images a step, each in four turns, 50 epochs, torchvision's crops; there the rate falls
# from 0.01, for 256 images 0.0133, to a tenth at 15, 30 and 45 epochs, ours at 30 and 40
PAPER = dict(
    output_dir="outputs/rotation", optim="sgd", learning_rate=0.0133, weight_decay=5e-4, lr_scheduler_type="step",
    min_crop_scale=0.08, per_device_train_batch_size=192, num_train_epochs=50,
)  # fmt: skip
# batch and rate of config/CIFAR10_RotNet_NIN4blocks.py; the cosine chosen by kNN and probes on held-out training images
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.2, lr_scheduler_type="cosine", min_crop_scale=0.2, num_train_epochs=6,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32)), MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18), PAPER | dict(image_size=96, num_train_epochs=100), "96 px, thousands of photos"
    ),
    "alexnet": Preset({}, PAPER, "224 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=RESNET50), PAPER, "224 px, the paper's recipe with a ResNet-50"),
}


def main():
    pretrain_images(RotationForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
