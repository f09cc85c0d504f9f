"""The batch of all processes: the same rows in the same order as one process with the whole batch would hold."""

import torch
import torch.distributed as dist


def world_size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(x):
    """(N, ...) of each process to (W N, ...), process by process, without gradient."""
    if world_size() == 1:
        return x
    everyone = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x.contiguous())
    return everyone


@torch.no_grad()
def from_first(x):
    """The first process's `x`, which has the same shape and type on all."""
    if world_size() == 1:
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    dist.broadcast(x, 0)
    return x


def own_part(x):
    """Of what `gather` returned, the rows of this process."""
    return x.chunk(world_size())[rank()]


def gather_with_gradient(x):
    """As `gather`, and a process's rows receive the gradient of every process's loss.

    The sum, not the mean: averaging parameter gradients over processes, as DDP does, then gives those of the mean loss.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def sum_with_gradient(x):
    """The sum of each process's `x` over all processes; `x` receives the gradient of every process's loss.

    As with `gather_with_gradient`, averaging parameter gradients over processes, as DDP does, gives those of the mean of
    the processes' losses: of a loss that is the same function of the sum everywhere, those of one process with the
    whole batch. It is added in the type of `x`, float64 in float64; bfloat16 and float16 would be rounded at each addition,
    so hand in float32.
    """
    return _Sum.apply(x) if world_size() > 1 else x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return gather(x)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return own_part(gradient)
