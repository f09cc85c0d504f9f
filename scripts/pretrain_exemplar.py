"""Pretrain by telling patches apart, each a class of its own (Dosovitskiy et al. 2014).

hf-ssl pretrain exemplar                                     # the embedded images, a few minutes on a CPU
hf-ssl pretrain exemplar --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain exemplar --backbone resnet18 --config_overrides loss=triplet --dataset_name path/to/images
"""

from hf_ssl import ExemplarForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8
from hf_ssl.data.views import CenterCrop
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# momentum 0.9 and rate 0.01 as in the paper, which lowers it when the loss stands
PAPER = dict(
    output_dir="outputs/exemplar", optim="sgd", learning_rate=0.01, weight_decay=5e-4, image_size=96,
    lr_scheduler_type="cosine", per_device_train_batch_size=128, num_train_epochs=200,
)  # fmt: skip
# by kNN and probes on held-out training images: in minutes a softmax over 10,000 classes hardly begins to learn
SMALL = dict(backbone_config=resnet8(32), patch_size=20, transforms=2, loss="triplet")
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.2, num_train_epochs=8, warmup_steps=0.1, cpu_threads=1, dataloader_num_workers=1
)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18, patch_size=64), PAPER, "96 px, thousands of photos"),
    "resnet8x2-32": Preset(dict(backbone_config=resnet8(32)), PAPER, "96 px, patches of 32 px, the paper's"),
}


def whole_images(args, size, processor):
    """Patches are cut where the gradients of the image as it is are."""
    return CenterCrop(size, processor.image_mean, processor.image_std)


def main():
    pretrain_images(ExemplarForPreTraining, PRESETS, ImageArguments, __doc__, whole_images, normalize=False)


if __name__ == "__main__":
    run_script(main)
