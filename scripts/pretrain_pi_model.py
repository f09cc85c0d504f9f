"""Train a classifier on few labels and many images, whose two views are to be classified alike (Laine and Aila 2016).

hf-ssl pretrain pi_model                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain pi_model --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain pi_model --label_fraction 0.1 --output_dir runs/tenth
"""

from hf_ssl import PiModelForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_with_labels, resnet8, two_views
from hf_ssl.errors import run_script

# train.py: Adam at 0.003 for a batch of 100, 300 epochs
PAPER = dict(
    output_dir="outputs/pi_model", views="weak", optim="adamw", learning_rate=7.7e-3, weight_decay=0.0, adam_beta2=0.999,
    per_device_train_batch_size=100, unlabelled_per_label=1, num_train_epochs=300, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, views="weak_and_strong", optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=2000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# by accuracy on other training images: without separate statistics it gained nothing
SMALL = dict(
    backbone_config=resnet8(32), consistency_weight=20.0, ramp_end=0.4, align_classes=True, temperature=0.5,
    separate_statistics=True,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, num_train_epochs=300)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(PiModelForPreTraining, PRESETS, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
