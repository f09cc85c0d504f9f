"""What a step of ours and a step of lightly's have in common: networks of the same shape, and the optimizer's settings."""

from functools import partial
from statistics import median

import torch
import torchvision
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import ResNetConfig

from hf_ssl.hub.conversion.torchvision_resnet import torchvision_name
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from .timing import device, peak_memory

PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # name -> Accelerate's name
RESNETS = {  # depth -> what differs from transformers' default
    18: dict(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
    50: {},
}
RATE, SGD = 0.03, dict(momentum=0.9, weight_decay=1e-4)
PROCESSES = 3  # fresh ones, at most, that memory is measured in


def native_config(depth):
    return ResNetConfig(**RESNETS[depth])


def torchvision_backbone(depth, weights=None):
    """torchvision's ResNet without its classifier, on the device; the width of its features. weights: of a model of ours."""
    network = getattr(torchvision.models, f"resnet{depth}")()
    width, network.fc = network.fc.in_features, nn.Identity()
    if weights:
        own = part_of(weights, "backbone.")
        network.load_state_dict({torchvision_name(name): value for name, value in own.items()})
    return network.to(device()), width


def part_of(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def our_step(model, precision, **settings):
    """A function of a batch that does what one turn of the loop in hf_ssl/training/loop.py does, and returns the loss."""
    AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
    accelerator = Accelerator(mixed_precision=PRECISIONS[precision])
    choose_kernels(model, accelerator)
    optimizer = build_optimizer(model, RATE, TrainingArguments(**SGD | {"optim": "sgd"} | settings))
    prepared = accelerator.prepare(model.train())

    def step(pixel_values, pixel_values_2, sample_seeds):
        with accelerator.accumulate(prepared):
            loss = prepared(pixel_values=pixel_values, pixel_values_2=pixel_values_2, sample_seeds=sample_seeds).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        model.after_step(0.0)
        return loss.detach()

    return step


def lightly_optimizer(parameters):
    return torch.optim.SGD(parameters, RATE, **SGD)  # torch's choice: a loop over the weights on a CPU


def autocast(precision):
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")


def exact_products():
    """For values that are compared before the timing: convolutions of a device are not rounded to TF32, torch's default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def noise(size):
    """Two views and the seeds of their samples."""
    shape = size.batch, 3, size.pixels, size.pixels
    return tuple(x.to(device()) for x in (torch.randn(shape), torch.randn(shape), torch.arange(size.batch)))


def on_noise(build, size, *how):
    return partial(build(size, *how), *noise(size))


def check_losses(losses, tolerances):
    """losses: {name: those of the first steps from equal weights on equal data}, the first being the reference."""
    reference = next(iter(losses.values()))
    for name, own in losses.items():
        for step, (loss, expected) in enumerate(zip(own, reference, strict=True)):
            if abs(loss / expected - 1) > tolerances[name][min(step, 1)]:
                raise ValueError(f"The losses differ before the timing, {name} at step {step + 1}: {losses}.")


def compare_memory(title, size, builders, rounds):
    """builders: {name: (build, ...)}, the first being the reference. {name: part of the reference's}"""
    print(f"\n{title}\nPeak memory of the first steps above what the process held before, {rounds} fresh ones each.")
    growth = {name: [] for name in builders}
    for _ in range(rounds):
        for name, (build, *how) in builders.items():
            growth[name].append(peak_memory(on_noise, build, size, *how))
    growth = {name: median(own) for name, own in growth.items()}
    reference = next(iter(growth.values()))
    width = max(map(len, growth)) + 2
    for name, own in growth.items():
        print(f"{name:{width}s}{own / reference:6.2f}x   ({own:.0f} MiB)")
    return {name: own / reference for name, own in growth.items()}
