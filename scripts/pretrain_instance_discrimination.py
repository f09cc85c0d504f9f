"""Pretrain by telling images apart, each a class of its own, by a memory bank (Wu et al. 2018).

hf-ssl pretrain instance_discrimination                      # the embedded images, a few minutes on a CPU
hf-ssl pretrain instance_discrimination --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain instance_discrimination --config_overrides loss=nce --output_dir runs/nce
"""

from hf_ssl import InstanceDiscriminationForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# main.py: batch 256, 200 epochs, a tenth of the rate after 120 and 160; the augmentation is MoCo v1's
PAPER = dict(
    output_dir="outputs/instance_discrimination", views="moco_v1", optim="sgd", learning_rate=0.03, weight_decay=1e-4,
    lr_scheduler_type="step", per_device_train_batch_size=256, num_train_epochs=200,
)  # fmt: skip
# the whole bank costs less here than 4096 draws; rate and temperature by kNN and probes on held-out training images
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.24, weight_decay=5e-4, lr_scheduler_type="cosine", num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# cifar.py: temperature 0.1
PHOTOS = PAPER | dict(image_size=96, weight_decay=5e-4, lr_scheduler_type="cosine")
PRESETS = {
    "resnet8x2": Preset(
        dict(backbone_config=resnet8(32), loss="softmax", temperature=0.1), MINUTES, "28 px, minutes on a CPU"
    ),
    "resnet18": Preset(dict(backbone_config=RESNET18, temperature=0.1), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's"),
}


def main():
    pretrain_images(InstanceDiscriminationForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
