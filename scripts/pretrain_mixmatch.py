"""Train a classifier on few labels and mixtures with many images (Berthelot et al. 2019).

hf-ssl pretrain mixmatch                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain mixmatch --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain mixmatch --config_overrides mixed=none --output_dir runs/unmixed
"""

from hf_ssl import MixMatchForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_with_labels, resnet8, two_views
from hf_ssl.errors import run_script

# mixmatch.py: Adam at 2e-3 for 64 labelled images beside 64, 2^20 steps
PAPER = dict(
    output_dir="outputs/mixmatch", views="weak", optim="adamw", learning_rate=8e-3, weight_decay=0.02, adam_beta2=0.999,
    per_device_train_batch_size=64, unlabelled_per_label=1, max_steps=2**20, eval_protocols="accuracy",
)  # fmt: skip
# weight, ramp and aligned classes by accuracy on held-out training images; half the width was 0.8 points worse, in more steps
MINUTES = PAPER | dict(
    image_size=28, optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=30,
    unlabelled_per_label=1, max_steps=1200, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, max_steps=2**16)
PRESETS = {
    "resnet8x2": Preset(
        dict(backbone_config=resnet8(32), unlabelled_weight=50.0, ramp_end=1.0, align_classes=True, momentum=0.99),
        MINUTES,
        "28 px, minutes on a CPU",
    ),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(MixMatchForPreTraining, PRESETS, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
