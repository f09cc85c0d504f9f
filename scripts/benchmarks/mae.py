"""One MAE step against transformers' ViTMAEForPreTraining."""

from functools import partial
from statistics import median
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import ViTConfig, ViTMAEForPreTraining

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from .timing import interleave, verdict

SIZES = {  # batch; image, patch, width and heads; width, layers and heads of the decoder; demanded in fp32 and bf16
    "tiny": (64, (32, 4, 192, 3), (128, 4, 4), (0.97, 1.45)),
    "base": (8, (224, 16, 768, 12), (512, 8, 16), (0.97, 1.5)),
}


def compare(size, rounds):
    batch, (image, patch, width, heads), (decoder_width, layers, decoder_heads), demands = SIZES[size]
    vit = dict(image_size=image, patch_size=patch, hidden_size=width, num_hidden_layers=12, num_attention_heads=heads)
    config = MAEConfig(
        backbone_config=ViTConfig(**vit, intermediate_size=4 * width, layer_norm_eps=1e-6), attn_implementation="sdpa",
        decoder_hidden_size=decoder_width, decoder_num_hidden_layers=layers, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
    )  # fmt: skip
    weights = MAEForPreTraining(config).state_dict()
    images, noise, losses = torch.randn(batch, 3, image, image), torch.rand(batch, (image // patch) ** 2), []

    def step(model, optimizer, **inputs):
        start = perf_counter()
        model(images, **inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return perf_counter() - start

    def reference(**how):
        model = ViTMAEForPreTraining(config.vit_mae).train()
        model.load_state_dict(weights)
        losses.append(model(images, noise=noise).loss.item())
        return partial(step, model, torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.05, **how))

    def ours(precision):
        AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
        accelerator = Accelerator(mixed_precision=precision)
        model = MAEForPreTraining(config).train()
        model.load_state_dict(weights)
        choose_kernels(model, accelerator)
        model, optimizer = accelerator.prepare(model, build_optimizer(model, 1e-4, TrainingArguments()))
        losses.append(model(images, noise=noise).loss.item())
        return partial(step, model, optimizer, sample_seeds=torch.arange(batch))

    variants = {
        "transformers fp32 sdpa, torch.optim.AdamW": reference(),  # not fused unless one asks for it
        "transformers fp32 sdpa, AdamW(fused=True)": reference(fused=True),
        "hf_ssl fp32, as its loop runs it": ours("no"),
        "hf_ssl bf16, as its loop runs it": ours("bf16"),
    }
    for loss, tolerance in zip(losses, (0, 1e-5, 1e-5, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses of equal weights, images and masks differ before the timing: {losses}.")
    seconds = interleave(variants, rounds)
    plain, fused, fp32, bf16 = seconds.values()
    print(f"MAE {size}, batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds, losses equal.")
    print(f"{'times as fast as transformers with':42s}torch.optim.AdamW  (of minima)  AdamW(fused=True)")
    for name, own in seconds.items():
        ratios = median(plain) / median(own), min(plain) / min(own), median(fused) / median(own)
        print("{:42s}{:16.2f}x {:11.2f}x {:17.2f}x".format(name, *ratios))
    for name, own, demand in zip(("fp32", "bf16"), (fp32, bf16), demands, strict=True):
        verdict(f"{name} over the reference", median(plain) / median(own), demand)
