"""Pretrain by clustering features and telling the clusters apart (Caron et al. 2018).

hf-ssl pretrain deep_cluster                                 # the embedded images, a few minutes on a CPU
hf-ssl pretrain deep_cluster --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain deep_cluster --config_overrides num_clusters=50,reassign_epochs=1 --output_dir runs/coarse
"""

from hf_ssl import DeepClusterForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_clusters
from hf_ssl.training.arguments import TwoViewArguments

# main.sh and main.py: batches of 256, rate 0.05, constant, 200 epochs; torchvision's crops
PAPER = dict(
    output_dir="outputs/deep_cluster", optim="sgd", learning_rate=0.05, weight_decay=1e-5, lr_scheduler_type="constant",
    min_crop_scale=0.08, per_device_train_batch_size=256, num_train_epochs=200, eval_protocols="knn,linear_probe,clusters",
)  # fmt: skip
# rate and clusters by kNN and probes on held-out training images. The rate does not fall: each new head has to learn
MINUTES = PAPER | dict(
    image_size=28, views="moco_v1", learning_rate=0.2, min_crop_scale=None, num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SMALL = dict(backbone_config=resnet8(32), num_clusters=100, principal_components=32, reassign_epochs=2, head_rate=1.0)
PRESETS = {
    "resnet8x2": Preset(SMALL, MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(
        dict(backbone_config=RESNET18, num_clusters=1000), PAPER | dict(image_size=96), "96 px, thousands of photos"
    ),
    "alexnet": Preset(dict(sobel=True), PAPER, "224 px, the paper's, for a million images"),
}


NMI = {"nmi_with_previous": "with the clusters before", "nmi_with_labels": "with the labels"}


def main():
    pretrain_images(
        DeepClusterForPreTraining, PRESETS, TwoViewArguments, __doc__, one_view, pictures={"clusters": save_clusters},
        curves={"agreement": (NMI, "normalised mutual information")},
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
