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
from hf_ssl.hub import finish_run
from hf_ssl.training import train

# section 2 and appendix B.6: batch 4096 in all (64 x 64 processes), 100 epochs, 10 of them warm-up
PAPER = dict(
    output_dir="outputs/simclr", views="simclr", optim="lars", learning_rate=0.3, weight_decay=1e-6,
    per_device_train_batch_size=64, num_train_epochs=100, warmup_steps=0.1,
)  # fmt: skip
SMALL = dict(
    backbone_config=dict(
        model_type="ssl_resnet", embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    temperature=0.2,
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=28, per_device_train_batch_size=128, num_train_epochs=12, optim="adamw", learning_rate=2e-3,
    weight_decay=1e-4, blur_probability=0.0, jitter_strength=0.5, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
RECIPES = {
    "resnet-small": (SMALL, MINUTES),
    "resnet50-v2": (dict(projector_layers=3), PAPER),
    "resnet50": ({}, PAPER),
}


def main():
    config, args = parse_arguments(SimCLRConfig, RECIPES, __doc__)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels, normalize=False)  # as in the original, pixels stay in [0, 1]
    rows, decoder = image_data(args, channels, two_views(args, size, processor))
    run = train(build_model(SimCLRForPreTraining, config, args), rows, decoder, args)
    finish_run(run, processor, {"views": partial(save_views, rows, decoder)})


if __name__ == "__main__":
    run_script(main)
