"""One BERT step, words and next sentences, against transformers' BertForPreTraining: time and memory.

The reference scores the vocabulary at all 128 positions, in fp32 with sdpa; its masks are drawn beforehand, ours in the step.
"""

from functools import partial
from statistics import median

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import BertConfig, BertForPreTraining

from hf_ssl import BERTConfig, BERTForPreTraining
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from . import sides
from .timing import device, interleave, peak_memory, place, timed, verdict

SIZES = {  # width and layers, batch; demanded speed in fp32 and bf16
    "tiny": (128, 2, 32, (3.5, 4.5)),
    "mini": (256, 4, 32, (2.2, 3.3)),
    "small": (512, 4, 8, (1.6, 2.7)),
}
LENGTH, MEMORY, FRESH = 128, 0.6, 3  # tokens; the most memory of the reference's; processes that it is measured in
AS_THE_PAPER = dict(adam_beta2=0.999, adam_epsilon=1e-6, weight_decay=0.01)


def config(size):
    width, layers, *_ = SIZES[size]
    sizes = dict(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=4 * width
    )
    return BERTConfig(backbone_config=BertConfig(**sizes), attn_implementation="sdpa")


def batch(size):
    generator, rows = torch.Generator().manual_seed(0), SIZES[size][2]
    input_ids = torch.randint(200, 30522, (rows, LENGTH), generator=generator)
    second = (torch.arange(LENGTH) > LENGTH // 2).long().expand(rows, -1)
    labels = torch.randint(2, (rows,), generator=generator)
    inputs = dict(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        token_type_ids=second,
        next_sentence_label=labels,
        sample_seeds=torch.arange(rows),
    )
    return {name: value.to(device()) for name, value in inputs.items()}


def training_step(model, optimizer, inputs):
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def reference(size, fused=False, losses=None):
    """transformers' step as a function of nothing; its loss on our masks goes to `losses`."""
    torch.manual_seed(0)
    ours = BERTForPreTraining(config(size))
    model = BertForPreTraining(ours.config.backbone_config).to(device())
    model.load_state_dict(ours.state_dict())
    inputs = batch(size)
    hidden, chosen, targets = ours.mask(inputs["input_ids"], inputs["attention_mask"], inputs.pop("sample_seeds"))
    labels = torch.full_like(hidden, -100).flatten().scatter(0, chosen, targets).view_as(hidden)
    inputs |= {"input_ids": hidden, "labels": labels}
    if losses is not None:
        with sides.exact_products():
            losses.append(model.eval()(**inputs).loss.item())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, eps=1e-6, weight_decay=0.01, fused=fused)
    return partial(training_step, model.train(), optimizer, inputs)


def ours(size, precision, losses=None):
    """A step as hf_ssl/training/loop.py makes it."""
    AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
    accelerator = Accelerator(mixed_precision=precision)
    torch.manual_seed(0)
    model = BERTForPreTraining(config(size))
    choose_kernels(model, accelerator)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, 1e-4, TrainingArguments(**AS_THE_PAPER)))
    inputs = batch(size)
    if losses is not None:
        with sides.exact_products():
            losses.append(model.eval()(**inputs).loss.item())
    return partial(training_step, model.train(), optimizer, inputs)


def compare(size, rounds):
    losses, demands = [], SIZES[size][3]
    plain, fused = "transformers fp32 sdpa, torch.optim.AdamW", "transformers fp32 sdpa, AdamW(fused=True)"
    steps = {
        plain: reference(size, False, losses),
        fused: reference(size, True, losses),
        "hf_ssl fp32, as its loop runs it": ours(size, "no", losses),
        "hf_ssl bf16, as its loop runs it": ours(size, "bf16", losses),
    }
    for loss, tolerance in zip(losses, (0, 1e-6, 1e-6, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses of equal weights and masks differ before the timing: {losses}.")
    seconds = interleave({name: partial(timed, step) for name, step in steps.items()}, rounds)
    print(f"BERT {size}, batch {SIZES[size][2]}, {place()}, {rounds} rounds, losses equal.")
    print(f"{'times as fast as transformers with':42s}torch.optim.AdamW  (of minima)  AdamW(fused=True)")
    for name, own in seconds.items():
        ratios = [median(seconds[other]) / median(own) for other in (plain, fused)]
        print(f"{name:42s}{ratios[0]:16.2f}x {min(seconds[plain]) / min(own):11.2f}x {ratios[1]:17.2f}x")
    for precision, own, demand in zip(("fp32", "bf16"), list(seconds.values())[2:], demands, strict=True):
        verdict(f"{precision} over the reference", median(seconds[plain]) / median(own), demand)

    builders = {"reference": (reference, size), "fp32": (ours, size, "no"), "bf16": (ours, size, "bf16")}
    growth = {name: [] for name in builders}
    for _ in range(min(rounds, FRESH)):
        for name, how in builders.items():
            growth[name].append(peak_memory(*how))
    held = {name: median(own) for name, own in growth.items()}
    print(f"Peak memory of two steps: {', '.join(f'{name} {value:.0f} MiB' for name, value in held.items())}")
    for precision in ("fp32", "bf16"):
        verdict(
            f"memory in {precision}, part of the reference's", held[precision] / held["reference"], MEMORY, most=True
        )
