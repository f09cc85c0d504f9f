"""MoCo against lightly: step, queue loss, views, the pipeline from PNG files to the step, memory, and accuracy.

lightly's side is its examples/pytorch/moco.py: torchvision's network, MoCoProjectionHead, update_momentum, NTXentLoss
with a memory bank, SGD. It has no mixed precision of its own; where it runs in bf16, the whole step is under autocast.
"""

import copy
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hf_ssl import MoCoConfig, MoCoForPreTraining
from hf_ssl.methods._backbone import checkpoint_activations
from hf_ssl.methods._contrastive import queue_cross_entropy, queue_logits

from . import sides
from . import views as views_of
from .quality import compare_quality
from .timing import device, interleave, interleave_processes, place, print_speed, timed, verdict

P, TEMPERATURE, MOMENTUM = 128, 0.2, 0.99
GROUPED = 32  # the default of batch_norm_group_size
LONG = 65536  # the original's queue
OF_LOSS = {"fp32": 2.5, "bf16": 4}  # at LONG
OF_VIEWS = {32: {"from PNG": 2.5, "decoded": 8}, 224: {"from PNG": 3}}
OF_PIPELINE = 1.8
OF_MEMORY = 0.8  # at most
EXAMPLE, EXAMPLE_BF16 = "lightly's example, fp32", "lightly's example, bf16"
WINDOW = 10  # batches of a loop with workers before it is another's turn


class Size(NamedTuple):
    name: str
    depth: int
    pixels: int
    batch: int
    queue: int
    demands: dict  # of the step
    parts: tuple  # by default


ALL = ("step", "loss", "views", "pipeline", "memory")
SIZES = {
    size.name: size
    for size in (
        Size("r18-32", 18, 32, 256, LONG, {"fp32": 1.1, "bf16": 1.6}, ALL),
        Size("r50-32", 50, 32, 256, LONG, {"bf16": 1.6}, ("step", "memory")),
        Size("r18-224", 18, 224, 16, 4096, {"bf16": 2.0}, ("step", "views", "memory")),
        Size("r50-224", 50, 224, 128, LONG, {}, ("step", "memory")),  # for a GPU
    )
}


def our_model(size, group):
    torch.manual_seed(0)
    config = MoCoConfig(
        backbone_config=sides.native_config(size.depth), queue_size=size.queue, projection_size=P, momentum=MOMENTUM,
        temperature=TEMPERATURE, batch_norm_group_size=group,
    )  # fmt: skip
    return MoCoForPreTraining(config)


def ours(size, precision, group, checkpointing=False):
    model = our_model(size, group)
    if checkpointing:
        checkpoint_activations(model)
    return sides.our_step(model, precision)


