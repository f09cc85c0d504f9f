"""Pretrain by recognising one view of an image in another, lightness in colours (Tian et al. 2019).

hf-ssl pretrain cmc                                          # the embedded emoji, a few minutes on a CPU
hf-ssl pretrain cmc --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain cmc --dataset_name hf_ssl/samples/images --config_overrides backbone_config.conversion=gradients
"""

from hf_ssl import CMCForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# train_CMC.py: batches of 256, 400 epochs, a tenth of the rate late in training; crops and flips alone
PAPER = dict(
    output_dir="outputs/cmc", dataset_name="hf_ssl/samples/emoji", optim="sgd", learning_rate=0.03, weight_decay=1e-4,
    min_crop_scale=0.08, image_size=224, lr_scheduler_type="step", per_device_train_batch_size=256, num_train_epochs=400,
)  # fmt: skip
# instance discrimination's rate and decay; crops by kNN and probes on held-out emoji: jitter, which changes colours, gained less
MINUTES = PAPER | dict(
    image_size=32, learning_rate=0.24, weight_decay=5e-4, lr_scheduler_type="cosine", min_crop_scale=0.2,
    num_train_epochs=40, per_device_train_batch_size=64, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(
    image_size=96, weight_decay=5e-4, lr_scheduler_type="cosine", min_crop_scale=0.2, num_train_epochs=200
)


def two_halves(half):
    """The `backbone_config` of two networks like `half`: the first sees L, the second a and b."""
    halves = dict(first_config=half | dict(num_channels=1), second_config=half | dict(num_channels=2))
    return dict(model_type="ssl_two_halves", conversion="lab", **halves)


ALEXNET = dict(model_type="ssl_alexnet", hidden_sizes=[48, 128, 192, 192, 128])  # half as wide
SMALL = dict(backbone_config=two_halves(resnet8(32)), loss="softmax", temperature=0.1)
MEDIUM = dict(backbone_config=two_halves(RESNET18), noise_samples=4096, temperature=0.1)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "32 px, minutes on a CPU"),
    "resnet18": Preset(MEDIUM, PHOTOS, "96 px, thousands of photos"),
    "alexnet": Preset(dict(backbone_config=two_halves(ALEXNET)), PAPER, "224 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=two_halves(RESNET50)), PAPER, "224 px, the paper's larger one"),
}


def main():
    pretrain_images(CMCForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view, normalize=False)


if __name__ == "__main__":
    run_script(main)
