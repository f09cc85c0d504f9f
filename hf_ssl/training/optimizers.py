"""The papers' optimizers and learning-rate schedules."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..errors import InputError

OPTIMIZERS = ("adamw", "sgd", "lars")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "step")  # without further arguments
DROPS = (0.6, 0.8)  # of the run: 120 and 160 of MoCo v1's 200 epochs


def build_optimizer(model, learning_rate, args, fused=True):
    """`args.optim` over what is trained. AdamW and LARS do not decay vectors, biases and the scales of norms, nor does LARS
    adapt their rate; SGD treats all weights alike, as MoCo's does. fused: one kernel for all; not for sharded weights.

    Parts named in the model's `learning_rate_factors` have groups of their own, behind the others, with their own rates; the
    schedules multiply all rates alike.
    """
    groups = []
    for factor, trained in _by_factor(model):
        rate = learning_rate * factor
        if args.optim == "sgd":
            groups.append({"params": trained, "lr": rate})
            continue
        decayed, others = ([p for p in trained if (p.ndim > 1) == wanted] for wanted in (True, False))
        groups.append({"params": decayed, "lr": rate, "weight_decay": args.weight_decay})
        groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
        if args.optim == "lars":
            groups[-1]["adapted"] = False
    if args.optim == "sgd":
        settings = {"momentum": args.momentum, "weight_decay": args.weight_decay}
        return torch.optim.SGD(groups, learning_rate, **settings, fused=fused)
    if args.optim == "lars":
        return LARS(groups, learning_rate, args.momentum)
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, learning_rate, betas, args.adam_epsilon, fused=fused)


def _by_factor(model):
    """[(factor, trained parameters)]: first those that no prefix names, then those of each prefix in its order, of the
    longest one that fits. Raises InputError if a prefix names no parameter."""
    factors = getattr(model, "learning_rate_factors", {})
    found = {prefix: [] for prefix in ("", *factors)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefixes = [prefix for prefix in factors if name.startswith(f"{prefix}.") or name == prefix]
            found[max(prefixes, key=len, default="")].append(parameter)
    for prefix in factors:
        if not found[prefix]:
            known = sorted(
                {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
            )
            raise InputError(
                f"learning_rate_factors of {type(model).__name__} name '{prefix}', where no weight is trained: expected names "
                f"like {', '.join(known)}."
            )
    return [(factors.get(prefix, 1.0), parameters) for prefix, parameters in found.items()]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, https://arxiv.org/abs/1708.03888) with SimCLR's momentum.

    Each weight moves at the rate lr x trust_coefficient x |w| / |g + weight_decay w|; the rate is inside the momentum, so a
    falling rate does not slow down what has been collected. Groups with adapted=False move at the rate lr. Differs from
    https://github.com/google-research/simclr, lars_optimizer.py, in nothing.
    """

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapted": True}
        super().__init__(params, defaults | {"trust_coefficient": trust_coefficient})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            if group["adapted"]:
                sizes = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(gradients))
                trust = group["trust_coefficient"] * sizes[0] / sizes[1]
                trust = torch.where((sizes[0] > 0) & (sizes[1] > 0), trust, 1.0)  # on the device: nothing waits for it
                gradients = torch._foreach_mul(gradients, list(trust.unbind()))
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients, alpha=group["lr"])
            torch._foreach_sub_(weights, momenta)
        return loss


def build_scheduler(optimizer, args, max_steps):
    """`args.lr_scheduler_type` after a linear warm-up; "step" divides the rate by 10 at each of DROPS."""
    warmup = int(args.warmup_steps if args.warmup_steps >= 1 else round(args.warmup_steps * max_steps))
    if args.lr_scheduler_type != "step":
        return get_scheduler(args.lr_scheduler_type, optimizer, warmup, max_steps)

    def rate(step):
        return min(1, (step + 1) / (warmup + 1)) * 0.1 ** sum(step >= drop * max_steps for drop in DROPS)

    return LambdaLR(optimizer, rate)


def advance(scheduler, step):
    """Put a new scheduler to where it is after `step` steps: the rates follow from the settings of this run alone."""
    scheduler.last_epoch, scheduler._step_count = step - 1, step + 1  # the second: it warns of a first step
    scheduler.step()
