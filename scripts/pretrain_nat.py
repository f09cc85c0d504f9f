"""Pretrain by noise as targets: each image a random point of the sphere, exchanged for nearer ones (Bojanowski and Joulin 2017).

hf-ssl pretrain nat                                          # the embedded images, a few minutes on a CPU
hf-ssl pretrain nat --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain nat --num_processes 4 --backbone alexnet --dataset_name ILSVRC/imagenet-1k --per_device_train_batch_size 64
"""

from hf_ssl import NATForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import TwoViewArguments

# main.lua: batch 256, rate 0.01, neither momentum nor weight decay, 100 epochs
PAPER = dict(
    output_dir="outputs/nat", optim="sgd", momentum=0.0, learning_rate=0.01, weight_decay=0.0, lr_scheduler_type="constant",
    per_device_train_batch_size=256, num_train_epochs=100,
)  # fmt: skip
# rate, views and the small sphere, on which batches of minutes can place images, by kNN and probes on held-out
# training images
MINUTES = PAPER | dict(
    image_size=28, views="moco_v1", momentum=0.9, learning_rate=0.0015, weight_decay=5e-4, lr_scheduler_type="cosine",
    warmup_steps=0.1, num_train_epochs=16, per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), projection_size=16), MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, projection_size=512, sobel=True), PAPER | dict(image_size=96), "96 px, thousands of photos"
    ),
    "alexnet": Preset(dict(sobel=True), PAPER, "224 px, the paper's"),
}  # fmt: skip


def main():
    pretrain_images(NATForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
