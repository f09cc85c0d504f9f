"""CLIP against open_clip and transformers' CLIPModel: step, the loss over all pairs, memory of a batch encoded in parts.

open_clip reads captions padded to its context, as its tokenizer gives them; transformers' and ours to the longest.
"""

from functools import partial
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from hf_ssl import CLIPForPreTraining, SSLCLIPConfig
from hf_ssl.methods._contrastive import pair_cross_entropy

from . import sides
from .timing import device, interleave, peak_memory, place, print_speed, timed, verdict

SPEED = {"fp32": 0.95, "bf16": 1.35}  # demanded of the faster of both in fp32
LOSS_ROWS, LOSS_WIDTH, LOSS_MEMORY, LOSS_TIME = 4096, 512, 0.3, 1.3  # and the most of the plain loss's
FRESH = 3
AS_THE_PAPER = dict(optim="adamw", adam_beta2=0.98, adam_epsilon=1e-6, weight_decay=0.2)


class Size(NamedTuple):
    name: str
    width: int
    layers: int
    heads: int
    pixels: int
    patch: int
    batch: int
    parts: tuple = ("step", "loss", "parts")
    vision_width: int = 0  # 0: as the texts'
    vocabulary: int = 8192
    context: int = 32

    @property
    def head_width(self):
        return self.width // self.heads

    @property
    def longest(self):
        """Tokens of the longest caption."""
        return self.context - 11


SIZES = {
    size.name: size
    for size in (
        Size("small", 256, 6, 4, 64, 8, 64),
        Size("b-32", 512, 12, 8, 224, 32, 16),
        Size("paper-b-32", 512, 12, 8, 224, 32, 256, ("step",), 768, 49408, 77),  # for a GPU
    )
}


def native_config(size):
    def tower(width):
        shape = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // size.head_width)
        return shape | dict(num_hidden_layers=size.layers, hidden_act="gelu")

    ends = dict(bos_token_id=0, eos_token_id=size.vocabulary - 1, pad_token_id=0)
    text = tower(size.width) | ends | dict(vocab_size=size.vocabulary, max_position_embeddings=size.context)
    vision = tower(size.vision_width or size.width) | dict(image_size=size.pixels, patch_size=size.patch)
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.width)


def our_model(size):
    torch.manual_seed(0)
    return CLIPForPreTraining(SSLCLIPConfig(backbone_config=native_config(size), attn_implementation="sdpa"))


def batch(size):
    """Images, captions padded to the longest, and which of their tokens are text."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size.batch, 3, size.pixels, size.pixels, generator=generator)
    ids = torch.randint(1, size.vocabulary - 2, (size.batch, size.longest), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(size.batch):
        length = size.longest - row % 10
        ids[row, length - 1 :], mask[row, length:] = size.vocabulary - 1, 0
    inputs = dict(pixel_values=images, input_ids=ids, attention_mask=mask)
    return {name: value.to(device()) for name, value in inputs.items()}


def training_step(losses, optimizer, inputs):
    loss = losses(**inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def rival(model, loss, precision, fused, inputs):
    """A step with the optimizer settings that open_clip trains with; torch.optim.AdamW is not fused unless asked."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.98), 1e-6, weight_decay=0.2, fused=fused)

    def losses(**batch):
        with sides.autocast(precision):
            return loss(model, **batch)

    return partial(training_step, losses, optimizer, inputs)


def transformers_step(size, precision, fused):
    torch.manual_seed(0)
    model = CLIPModel._from_config(native_config(size), attn_implementation="sdpa").train().to(device())
    model.load_state_dict(our_model(size).clip.state_dict())
    return rival(model, lambda model, **batch: model(**batch, return_loss=True).loss, precision, fused, batch(size))


def open_clip_step(size, precision, fused):
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=size.layers, width=size.vision_width or size.width, head_width=size.head_width,
                           patch_size=size.patch, image_size=size.pixels)  # fmt: skip
    text = CLIPTextCfg(context_length=size.context, vocab_size=size.vocabulary, width=size.width, heads=size.heads,
                       layers=size.layers)  # fmt: skip
    model, criterion, inputs = CLIP(size.width, vision, text).train().to(device()), ClipLoss(), batch(size)
    model.load_state_dict(open_clip_weights(our_model(size).clip.state_dict()))
    ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 0)  # its feature is at the highest token
    inputs = dict(image=inputs["pixel_values"], text=F.pad(ids, (0, size.context - size.longest)))
    return rival(model, lambda model, **batch: criterion(*model(**batch)[:3]), precision, fused, inputs)


