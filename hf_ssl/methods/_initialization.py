"""Weights as torch draws them for a new layer, in the form that transformers' loading needs."""

import math

import torch
from torch import nn
from transformers import initialization as init


@torch.no_grad()
def draw_as_torch(module):
    """For `_init_weights`: a linear layer's weights U(-1/sqrt(fan_in), 1/sqrt(fan_in)), a batch norm the identity with no
    past; other modules are left alone. transformers builds on the meta device, where torch's own drawing is lost."""
    if isinstance(module, nn.Linear):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        for draw, tensor in (
            (init.ones_, module.weight),
            (init.ones_, module.running_var),
            (init.zeros_, module.bias),
            (init.zeros_, module.running_mean),
            (init.zeros_, module.num_batches_tracked),
        ):
            if tensor is not None:
                draw(tensor)
