"""Pretrain a BiGAN, a generator with its inverse (Donahue et al. 2017).

hf-ssl pretrain bigan                                        # the embedded images, a few minutes on a CPU
hf-ssl pretrain bigan --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain bigan --backbone alexnet --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 1000000
"""

from hf_ssl import BiGANForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# train_gan.py and train_imagenet.sh: batches of 128, Adam at 2e-4, weight decay 2.5e-5, crops of 64 px, 100 epochs; there the
# rate falls in the second half, exponentially to a hundredth
PAPER = dict(
    output_dir="outputs/bigan", learning_rate=4e-4, adam_beta1=0.5, adam_beta2=0.999, weight_decay=2.5e-5, image_size=64,
    min_crop_scale=0.2, per_device_train_batch_size=128, num_train_epochs=100,
)  # fmt: skip
# few steps want a higher rate, with which the discriminator wins unless its own is a tenth of it: at half of it, and of the
# others' rate, with 50 numbers, it was right for 98 of 100 pairs, and kNN and probes on held-out training images were below
# those of random weights
MINUTES = PAPER | dict(
    image_size=28, learning_rate=4e-3, min_crop_scale=0.6, per_device_train_batch_size=64, num_train_epochs=10,
    cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SMALL = dict(
    backbone_config=resnet8(32), latent_size=16, generator_hidden_size=32, discriminator_hidden_size=32,
    joint_hidden_size=256, discriminator_rate=0.1,
)  # fmt: skip
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, latent_size=100), PAPER | dict(num_train_epochs=200),
        "64 px, thousands of photos",
    ),
    "alexnet": Preset({}, PAPER, "64 px, the paper's encoder and recipe"),
}  # fmt: skip


def main():
    pretrain_images(BiGANForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
