"""Pretrain a masked autoencoder (He et al. 2021).

accelerate launch scripts/pretrain_mae.py                    # the embedded images, a few minutes on a CPU
accelerate launch scripts/pretrain_mae.py --dataset_name path/to/images --output_dir runs/mine
accelerate launch scripts/pretrain_mae.py --backbone vit-base --dataset_name ILSVRC/imagenet-1k --streaming --max_steps 250000
"""

from functools import partial

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.cli import build_model, image_data, parse_arguments, view_size
from hf_ssl.data import RandomResizedCropAndFlip, image_processor
from hf_ssl.errors import run_script
from hf_ssl.evaluation.pictures import save_reconstructions
from hf_ssl.hub.release import finish_run, push_save
from hf_ssl.training.arguments import ImageArguments
from hf_ssl.training.loop import train


def vit(width, layers, heads, image_size=224, patch_size=16):
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width)
    return dict(model_type="vit", image_size=image_size, patch_size=patch_size, layer_norm_eps=1e-6, **sizes)


# appendix A.1, table 8: batch 4096 in all (64 x 64 processes, or accumulated), 800 epochs, 40 of them warm-up
PAPER = dict(output_dir="outputs/mae", per_device_train_batch_size=64, num_train_epochs=800, warmup_steps=0.05)
SMALL = dict(
    backbone_config=vit(128, 4, 4, image_size=28, patch_size=7), norm_pix_loss=False, decoder_hidden_size=64,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=256,
)  # fmt: skip
# chosen by linear probes on held-out training images: weaker crops, plain pixels, a higher rate
MINUTES = dict(
    cpu_threads=1,
    dataloader_num_workers=1,
    num_train_epochs=25,
    per_device_train_batch_size=128,
    learning_rate=6e-3,
    warmup_steps=0.1,
    min_crop_scale=0.6,
)
RECIPES = {
    "vit-tiny-28": (SMALL, PAPER | MINUTES),
    "vit-base": (dict(backbone_config=vit(768, 12, 12)), PAPER),
    "vit-large": (dict(backbone_config=vit(1024, 24, 16)), PAPER),
    "vit-huge": (dict(backbone_config=vit(1280, 32, 16, patch_size=14)), PAPER),
}


def main():
    config, args = parse_arguments(MAEConfig, RECIPES, ImageArguments, __doc__)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels)
    scale = (args.min_crop_scale or 0.2, 1.0)
    view = RandomResizedCropAndFlip(size, processor.image_mean, processor.image_std, scale)  # the only augmentation
    rows, decoder = image_data(args, channels, view)
    model = build_model(MAEForPreTraining, config, args)
    run = train(model, rows, decoder, args, on_save=partial(push_save, processor))
    finish_run(run, processor, {"reconstructions": partial(save_reconstructions, run.model, rows, decoder, processor)})


if __name__ == "__main__":
    run_script(main)
