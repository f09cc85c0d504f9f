"""Pretrain by SimCLR (Chen et al. 2020).

accelerate launch scripts/pretrain_simclr.py                 # the embedded images, a few minutes on a CPU
accelerate launch scripts/pretrain_simclr.py --dataset_name path/to/images --output_dir runs/mine
accelerate launch scripts/pretrain_simclr.py --backbone resnet50 --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 31250
"""

from functools import partial

from hf_ssl import SimCLRConfig, SimCLRForPreTraining
from hf_ssl.cli import build_model, image_data, parse_arguments, two_views, view_size
from hf_ssl.data import image_processor
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_views
from hf_ssl.hub.release import finish_run, push_save
from hf_ssl.training.arguments import TwoViewArguments
from hf_ssl.training.loop import train

# section 2 and appendix B.6: batch 4096 in all (64 x 64 processes), 100 epochs, 10 of them warm-up
PAPER = dict(
    output_dir="outputs/simclr", views="simclr", optim="lars", learning_rate=0.3, weight_decay=1e-6,
    per_device_train_batch_size=64, num_train_epochs=100, warmup_steps=0.1,
)  # fmt: skip


def resnet8(width):
    """Three stages of one block, for images of about 32 pixels."""
    sizes = dict(embedding_size=width // 2, hidden_sizes=[width, 2 * width, 4 * width], depths=[1, 1, 1])
    return dict(model_type="ssl_resnet", **sizes, layer_type="basic", downsample_in_first_stage=True)


# chosen by kNN and linear probes on held-out training images: SGD, weaker colours, no blur, a higher temperature
MINUTES = PAPER | dict(
    image_size=28, jitter_strength=0.5, blur_probability=0.0, optim="sgd", weight_decay=1e-4, num_train_epochs=16,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
RECIPES = {
    "resnet8x2": (dict(backbone_config=resnet8(32), temperature=0.2), MINUTES),
    "resnet8x3": (dict(backbone_config=resnet8(48), temperature=0.2), MINUTES),
    "resnet50-v2": (dict(projector_layers=3), PAPER),
    "resnet50": ({}, PAPER),
}


def main():
    config, args = parse_arguments(SimCLRConfig, RECIPES, TwoViewArguments, __doc__)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels, normalize=False)  # as in the original, pixels stay in [0, 1]
    rows, decoder = image_data(args, channels, two_views(args, size, processor))
    model = build_model(SimCLRForPreTraining, config, args)
    run = train(model, rows, decoder, args, on_save=partial(push_save, processor))
    finish_run(run, processor, {"views": partial(save_views, rows, decoder)})


if __name__ == "__main__":
    run_script(main)
