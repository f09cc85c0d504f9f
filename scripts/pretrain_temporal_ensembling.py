"""Train a classifier on few labels and many images that are classified as in earlier epochs (Laine and Aila 2016).

hf-ssl pretrain temporal_ensembling                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain temporal_ensembling --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain temporal_ensembling --label_fraction 1 --label_noise 0.5 --output_dir runs/noise
"""

from hf_ssl import TemporalEnsemblingForPreTraining
from hf_ssl.cli import RESNET18, Preset, last_view, pretrain_with_labels, resnet8
from hf_ssl.errors import run_script

# train.py: Adam at 0.003 for a batch of 100, 300 epochs
PAPER = dict(
    output_dir="outputs/temporal_ensembling", views="weak", learning_rate=7.7e-3, weight_decay=0.0, adam_beta2=0.999,
    per_device_train_batch_size=100, unlabelled_per_label=1, num_train_epochs=300, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, views="weak_and_strong", optim="adamw", learning_rate=3e-3, weight_decay=0.02, per_device_train_batch_size=96,
    unlabelled_per_label=6, max_steps=2000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# by accuracy on other training images: weak views gained half as much
SMALL = dict(
    backbone_config=resnet8(16), consistency_weight=20.0, ramp_end=0.4, align_classes=True, temperature=0.5,
    separate_statistics=True,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, num_train_epochs=300)
PRESETS = {
    "resnet8": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(TemporalEnsemblingForPreTraining, PRESETS, __doc__, last_view)


if __name__ == "__main__":
    run_script(main)