def open_clip_weights(native):
    """transformers' CLIPModel under open_clip's names, the three projections of an attention in one."""
    renamed = {}
    names = (
        ("vision_model.", "visual."), ("text_model.", ""), ("embeddings.token_embedding", "token_embedding"),
        ("embeddings.class_embedding", "class_embedding"), ("embeddings.patch_embedding", "conv1"),
        ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"),
        ("post_layernorm", "ln_post"), ("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"), ("self_attn", "attn"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection"),
    )  # fmt: skip
    for name, value in native.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            value = torch.cat([native[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("q_proj.", "in_proj_")
        if name.endswith("_projection.weight"):
            value = value.T
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def our_step(size, precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from hf_ssl.training.loop import TrainingArguments, choose_kernels
    from hf_ssl.training.optimizers import build_optimizer

    AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
    accelerator = Accelerator(mixed_precision=sides.PRECISIONS[precision])
    model = our_model(size).train()
    choose_kernels(model, accelerator)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, 1e-4, TrainingArguments(**AS_THE_PAPER)))
    return partial(training_step, lambda **batch: model(**batch).loss, optimizer.optimizer, batch(size))


def step(size, args):
    steps = {"hf_ssl fp32": our_step(size, "fp32")}
    for name, build in (("transformers", transformers_step), ("open_clip", open_clip_step)):
        steps |= {
            f"{name} fp32": build(size, "fp32", False),
            f"{name} fp32, AdamW(fused=True)": build(size, "fp32", True),
        }
    steps["transformers bf16, AdamW(fused=True)"] = transformers_step(size, "bf16", True)
    steps["open_clip bf16, AdamW(fused=True)"] = open_clip_step(size, "bf16", True)
    with sides.exact_products():
        first = {name: [run().item() for _ in range(2)] for name, run in steps.items()}
    steps["hf_ssl bf16"] = our_step(size, "bf16")  # sets the precision of the process
    first["hf_ssl bf16"] = [steps["hf_ssl bf16"]().item() for _ in range(2)]
    tolerances = {name: (2e-2, 5e-2) if "bf16" in name else (1e-5, 1e-3) for name in steps}
    sides.check_losses(first, tolerances)
    seconds = interleave({name: partial(timed, run) for name, run in steps.items()}, args.rounds)
    references = [name for name in seconds if name.startswith(("transformers fp32", "open_clip fp32"))]
    title = f"CLIP step, {size.name}, batch {size.batch}, {place()}, {args.rounds} rounds, losses equal."
    print_speed(title, seconds, {"transformers fp32": references[0], "open_clip fp32": references[2]})
    fastest = min(references, key=lambda name: median(seconds[name]))
    for precision, demand in SPEED.items():
        ratio = median(seconds[fastest]) / median(seconds[f"hf_ssl {precision}"])
        verdict(f"{precision} over {fastest}", ratio, demand)


def loss_inputs():
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(LOSS_ROWS, LOSS_WIDTH, generator=generator), dim=1) for _ in range(2)]
    return [x.to(device()).requires_grad_() for x in (*rows, torch.tensor(14.0))]


def plain_loss(images, texts, scale):
    logits, target = scale * images @ texts.T, torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


LOSSES = {"two cross_entropy": plain_loss, "pair_cross_entropy": pair_cross_entropy}


def loss_step(name):
    inputs = loss_inputs()

    def run():
        for x in inputs:
            x.grad = None
        LOSSES[name](*inputs).backward()
        return [x.grad for x in inputs]

    return run


def loss(size, args):
    plain, ours = (loss_step(name) for name in LOSSES)
    for expected, found in zip(plain(), ours(), strict=True):
        if (error := (found - expected).norm() / expected.norm()) > 1e-5:
            raise ValueError(f"The gradients differ before the timing, by {error:.1e}.")
    seconds = interleave({name: partial(timed, loss_step(name)) for name in LOSSES}, args.rounds)
    title = (
        f"InfoNCE over {LOSS_ROWS} x {LOSS_ROWS} pairs of {LOSS_WIDTH}, with gradients, equal to 1e-5, {place()}, "
        f"{args.rounds} rounds."
    )
    print_speed(title, seconds, {"two cross_entropy": "two cross_entropy"})
    verdict("its time, part of the plain one's", _ratio(seconds), LOSS_TIME, most=True)
    growth = {name: [peak_memory(loss_step, name) for _ in range(min(args.rounds, FRESH))] for name in LOSSES}
    print(", ".join(f"{name} {median(own):.0f} MiB" for name, own in growth.items()))
    verdict("its memory, part of the plain one's", _ratio(growth), LOSS_MEMORY, most=True)


def _ratio(measured):
    plain, ours = (median(own) for own in measured.values())
    return ours / plain


def in_parts(size, rows, micro_batch_size):
    """Loss and gradient of a batch of `rows`."""
    inputs = batch(size._replace(batch=rows))
    model = our_model(size).train().to(device())
    model.micro_batch_size = micro_batch_size

    def run():
        model.zero_grad()
        model(**inputs).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    return run


def parts(size, args):
    rows, few = 8 * size.batch, size.batch
    runs = {"whole": (size, rows, 0), "in parts": (size, rows, few)}
    with sides.exact_products():
        whole, split = (torch.cat([x.flatten() for x in in_parts(*how)()]) for how in runs.values())
    error = ((whole - split).norm() / whole.norm()).item()
    growth = {
        name: median([peak_memory(in_parts, *how) for _ in range(min(args.rounds, FRESH))])
        for name, how in runs.items()
    }
    growth["a batch that is one part"] = peak_memory(in_parts, size, few, 0)
    print(f"\nA batch of {rows}, encoded whole or {few} at a time: gradients differ by {error:.1e}")
    print(", ".join(f"{name} {own:.0f} MiB" for name, own in growth.items()))
    verdict("difference of the gradients, in 1e-5", error / 1e-5, 1.0, most=True, unit="")


PARTS = {"step": step, "loss": loss, "parts": parts}
