"""Train a classifier on few labels, and on how many images are turned (Zhai et al. 2019).

hf-ssl pretrain s4l                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain s4l --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain s4l --config_overrides rotation_weight=0.3 --output_dir runs/less
"""

from hf_ssl import S4LForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_with_labels, resnet8
from hf_ssl.errors import run_script

# config/s4l_rotation.sh: 256 labelled images beside 256, 200 epochs; the crop is Inception's
PAPER = dict(
    output_dir="outputs/s4l", views=None, min_crop_scale=0.05, optim="sgd", learning_rate=0.03, weight_decay=1e-3,
    per_device_train_batch_size=256, unlabelled_per_label=1, num_train_epochs=200, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, views="weak", min_crop_scale=None, optim="adamw", learning_rate=0.018, weight_decay=0.02,
    per_device_train_batch_size=16, unlabelled_per_label=1, max_steps=1500, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# by accuracy on other training images: rotated labelled ones too, it was 4 points below the labels alone
SMALL = dict(backbone_config=resnet8(16), rotate_labelled=False)
PHOTOS = PAPER | dict(image_size=96, num_train_epochs=200)
PRESETS = {
    "resnet8": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(S4LForPreTraining, PRESETS, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
