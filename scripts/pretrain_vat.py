"""Train a classifier on few labels and many images whose worst small change is to change nothing (Miyato et al. 2017).

hf-ssl pretrain vat                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain vat --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain vat --config_overrides entropy_weight=0,balance_weight=0 --output_dir runs/vat_alone
"""

from hf_ssl import VATForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_with_labels, resnet8
from hf_ssl.errors import run_script

# train_semisup.py: Adam at 1e-3 for 32 labelled images beside 128, 400 steps an epoch, 500 epochs on CIFAR-10
PAPER = dict(
    output_dir="outputs/vat", views="weak", optim="adamw", learning_rate=2e-3, weight_decay=0.0, adam_beta2=0.999,
    per_device_train_batch_size=128, unlabelled_per_label=4, max_steps=200_000, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=2000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# by accuracy on other training images: weights of the entropies of 1 and 2, or twice the epsilon, gave about as much; with
# three channels it gained 0.8 points instead of 2.3, since the worst change of a grey image is then a colour, which none has
SMALL = dict(backbone_config=resnet8(16) | dict(num_channels=1), epsilon=1.4, entropy_weight=0.3, balance_weight=0.6)
PHOTOS = PAPER | dict(image_size=96, max_steps=200_000)
PRESETS = {
    "resnet8": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(VATForPreTraining, PRESETS, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
