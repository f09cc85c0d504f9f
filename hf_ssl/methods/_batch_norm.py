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
        groups = x.split(self.group_size)
        statistics = torch.zeros(2, len(groups), self.num_features, dtype=self.running_mean.dtype, device=x.device)
        normalized = [
            F.batch_norm(group, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for group, mean, variance in zip(groups, *statistics, strict=True)
        ]
        if _is_first_pass():
            with torch.no_grad():
                mean, variance = statistics.mean(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
                self.num_batches_tracked += 1
        return torch.cat(normalized) if len(groups) > 1 else normalized[0]


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
    """Statistics over the samples of all processes, which must hold equally many. torch's own needs GPUs."""

    moves_statistics = True  # see `fixed_running_statistics`

    def _check_input_dim(self, x):
        pass  # (N, C) as well as (N, C, H, W)

    def forward(self, x):
        if self.training and world_size() > 1:
            return _NormalizeGlobally.apply(x, self.weight, self.bias, self)
        if self.training and not (self.moves_statistics and _is_first_pass()):
            # not None, with which autograd saves fewer tensors than in the first pass
            copies = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x, *copies, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


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
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
            norm.num_batches_tracked += 1
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
