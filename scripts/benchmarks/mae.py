"""One MAE step against transformers' ViTMAEForPreTraining."""

from functools import partial
from statistics import median

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import ViTConfig, ViTMAEForPreTraining

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from . import sides
from .timing import device, interleave, place, timed, verdict

VIT_BASE = (224, 16, 768, 12), (512, 8, 16)
SIZES = {  # batch; image, patch, width and heads; width, layers and heads of the decoder; demanded in fp32 and bf16
    "tiny": (64, (32, 4, 192, 3), (128, 4, 4), (0.97, 1.45)),
    "base": (8, *VIT_BASE, (0.97, 1.5)),
    "base-128": (128, *VIT_BASE, (0.97, 1.5)),  # for a GPU
}


def our_model(size):
    _, (image, patch, width, heads), (decoder_width, layers, decoder_heads), _ = SIZES[size]
    vit = dict(image_size=image, patch_size=patch, hidden_size=width, num_hidden_layers=12, num_attention_heads=heads)
    config = MAEConfig(
        backbone_config=ViTConfig(**vit, intermediate_size=4 * width, layer_norm_eps=1e-6), attn_implementation="sdpa",
        decoder_hidden_size=decoder_width, decoder_num_hidden_layers=layers, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
    )  # fmt: skip
    torch.manual_seed(0)
    return MAEForPreTraining(config)


def images_and_noise(size):
    batch, (image, patch, *_), *_ = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, image, image, generator=generator)
    return images.to(device()), torch.rand(batch, (image // patch) ** 2, generator=generator).to(device())


def first_loss(model, size):
    images, noise = images_and_noise(size)
    with sides.exact_products():
        return model(images, noise=noise).loss.item()


def training_step(losses, optimizer):
    losses().backward()
    optimizer.step()
    optimizer.zero_grad()


def transformers_step(size, precision, fused, losses=None):
    """A function of nothing; the model's first loss goes to `losses`."""
    ours = our_model(size)
    model = ViTMAEForPreTraining(ours.config.vit_mae).train()
    model.load_state_dict(ours.state_dict())
    model.to(device())
    if losses is not None:
        losses.append(first_loss(model, size))
    images, _ = images_and_noise(size)

    def loss():
        with sides.autocast(precision):
            return model(images).loss

    # torch's is not fused unless one asks for it
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.05, fused=fused)
    return partial(training_step, loss, optimizer)


def our_step(size, precision, losses=None):
    """A step as hf_ssl/training/loop.py makes it."""
    AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
    accelerator = Accelerator(mixed_precision=sides.PRECISIONS[precision])
    model = our_model(size).train()
    choose_kernels(model, accelerator)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, 1e-4, TrainingArguments()))
    if losses is not None:
        losses.append(first_loss(model, size))
    images, _ = images_and_noise(size)
    seeds = torch.arange(len(images), device=device())
    return partial(training_step, lambda: model(images, sample_seeds=seeds).loss, optimizer)


def compare(size, rounds):
    losses = []
    variants = {
        "transformers fp32 sdpa, torch.optim.AdamW": transformers_step(size, "fp32", None, losses),
        "transformers fp32 sdpa, AdamW(fused=True)": transformers_step(size, "fp32", True, losses),
        "hf_ssl fp32, as its loop runs it": our_step(size, "fp32", losses),
        "hf_ssl bf16, as its loop runs it": our_step(size, "bf16", losses),
    }
    for loss, tolerance in zip(losses, (0, 1e-5, 1e-5, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses of equal weights, images and masks differ before the timing: {losses}.")
    seconds = interleave({name: partial(timed, run) for name, run in variants.items()}, rounds)
    plain, fused, fp32, bf16 = seconds.values()
    batch, *_, demands = SIZES[size]
    print(f"MAE {size}, batch {batch}, {place()}, {rounds} rounds, losses equal.")
    print(f"{'times as fast as transformers with':42s}torch.optim.AdamW  (of minima)  AdamW(fused=True)")
    for name, own in seconds.items():
        ratios = median(plain) / median(own), min(plain) / min(own), median(fused) / median(own)
        print("{:42s}{:16.2f}x {:11.2f}x {:17.2f}x".format(name, *ratios))
    for name, own, demand in zip(("fp32", "bf16"), (fp32, bf16), demands, strict=True):
        verdict(f"{name} over the reference", median(plain) / median(own), demand)
