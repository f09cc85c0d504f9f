"""Pretrain by colouring grey images (Zhang et al. 2016, Larsson et al. 2016).

hf-ssl pretrain colorization                                 # the embedded emoji, a few minutes on a CPU
hf-ssl pretrain colorization --backbone resnet18 --dataset_name path/to/images --output_dir runs/mine
hf-ssl pretrain colorization --config_overrides head=larsson,stages=0 --output_dir runs/larsson
"""

from hf_ssl import ColorizationForPreTraining
from hf_ssl.cli import RESNET18, Preset, one_view, pretrain_images, resnet8
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import ImageArguments

# solver.prototxt: batches of 40, Adam at 3e-5, here for 256; the rate falls to a tenth twice. That Adam's weight decay is part
# of the gradient, this one's is not
PAPER = dict(
    output_dir="outputs/colorization", dataset_name="hf_ssl/samples/emoji", learning_rate=3e-5 * 256 / 40, adam_beta2=0.99,
    weight_decay=1e-3, lr_scheduler_type="step", min_crop_scale=0.2, image_size=224, per_device_train_batch_size=40,
    num_train_epochs=15,
)  # fmt: skip
MINUTES = PAPER | dict(
    image_size=32, learning_rate=4e-3, lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.05,
    per_device_train_batch_size=64, num_train_epochs=40, cpu_threads=1, dataloader_num_workers=1,
)  # fmt: skip
PHOTOS = PAPER | dict(
    image_size=96,
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    per_device_train_batch_size=128,
    num_train_epochs=100,
)
LARSSON = dict(head="larsson", stages=0, head_hidden_size=1024)
PRESETS = {
    # with the paper's 0.5, after 12 epochs, colours were farther from the true ones than grey is
    "resnet8x2": Preset(dict(backbone_config=resnet8(32), uniform=1.0), MINUTES, "32 px, minutes on a CPU"),
    "resnet18": Preset(dict(backbone_config=RESNET18), PHOTOS, "96 px, thousands of photos"),
    "alexnet": Preset(
        dict(backbone_config=dict(model_type="ssl_alexnet")), PAPER, "224 px, as the papers are compared"
    ),
    "resnet50": Preset({}, PAPER, "224 px, Zhang's recipe with a ResNet-50"),
    "resnet50-larsson": Preset(LARSSON, PAPER | dict(per_device_train_batch_size=8), "224 px, Larsson's head"),
}


def main():
    pretrain_images(
        ColorizationForPreTraining, PRESETS, ImageArguments, __doc__, one_view, normalize=False, held_out=True
    )


if __name__ == "__main__":
    run_script(main)
