"""SimCLR against lightly: step and memory.

lightly's side is its examples/pytorch/simclr.py: torchvision's network, SimCLRProjectionHead, NTXentLoss, SGD. It sends
the views through the network one after the other, each with its own batch statistics; ours, as the authors', together.
"""

from functools import partial
from typing import NamedTuple

import torch

from hf_ssl import SimCLRConfig, SimCLRForPreTraining

from . import sides
from .timing import device, interleave, place, print_speed, timed

P, TEMPERATURE = 128, 0.5
EXAMPLE, EXAMPLE_BF16 = "lightly's example, fp32", "lightly's example, bf16"


class Size(NamedTuple):
    name: str
    depth: int
    pixels: int
    batch: int
    parts: tuple = ("step", "memory")


SIZES = {
    size.name: size
    for size in (Size("r18-32", 18, 32, 256), Size("r50-32", 50, 32, 256), Size("r18-224", 18, 224, 16))
}


def our_model(size):
    torch.manual_seed(0)
    config = SimCLRConfig(backbone_config=sides.native_config(size.depth), projection_size=P, temperature=TEMPERATURE)
    return SimCLRForPreTraining(config)


def ours(size, precision, optim):
    return sides.our_step(our_model(size), precision, optim=optim)


def lightlys(size, precision, weights=None, together=False):
    """weights: of one of our models. together: both views as one batch, which the example does not do."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    backbone, width = sides.torchvision_backbone(size.depth, weights)
    head, criterion = SimCLRProjectionHead(width, width, P).to(device()), NTXentLoss(TEMPERATURE)
    if weights:  # ours has no bias in the last norm, lightly's is zero at the start
        head.layers.load_state_dict(sides.part_of(weights, "projector.") | {"4.bias": torch.zeros(P)})
    optimizer = sides.lightly_optimizer([*backbone.parameters(), *head.parameters()])

    def step(pixel_values, pixel_values_2, sample_seeds=None):
        with sides.autocast(precision):
            views = [torch.cat([pixel_values, pixel_values_2])] if together else [pixel_values, pixel_values_2]
            projections = [head(backbone(view).flatten(1)) for view in views]
            loss = criterion(*(projections[0].chunk(2) if together else projections))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def where(size):
    return f"{place()}, ResNet-{size.depth}, {size.pixels} px, batch {size.batch}"


def step(size, args):
    weights, batch = our_model(size).state_dict(), sides.noise(size)
    steps = {EXAMPLE: lightlys(size, "fp32", weights), EXAMPLE_BF16: lightlys(size, "bf16", weights)}
    steps["lightly's parts, both views at once, fp32"] = lightlys(size, "fp32", weights, together=True)
    steps |= {f"hf_ssl {precision}, {optim}": ours(size, precision, optim)
              for optim in ("sgd", "lars") for precision in ("fp32", "bf16")}  # fmt: skip
    _, _, *alike = steps
    tolerances = dict(zip(alike, [(0, 0), (1e-5, 1e-3), (1e-2, 5e-2)], strict=False))
    with sides.exact_products():
        losses = {name: [steps[name](*batch).item() for _ in range(2)] for name in tolerances}
    sides.check_losses(losses, tolerances)
    seconds = interleave({name: partial(timed, run, *batch) for name, run in steps.items()}, args.rounds)
    title = f"SimCLR step: {where(size)}, losses of equal weights and statistics equal, {args.rounds} rounds."
    print_speed(title, seconds, {"lightly fp32": EXAMPLE, "lightly bf16": EXAMPLE_BF16})


def memory(size, args):
    builders = {EXAMPLE: (lightlys, "fp32"), EXAMPLE_BF16: (lightlys, "bf16")}
    builders["lightly's parts, both views at once, fp32"] = lightlys, "fp32", None, True
    builders |= {f"hf_ssl {precision}": (ours, precision, "sgd") for precision in ("fp32", "bf16")}
    sides.compare_memory(f"SimCLR memory: {where(size)}", size, builders, min(args.rounds, sides.PROCESSES))


PARTS = {"step": step, "memory": memory}
