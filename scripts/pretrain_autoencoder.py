"""Pretrain an autoencoder: denoising (Vincent et al. 2010), plain or sparse.

hf-ssl pretrain autoencoder                                  # denoising, the embedded images, a few minutes on a CPU
hf-ssl pretrain autoencoder --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain autoencoder --config_overrides corruption=none,sparsity=kl --output_dir runs/sparse
"""

from hf_ssl import AutoencoderForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# the papers' networks are fully connected and trained layer by layer: rate and batch are a DCGAN's, for both halves
PHOTOS = dict(
    output_dir="outputs/autoencoder", learning_rate=0.002, adam_beta2=0.999, weight_decay=0.0, min_crop_scale=0.2,
    image_size=96, per_device_train_batch_size=128, num_train_epochs=100,
)  # fmt: skip
MINUTES = PHOTOS | dict(
    image_size=28, learning_rate=0.004, min_crop_scale=0.6, num_train_epochs=10, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
# the best of Gaussian noise, masking and salt and pepper, by kNN and probes on held-out training images; none was as good
DENOISING = dict(corruption="gaussian", corruption_level=0.3)
PRESETS = {
    "resnet8x2": Preset(
        DENOISING | dict(backbone_config=resnet8(32), code_size=64, decoder_hidden_size=32), MINUTES, "28 px, minutes on a CPU"
    ),
    "resnet18": Preset(DENOISING | dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet50": Preset(DENOISING | dict(backbone_config=RESNET50), PHOTOS | dict(image_size=224), "224 px"),
}  # fmt: skip


def main():
    pretrain_images(AutoencoderForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
