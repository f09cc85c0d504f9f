"""Train a classifier on few labels and many images by an averaged teacher (Tarvainen and Valpola 2017).

hf-ssl pretrain mean_teacher                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain mean_teacher --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain mean_teacher --backbone outputs/simclr --output_dir runs/pretrained
"""

from hf_ssl import MeanTeacherForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_with_labels, resnet8, two_views
from hf_ssl.errors import run_script

# ImageNet of the paper's appendix: 100 labelled images beside 100
PAPER = dict(
    output_dir="outputs/mean_teacher", views="weak", optim="sgd", learning_rate=0.05, weight_decay=1e-4,
    per_device_train_batch_size=200, unlabelled_per_label=1, num_train_epochs=180, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, views="weak_and_strong", optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=2000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# by accuracy on other training images: 1.8 points more than 1,000 steps, the mean of three seeds
SMALL = dict(
    backbone_config=resnet8(32), consistency_weight=20.0, ramp_end=0.4, final_momentum=0.99, align_classes=True,
    temperature=0.5, separate_statistics=True,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, num_train_epochs=300)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(MeanTeacherForPreTraining, PRESETS, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
