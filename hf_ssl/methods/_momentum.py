"""Momentum encoders: a copy of a network whose weights are the moving average of the network's."""

import torch
from transformers import initialization as init


@torch.no_grad()
def momentum_update(average, network, momentum):
    """average <- momentum x average + (1 - momentum) x network, for parameters only: buffers are the copy's own. momentum: a
    number or a scalar tensor."""
    own, theirs = list(average.parameters()), list(network.parameters())
    if isinstance(momentum, torch.Tensor):  # which lerp would ask the device for
        steps = torch._foreach_sub(theirs, own)
        torch._foreach_mul_(steps, 1 - momentum)
        torch._foreach_add_(own, steps)
    else:
        torch._foreach_lerp_(own, theirs, 1 - momentum)


@torch.no_grad()
def begin_as(average, network):
    """For `_init_weights`: what no file has of the average begins as the network does, which is drawn before."""
    state = network.state_dict()
    for name, tensor in average.state_dict(keep_vars=True).items():
        init.copy_(tensor, state[name])


@torch.no_grad()
def copy_buffers(average, network):
    """For an average that is never trained through: running statistics are those of the network."""
    own, theirs = list(average.buffers()), list(network.buffers())
    if own:
        torch._foreach_copy_(own, theirs)
