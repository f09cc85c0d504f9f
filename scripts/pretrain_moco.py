"""Pretrain by momentum contrast (MoCo v1 and v2; He et al. 2019, Chen et al. 2020).

hf-ssl pretrain moco                                         # the embedded images, a few minutes on a CPU
hf-ssl pretrain moco --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain moco --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 1000000
"""

from hf_ssl import MoCoForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8, two_views
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_views
from hf_ssl.training.arguments import TwoViewArguments

# main_moco.py: batch 256 on 8 GPUs, 200 epochs; the original's cosine falls once an epoch, ours once a step
V2 = dict(
    output_dir="outputs/moco", views="moco_v2", optim="sgd", learning_rate=0.03, weight_decay=1e-4,
    per_device_train_batch_size=32, num_train_epochs=200,
)  # fmt: skip
V1 = V2 | dict(views="moco_v1", lr_scheduler_type="step")
# chosen by kNN and linear probes on held-out training images; short runs want a short queue and a quick key encoder
MINUTES = V2 | dict(
    image_size=28, blur_probability=0.0, learning_rate=0.06, weight_decay=5e-4, num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SHORT = dict(queue_size=1024, momentum=0.97)
# the authors' demonstration on CIFAR-10, moco_cifar10_demo.ipynb: 50,000 images, 200 epochs
PHOTOS = V2 | dict(image_size=96, weight_decay=5e-4, per_device_train_batch_size=256)
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), **SHORT), MINUTES, "28 px, minutes on a CPU"),
    "resnet8x3": Preset(dict(backbone_config=resnet8(48), **SHORT), MINUTES, "the same, wider"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, queue_size=4096, momentum=0.99, temperature=0.1), PHOTOS, "96 px, thousands of photos"
    ),
    "resnet50-v1": Preset(dict(projector_layers=1, temperature=0.07), V1, "224 px, the first paper's"),
    "resnet50": Preset({}, V2, "224 px, the second paper's"),
}  # fmt: skip


def main():
    pretrain_images(MoCoForPreTraining, PRESETS, TwoViewArguments, __doc__, two_views, pictures={"views": save_views})


if __name__ == "__main__":
    run_script(main)
