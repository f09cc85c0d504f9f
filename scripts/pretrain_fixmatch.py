"""Train a classifier on few labels and many images by weak and strong augmentation (Sohn et al. 2020).

hf-ssl pretrain fixmatch                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain fixmatch --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain fixmatch --backbone outputs/simclr --output_dir runs/pretrained
"""

from hf_ssl import FixMatchForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_with_labels, resnet8, two_views
from hf_ssl.errors import run_script

# table 4 and appendix B.3: 64 labelled images beside 448, 2^20 steps
PAPER = dict(
    output_dir="outputs/fixmatch", views="weak_and_strong", optim="sgd", learning_rate=0.017, weight_decay=5e-4,
    per_device_train_batch_size=448, unlabelled_per_label=7, max_steps=2**20, eval_protocols="accuracy",
)  # fmt: skip
# aligned classes and separate statistics by accuracy on other training images; half the width, or twice the steps, gave as much
MINUTES = PAPER | dict(
    image_size=28, optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=1000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, max_steps=2**16)
PRESETS = {
    "resnet8x2": Preset(
        dict(backbone_config=resnet8(32), threshold=0.8, align_classes=True, separate_statistics=True, momentum=0.99),
        MINUTES,
        "28 px, minutes on a CPU",
    ),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(FixMatchForPreTraining, PRESETS, __doc__, two_views)


if __name__ == "__main__":
    run_script(main)
