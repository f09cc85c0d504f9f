"""Pretrain by recognising one view of an image in another, lightness in colours (Tian et al. 2019).

hf-ssl pretrain cmc                                          # the embedded images, a few minutes on a CPU
hf-ssl pretrain cmc --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain cmc --config_overrides loss=nce,noise_samples=4096 --output_dir runs/nce
"""

from hf_ssl import CMCForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# train_CMC.py: batches of 256, 400 epochs, a tenth of the rate late in training; crops and flips alone
PAPER = dict(
    output_dir="outputs/cmc", optim="sgd", learning_rate=0.03, weight_decay=1e-4, min_crop_scale=0.08, image_size=224,
    lr_scheduler_type="step", per_device_train_batch_size=256, num_train_epochs=400,
)  # fmt: skip
# instance discrimination's; views by kNN and probes on held-out training images
MINUTES = PAPER | dict(
    image_size=28, views="moco_v1", learning_rate=0.24, weight_decay=5e-4, lr_scheduler_type="cosine", min_crop_scale=0.2,
    num_train_epochs=10, per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(
    image_size=96, weight_decay=5e-4, lr_scheduler_type="cosine", min_crop_scale=0.2, num_train_epochs=200
)


def two_halves(half, conversion):
    """The `backbone_config` of two networks like `half`: the first sees one channel, the second two."""
    halves = dict(first_config=half | dict(num_channels=1), second_config=half | dict(num_channels=2))
    return dict(model_type="ssl_two_halves", conversion=conversion, **halves)


ALEXNET = dict(model_type="ssl_alexnet", hidden_sizes=[48, 128, 192, 192, 128])  # half as wide
# the embedded images are grey
SMALL = dict(backbone_config=two_halves(resnet8(32), "gradients"), loss="softmax", temperature=0.1)
MEDIUM = dict(backbone_config=two_halves(RESNET18, "lab"), noise_samples=4096, temperature=0.1)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, grey, minutes on a CPU"),
    "resnet18": Preset(MEDIUM, PHOTOS, "96 px, thousands of photos"),
    "alexnet": Preset(dict(backbone_config=two_halves(ALEXNET, "lab")), PAPER, "224 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=two_halves(RESNET50, "lab")), PAPER, "224 px, the paper's larger one"),
}


def main():
    pretrain_images(CMCForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view, normalize=False)


if __name__ == "__main__":
    run_script(main)
