"""Train a classifier on few labels and many images by strong augmentation and its own predictions (Xie et al. 2019).

hf-ssl pretrain uda                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain uda --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain uda --config_overrides signal_annealing=none --output_dir runs/all_labels
"""

from hf_ssl import UDAForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_with_labels, resnet8, two_views
from hf_ssl.errors import run_script

# image/main.py on CIFAR-10: 64 labelled images beside 320, 400,000 steps
PAPER = dict(
    output_dir="outputs/uda", views="weak_and_strong", optim="sgd", learning_rate=0.024, weight_decay=5e-4,
    per_device_train_batch_size=320, unlabelled_per_label=5, max_steps=400_000, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=1000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# what FixMatch's recipe has, not searched; no annealing, as of a hundred labels few would be left to learn from
SMALL = dict(backbone_config=resnet8(32), signal_annealing="none", align_classes=True, separate_statistics=True)
PHOTOS = PAPER | dict(image_size=96, max_steps=2**16)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(UDAForPreTraining, PRESETS, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