def lightlys(size, precision, weights=None):
    """weights: of one of our models at its start."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    backbone, width = sides.torchvision_backbone(size.depth, weights)
    head = MoCoProjectionHead(width, width, P).to(device())
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(size.queue, P)).to(device())
    if weights:
        head.layers.load_state_dict(sides.part_of(weights, "projector."))
        criterion.memory_bank.bank.copy_(weights["queue"])
    key_backbone, key_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(key_backbone)
    deactivate_requires_grad(key_head)
    optimizer = sides.lightly_optimizer([*backbone.parameters(), *head.parameters()])

    def step(pixel_values, pixel_values_2, sample_seeds=None):
        update_momentum(backbone, key_backbone, m=MOMENTUM)
        update_momentum(head, key_head, m=MOMENTUM)
        with sides.autocast(precision):
            query = head(backbone(pixel_values).flatten(1))
            key = key_head(key_backbone(pixel_values_2).flatten(1)).detach()
            loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def where(size):
    return f"{place()}, ResNet-{size.depth}, {size.pixels} px, batch {size.batch}, queue {size.queue}"


def step(size, args):
    weights = our_model(size, size.batch).state_dict()
    steps = {EXAMPLE: lightlys(size, "fp32", weights), EXAMPLE_BF16: lightlys(size, "bf16", weights)}
    alike = {precision: f"hf_ssl {precision}, statistics of the batch, as lightly's" for precision in ("fp32", "bf16")}
    steps |= {alike[precision]: ours(size, precision, size.batch) for precision in alike}
    grouped = min(GROUPED, size.batch // 2)
    steps |= {f"hf_ssl {precision}, of groups of {grouped}": ours(size, precision, grouped) for precision in alike}

    batch = sides.noise(size)
    with sides.exact_products():
        losses = {name: [run(*batch).item() for _ in range(3)] for name, run in steps.items() if "groups" not in name}
    # the later losses follow from optimizer, momentum update and queue
    tolerances = {
        EXAMPLE: (0, 0),
        EXAMPLE_BF16: (1e-2, 5e-2),
        alike["fp32"]: (1e-5, 1e-3),
        alike["bf16"]: (1e-2, 5e-2),
    }
    sides.check_losses(losses, tolerances)
    seconds = interleave({name: partial(timed, run, *batch) for name, run in steps.items()}, args.rounds)
    title = f"MoCo step: {where(size)}, losses of equal weights equal, {args.rounds} rounds."
    print_speed(title, seconds, {"lightly fp32": EXAMPLE, "lightly bf16": EXAMPLE_BF16})
    for precision, demand in size.demands.items():
        ratio = median(seconds[EXAMPLE]) / median(seconds[alike[precision]])
        verdict(f"step in {precision} over lightly's example", ratio, demand)


def loss(size, args):
    from lightly.loss import NTXentLoss

    rows = size.batch, size.batch, size.queue
    queries, keys, queue = (F.normalize(torch.randn(n, P, device=device()), dim=1) for n in rows)
    queries.requires_grad_()
    target = torch.zeros(size.batch, dtype=torch.long, device=device())
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(size.queue, P)).to(device())
    criterion.memory_bank.bank.copy_(queue)

    def chunked(precision):
        with sides.autocast(precision):
            return queue_cross_entropy(queries, keys, queue, TEMPERATURE)

    forward = {
        "cross_entropy of all logits, fp32": lambda: F.cross_entropy(queue_logits(queries, keys, queue, TEMPERATURE), target),
        "lightly's NTXentLoss, fp32": lambda: criterion(queries, keys),
        "hf_ssl fp32": partial(chunked, "fp32"),
        "hf_ssl bf16": partial(chunked, "bf16"),
    }  # fmt: skip

    def run(name):
        queries.grad = None
        value = forward[name]()
        value.backward()
        return value.item()

    plain, rival, *own = forward
    values, gradients = zip(*((run(name), _along_sphere(queries.grad, queries)) for name in forward), strict=True)
    for name, value, gradient, tolerance in zip(forward, values, gradients, (0, 1e-5, 1e-5, 1e-2), strict=True):
        error = abs(value / values[0] - 1), ((gradient - gradients[0]).norm() / gradients[0].norm()).item()
        if max(error) > tolerance:
            raise ValueError(f"{name} differs from {plain} before the timing: loss and gradient by {error}.")
    seconds = interleave({name: partial(timed, run, name) for name in forward}, 3 * args.rounds)
    title = f"Queue loss and gradient, {size.batch} x {size.queue} x {P}, {place()}, equal values."
    print_speed(title, seconds, {"cross_entropy": plain, "lightly": rival})
    if size.queue != LONG:
        return
    for name, (precision, demand) in zip(own, OF_LOSS.items(), strict=True):
        verdict(f"loss in {precision} over cross_entropy", median(seconds[plain]) / median(seconds[name]), demand)


def _along_sphere(gradient, queries):
    """Without the part that changes the queries' length, which lightly's loss takes out and the others leave in."""
    queries = queries.detach()
    return gradient - (gradient * queries).sum(1, keepdim=True) * queries


def views(size, args):
    pixels, batch = size.pixels, size.batch
    views_of.check_views(pixels)
    loops = {
        "torchvision v2 on PIL, from PNG": (views_of.their_views, pixels, batch, views_of.torchvision_transform),
        "lightly's MoCoV2Transform, from PNG": (views_of.their_views, pixels, batch, views_of.lightly_transform),
        "hf_ssl, from PNG": (views_of.our_views, pixels, batch),
        "hf_ssl, decoded": (views_of.our_views, pixels, batch, True),
    }
    seconds = interleave_processes(loops, args.rounds, WINDOW)
    side, count = views_of.SOURCES[pixels]
    print_speed(
        f"Two views of {pixels} px, batch {batch}, {views_of.WORKERS} workers, {place()}; "
        f"{count} cuts of {side} px from photographs{'' if views_of.blur_probability(pixels) else '; no blur'}.",
        seconds, {"torchvision": next(iter(loops)), "lightly": list(loops)[1]},
    )  # fmt: skip
    for source, demand in OF_VIEWS[pixels].items():
        ratio = median(seconds[next(iter(loops))]) / median(seconds[f"hf_ssl, {source}"])
        verdict(f"two views {source} over torchvision's", ratio, demand)


def our_pipeline(size, precision, group):
    run = ours(size, precision, group)
    for batch in views_of.our_views(size.pixels, size.batch):
        yield run(**batch)


def lightly_pipeline(size, precision):
    run = lightlys(size, precision)
    for batch in views_of.their_views(size.pixels, size.batch, views_of.lightly_transform):
        yield run(*(view.to(device()) for view in batch))


def pipeline(size, args):
    loops = {
        EXAMPLE: (lightly_pipeline, size, "fp32"),
        EXAMPLE_BF16: (lightly_pipeline, size, "bf16"),
        "hf_ssl fp32": (our_pipeline, size, "fp32", size.batch),
        "hf_ssl bf16": (our_pipeline, size, "bf16", size.batch),
    }
    seconds = interleave_processes(loops, args.rounds, WINDOW)
    title = (
        f"PNG files to optimizer step: {where(size)}, {views_of.WORKERS} workers, {args.rounds} rounds of {WINDOW}."
    )
    print_speed(title, seconds, {"lightly fp32": EXAMPLE, "lightly bf16": EXAMPLE_BF16})
    ratio = median(seconds[EXAMPLE]) / median(seconds["hf_ssl bf16"])
    verdict("pipeline in bf16 over lightly's example", ratio, OF_PIPELINE)


def memory(size, args):
    builders = {EXAMPLE: (lightlys, "fp32"), EXAMPLE_BF16: (lightlys, "bf16")}
    builders |= {f"hf_ssl {precision}": (ours, precision, size.batch) for precision in ("fp32", "bf16")}
    builders["hf_ssl fp32, activation checkpointing"] = ours, "fp32", size.batch, True
    parts = sides.compare_memory(f"MoCo memory: {where(size)}", size, builders, min(args.rounds, sides.PROCESSES))
    for precision in ("fp32", "bf16"):
        verdict(f"memory in {precision}, part of lightly's", parts[f"hf_ssl {precision}"], OF_MEMORY, most=True)


def quality(size, args):
    compare_quality(args.seeds, args.epochs)


PARTS = {"step": step, "loss": loss, "views": views, "pipeline": pipeline, "memory": memory, "quality": quality}
