"""Batch normalisation whose statistics do not depend on how a batch is spread over processes."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ._distributed import gather, world_size

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def replace_batch_norm(network, build, kinds=BATCH_NORMS):
    """Put `build(num_features, eps, momentum)` in the place of each batch norm of a new network; whether it has any."""
    found = False
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in kinds:
                setattr(module, name, build(child.num_features, child.eps, child.momentum))
                found = True
    return found


def _is_first_pass():
    """False within a backward pass, where activation checkpointing computes anew what has been counted already."""
    return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1


class SplitBatchNorm(nn.BatchNorm2d):
    """Statistics over groups of `group_size` consecutive samples, as on many devices of so many samples each.

    The running statistics move once a forward pass, to the mean over the groups. They are this process's own until
    `average_running_statistics`, which makes them those of the whole batch.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, group_size=32):
        super().__init__(num_features, eps, momentum)
        self.group_size = group_size

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        normalized, statistics = _normalize_groups(x, self.group_size, self)
        if _is_first_pass():
            _move_statistics(self, *statistics)
        return normalized


def _normalize_groups(x, size, norm):
    """(x with each `size` consecutive samples normalised by themselves; their mean and variance, (2, C), averaged over these
    groups)."""
    groups = x.split(size)
    statistics = torch.zeros(2, len(groups), norm.num_features, dtype=norm.running_mean.dtype, device=x.device)
    normalized = [
        F.batch_norm(group, mean, variance, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
        for group, mean, variance in zip(groups, *statistics, strict=True)
    ]
    return torch.cat(normalized) if len(groups) > 1 else normalized[0], statistics.mean(1)


@torch.no_grad()
def _move_statistics(norm, mean, variance):
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)
    norm.num_batches_tracked += 1


@contextmanager
def fixed_running_statistics(network):
    """Within it, passes in training mode normalise by their batch, and the running statistics stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, GlobalBatchNorm)]
    for norm in norms:
        norm.moves_statistics = False
    try:
        yield
    finally:
        for norm in norms:
            norm.moves_statistics = True


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Statistics over the samples of all processes, which must hold equally many. torch's own needs GPUs.

    groups: the samples of all processes, in their order, are normalised in so many parts, each by its own statistics, which
    are as noisy as those of small batches; running statistics move once a forward pass, to the mean over the groups. Each process
    must hold whole groups (`check_groups`), so that they are the same samples on any number of processes.
    """

    moves_statistics = True  # see `fixed_running_statistics`

    def __init__(self, num_features, eps=1e-5, momentum=0.1, groups=1, **settings):
        super().__init__(num_features, eps, momentum, **settings)
        self.groups = groups

    def _check_input_dim(self, x):
        pass  # (N, C) as well as (N, C, H, W)

    def forward(self, x):
        if self.training and self.groups > 1:
            return self.normalize_in_groups(x)
        if self.training and world_size() > 1:
            return _NormalizeGlobally.apply(x, self.weight, self.bias, self)
        if self.training and not (self.moves_statistics and _is_first_pass()):
            # not None, with which autograd saves fewer tensors than in the first pass
            copies = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x, *copies, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)

    def normalize_in_groups(self, x):
        check_groups(self.groups, len(x), world_size())
        normalized, statistics = _normalize_groups(x, len(x) * world_size() // self.groups, self)
        if self.moves_statistics and _is_first_pass():
            _move_statistics(self, *gather(statistics[None]).mean(0))
        return normalized


def check_groups(groups, size, processes):
    """Raise ValueError, in one sentence, unless each of the processes, with `size` samples of a kind, holds whole groups with
    equally many of them. groups: `batch_norm_groups`, over all processes."""
    if groups > 1 and groups % processes:
        raise ValueError(
            f"batch_norm_groups must be a multiple of the number of processes, {processes}, each of which holds whole groups: "
            f"found {groups}."
        )
    if groups > 1 and size % (groups // processes):
        raise ValueError(
            f"batch_norm_groups={groups} needs numbers of labelled and of unlabelled images in the batch of a process that are "
            f"multiples of {groups // processes}, as many in each group: found {size}."
        )


class _NormalizeGlobally(torch.autograd.Function):
    """Batch norm's forward and backward with sums over all processes; keeps no more than the input for the backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, norm):
        # momentum 0: the running statistics stay, but tell the type of the sums
        mean, variance = torch.batch_norm_update_stats(x, norm.running_mean, norm.running_var, 0.0)
        means, variances = gather(torch.stack([mean, variance])[None]).unbind(1)  # (W, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)  # within the processes, and between them
        count = world_size() * x.numel() // x.shape[1]
        if norm.moves_statistics and _is_first_pass():
            _move_statistics(norm, mean, variance * count / (count - 1))
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.has_weight, ctx.has_bias = count, norm.eps, weight is not None, bias is not None
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, variance = ctx.saved_tensors
        weight = weight if ctx.has_weight else torch.ones_like(mean)
        # as if the statistics were constants; through them each value pulls on all of its channel
        gradient_x, *sums = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        means = torch.stack(sums)  # (2, C): of the gradient times the normalised x, of the gradient
        dist.all_reduce(means)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = (variance + ctx.eps).rsqrt()
        slope, shift = (means * weight * scale / ctx.count).view(2, *shape)
        gradient_x -= (x - mean.view(shape)).mul_(slope * scale.view(shape)).add_(shift)
        return gradient_x, sums[0] if ctx.has_weight else None, sums[1] if ctx.has_bias else None, None


@torch.no_grad()
def average_running_statistics(network):
    """The mean over processes, in one message. As the moving average is linear, it may be taken at any time."""
    if world_size() == 1:
        return
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
    ]
    if buffers:
        together = torch.cat(buffers)
        dist.all_reduce(together)
        together /= world_size()
        torch._foreach_copy_(buffers, list(together.split([len(buffer) for buffer in buffers])))
