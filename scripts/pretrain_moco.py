"""Pretrain by momentum contrast (MoCo v1 and v2; He et al. 2019, Chen et al. 2020).

accelerate launch scripts/pretrain_moco.py                   # the embedded images, a few minutes on a CPU
accelerate launch scripts/pretrain_moco.py --dataset_name path/to/images --output_dir runs/mine
accelerate launch scripts/pretrain_moco.py --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 1000000
"""

from functools import partial

from hf_ssl import MoCoConfig, MoCoForPreTraining
from hf_ssl.cli import build_model, image_data, parse_arguments, two_views, view_size
from hf_ssl.data import image_processor
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_views
from hf_ssl.hub import finish_run
from hf_ssl.training import train

# main_moco.py: batch 256 on 8 GPUs, 200 epochs; the original's cosine falls once an epoch, ours once a step
V2 = dict(
    output_dir="outputs/moco", views="moco_v2", optim="sgd", learning_rate=0.03, weight_decay=1e-4,
    per_device_train_batch_size=32, num_train_epochs=200,
)  # fmt: skip
V1 = V2 | dict(views="moco_v1", lr_scheduler_type="step")
SMALL = dict(
    backbone_config=dict(
        model_type="ssl_resnet", embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    queue_size=4096, momentum=0.99,
)  # fmt: skip
MINUTES = V2 | dict(
    image_size=28, per_device_train_batch_size=128, num_train_epochs=12, learning_rate=0.06, weight_decay=5e-4,
    blur_probability=0.0, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
RECIPES = {
    "resnet-small": (SMALL, MINUTES),
    "resnet50-v1": (dict(projector_layers=1, temperature=0.07), V1),
    "resnet50": ({}, V2),
}


def main():
    config, args = parse_arguments(MoCoConfig, RECIPES, __doc__)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels)
    rows, decoder = image_data(args, channels, two_views(args, size, processor))
    run = train(build_model(MoCoForPreTraining, config, args), rows, decoder, args)
    finish_run(run, processor, {"views": partial(save_views, rows, decoder)})


if __name__ == "__main__":
    run_script(main)
