"""Pretrain by mutual information between a vector and the places of a map (Hjelm et al. 2018).

hf-ssl pretrain deep_infomax                                 # the embedded images, a few minutes on a CPU
hf-ssl pretrain deep_infomax --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain deep_infomax --backbone resnet18 --config_overrides estimator=jsd --dataset_name path/to/images
"""

from hf_ssl import DeepInfoMaxForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# the official code's Adam at 1e-4 for batches of 64, 4e-4 for the 256 that rates are given for
PAPER = dict(
    output_dir="outputs/deep_infomax", learning_rate=4e-4, weight_decay=0.0, lr_scheduler_type="constant",
    per_device_train_batch_size=64, num_train_epochs=1000, image_size=64,
)  # fmt: skip
# rate, map and sizes by kNN and probes on held-out training images; without the prior, with which no trial was best
MINUTES = PAPER | dict(
    image_size=28, learning_rate=4e-3, lr_scheduler_type="cosine", num_train_epochs=10, cpu_threads=1,
    dataloader_num_workers=1,
)  # fmt: skip
SMALL = dict(
    backbone_config=resnet8(32), estimator="nce", prior_weight=0.0, vector_size=16, critic_size=256,
    head_hidden_size=256,
)  # fmt: skip
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, estimator="nce"),
        PAPER | dict(image_size=96, num_train_epochs=200),
        "96 px, thousands of photos",
    ),
    "resnet50": Preset(dict(backbone_config=RESNET50), PAPER, "64 px, the paper's objective with a ResNet-50"),
}


def main():
    pretrain_images(DeepInfoMaxForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
