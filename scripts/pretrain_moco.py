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
from hf_ssl.hub.release import finish_run, push_save
from hf_ssl.training.arguments import TwoViewArguments
from hf_ssl.training.loop import train

# main_moco.py: batch 256 on 8 GPUs, 200 epochs; the original's cosine falls once an epoch, ours once a step
V2 = dict(
    output_dir="outputs/moco", views="moco_v2", optim="sgd", learning_rate=0.03, weight_decay=1e-4,
    per_device_train_batch_size=32, num_train_epochs=200,
)  # fmt: skip
V1 = V2 | dict(views="moco_v1", lr_scheduler_type="step")


def resnet8(width):
    """Three stages of one block, for images of about 32 pixels."""
    sizes = dict(embedding_size=width // 2, hidden_sizes=[width, 2 * width, 4 * width], depths=[1, 1, 1])
    return dict(model_type="ssl_resnet", **sizes, layer_type="basic", downsample_in_first_stage=True)


# chosen by kNN and linear probes on held-out training images; short runs want a short queue and a quick key encoder
MINUTES = V2 | dict(
    image_size=28, blur_probability=0.0, learning_rate=0.06, weight_decay=5e-4, num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
SHORT = dict(queue_size=1024, momentum=0.97)
RECIPES = {
    "resnet8x2": (dict(backbone_config=resnet8(32), **SHORT), MINUTES),
    "resnet8x3": (dict(backbone_config=resnet8(48), **SHORT), MINUTES),
    "resnet50-v1": (dict(projector_layers=1, temperature=0.07), V1),
    "resnet50": ({}, V2),
}


def main():
    config, args = parse_arguments(MoCoConfig, RECIPES, TwoViewArguments, __doc__)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels)
    rows, decoder = image_data(args, channels, two_views(args, size, processor))
    model = build_model(MoCoForPreTraining, config, args)
    run = train(model, rows, decoder, args, on_save=partial(push_save, processor))
    finish_run(run, processor, {"views": partial(save_views, rows, decoder)})


if __name__ == "__main__":
    run_script(main)
