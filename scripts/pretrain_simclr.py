"""Pretrain by SimCLR (Chen et al. 2020).

hf-ssl pretrain simclr                                       # the embedded images, a few minutes on a CPU
hf-ssl pretrain simclr --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain simclr --num_processes 8 --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 31250
"""

from hf_ssl import SimCLRForPreTraining
from hf_ssl.cli import RESNET18, Preset, pretrain_images, resnet8, two_views
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_views
from hf_ssl.training.arguments import TwoViewArguments

# section 2 and appendix B.6: batch 4096 in all (64 x 64 processes), 100 epochs, 10 of them warm-up
PAPER = dict(
    output_dir="outputs/simclr", views="simclr", optim="lars", learning_rate=0.3, weight_decay=1e-6,
    per_device_train_batch_size=64, num_train_epochs=100, warmup_steps=0.1,
)  # fmt: skip
# chosen by kNN and linear probes on held-out training images: SGD, weaker colours, no blur, a higher temperature
MINUTES = PAPER | dict(
    image_size=28, jitter_strength=0.5, blur_probability=0.0, optim="sgd", weight_decay=1e-4, num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# not the paper's: batches that one device holds, and the temperature that suits them (appendix B.7)
PHOTOS = PAPER | dict(image_size=96, per_device_train_batch_size=256, num_train_epochs=200)
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), temperature=0.2), MINUTES, "28 px, minutes on a CPU"),
    "resnet8x3": Preset(dict(backbone_config=resnet8(48), temperature=0.2), MINUTES, "the same, wider"),
    "resnet18": Preset(dict(backbone_config=RESNET18, temperature=0.2), PHOTOS, "96 px, thousands of photos"),
    "resnet50-v2": Preset(dict(projector_layers=3), PAPER, "224 px, the head of SimCLR v2"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's"),
}


def main():
    draw = {"views": save_views}  # as in the original, pixels stay in [0, 1]
    pretrain_images(
        SimCLRForPreTraining, PRESETS, TwoViewArguments, __doc__, two_views, normalize=False, pictures=draw
    )


if __name__ == "__main__":
    run_script(main)
