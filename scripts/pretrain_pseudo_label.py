"""Train a classifier on few labels and many images that it labels itself (Lee 2013).

hf-ssl pretrain pseudo_label                                  # 100 labels of the embedded images, minutes on a CPU
hf-ssl pretrain pseudo_label --backbone resnet18 --dataset_name path/to/images --labels 250 --output_dir runs/mine
hf-ssl pretrain pseudo_label --config_overrides threshold=0.95,unlabelled_weight=1 --output_dir runs/threshold
"""

from hf_ssl import PseudoLabelForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_with_labels, resnet8
from hf_ssl.errors import run_script

# of Oliver et al., whose setting is today's: Adam at 3e-3 for a batch of 100, 500,000 steps
PAPER = dict(
    output_dir="outputs/pseudo_label", views="weak", optim="adamw", learning_rate=7.7e-3, weight_decay=0.0, adam_beta2=0.999,
    per_device_train_batch_size=100, unlabelled_per_label=1, max_steps=500_000, eval_protocols="accuracy",
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, optim="adamw", learning_rate=6e-3, weight_decay=0.02, per_device_train_batch_size=48,
    unlabelled_per_label=3, max_steps=1000, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# what FixMatch's recipe has, not searched; the ramp of Oliver et al.
SMALL = dict(
    backbone_config=resnet8(32), threshold=0.8, unlabelled_weight=1.0, ramp_start=0.0, ramp_end=0.4, align_classes=True,
    separate_statistics=True,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, max_steps=2**16)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset({}, PAPER, "224 px, the paper's settings"),
}


def main():
    pretrain_with_labels(PseudoLabelForPreTraining, PRESETS, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
