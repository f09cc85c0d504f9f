"""Momentum encoders: a copy of a network whose weights are the moving average of the network's."""

import torch


@torch.no_grad()
def momentum_update(average, network, momentum):
    """average <- momentum x average + (1 - momentum) x network, for parameters only: buffers are the copy's own."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - momentum)
