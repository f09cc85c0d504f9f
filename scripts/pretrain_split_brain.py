"""Pretrain by predicting some channels of an image from others, colours from lightness and the reverse (Zhang et al. 2017).

hf-ssl pretrain split_brain                                  # the embedded emoji, a few minutes on a CPU
hf-ssl pretrain split_brain --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain split_brain --config_overrides loss=regression --output_dir runs/regression
"""

from hf_ssl import SplitBrainForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# no file of the code says how the network was trained: colorization's settings, by the same authors
PAPER = dict(
    output_dir="outputs/split_brain", dataset_name="hf_ssl/samples/emoji", learning_rate=3e-5 * 256 / 40, adam_beta2=0.99,
    weight_decay=1e-3, lr_scheduler_type="step", min_crop_scale=0.2, image_size=180, per_device_train_batch_size=40,
    num_train_epochs=15,
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=32, learning_rate=4e-3, lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.05,
    per_device_train_batch_size=64, num_train_epochs=40, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(
    image_size=96,
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    per_device_train_batch_size=128,
    num_train_epochs=100,
)


def two_halves(whole):
    """The `backbone_config` of two halves of a network, each half as wide: the first sees L, the second a and b."""
    sizes = {"hidden_sizes": [width // 2 for width in whole["hidden_sizes"]]}
    if "embedding_size" in whole:
        sizes["embedding_size"] = whole["embedding_size"] // 2
    halves = dict(
        first_config=whole | sizes | dict(num_channels=1), second_config=whole | sizes | dict(num_channels=2)
    )
    return dict(model_type="ssl_two_halves", conversion="lab", **halves)


ALEXNET = dict(model_type="ssl_alexnet", hidden_sizes=[96, 256, 384, 384, 256])
LARGE = RESNET50 | dict(embedding_size=64, hidden_sizes=[256, 512, 1024, 2048])
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=two_halves(resnet8(32))), MINUTES, "32 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=two_halves(RESNET18)), PHOTOS, "96 px, thousands of photos"),
    "alexnet": Preset(dict(backbone_config=two_halves(ALEXNET), head_hidden_size=2048), PAPER, "180 px, the paper's"),
    "resnet50": Preset(dict(backbone_config=two_halves(LARGE)), PAPER, "180 px, the paper's method with a ResNet-50"),
}


def main():
    pretrain_images(
        SplitBrainForPreTraining, PRESETS, ImageArguments, __doc__, one_view, normalize=False, held_out=True
    )


if __name__ == "__main__":
    run_script(main)
