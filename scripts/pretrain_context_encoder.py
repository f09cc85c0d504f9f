"""Pretrain by filling in holes (Pathak et al. 2016).

hf-ssl pretrain context_encoder                              # the embedded images, a few minutes on a CPU
hf-ssl pretrain context_encoder --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain context_encoder --config_overrides hole=centre,overlap=2,adversarial_weight=0.001 --output_dir runs/looks
"""

from hf_ssl import ContextEncoderForPreTraining
from hf_ssl.cli import RESNET18, RESNET50, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# train.lua: batches of 64, Adam with beta1 0.5, 500 epochs, a rate of 0.002 for the generator
PAPER = dict(
    output_dir="outputs/context_encoder", learning_rate=0.008, adam_beta1=0.5, adam_beta2=0.999, weight_decay=0.0,
    lr_scheduler_type="constant", min_crop_scale=0.2, per_device_train_batch_size=64, num_train_epochs=500,
)  # fmt: skip
# by kNN and probes on held-out training images, of one trial: a lower rate, which falls, and weaker crops
MINUTES = PAPER | dict(
    image_size=28, learning_rate=0.004, lr_scheduler_type="cosine", min_crop_scale=0.6, num_train_epochs=10,
    per_device_train_batch_size=128, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(image_size=96, learning_rate=0.002, lr_scheduler_type="cosine", num_train_epochs=200)
LOOKS = dict(hole="centre", overlap=4, adversarial_weight=0.001)  # of the paper's section 3.2, for 128 px
PRESETS = {
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), decoder_hidden_size=32), MINUTES, "28 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "resnet18-looks": Preset(
        LOOKS | dict(backbone_config=RESNET18), PHOTOS | dict(image_size=128), "128 px, the paper's hole and adversary"
    ),
    "alexnet": Preset({}, PAPER | dict(image_size=227), "227 px, the paper's for features"),
    "resnet50": Preset(dict(backbone_config=RESNET50), PAPER, "224 px, the paper's recipe with a ResNet-50"),
}


def main():
    pretrain_images(ContextEncoderForPreTraining, PRESETS, ImageArguments, __doc__, one_view)


if __name__ == "__main__":
    run_script(main)
