"""The convolutional halves of generative methods: from a small map up to an image, and from an image down to a few numbers.

Radford et al. 2015, https://arxiv.org/abs/1511.06434: 4x4 convolutions of stride 2, batch norm, no pooling; ReLU on the way
up, leaky ReLU on the way down; weights drawn from N(0, 0.02). Context encoder, autoencoder and BiGAN.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ._batch_norm import GlobalBatchNorm
from ._initialization import draw_as_torch


class UpConvolutions(nn.Module):
    """(N, inputs, h, w) to images, (N, channels, size, size), of any range: each convolution doubles the sides and halves the
    channels, down to `hidden_size` before the last. side: about that of the map, which is resized to `start`, the side from
    which the doublings reach the image; what they reach beyond it is cut off evenly."""

    def __init__(self, inputs, channels, side, size, hidden_size):
        super().__init__()
        doublings = max(1, round(math.log2(size / side)))
        self.size, self.start = size, math.ceil(size / 2**doublings)
        widths = [inputs, *(hidden_size * min(8, 2**i) for i in reversed(range(doublings - 1)))]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                    GlobalBatchNorm(after),
                    nn.ReLU(inplace=True),
                )
                for before, after in zip(widths, widths[1:], strict=False)
            ),
            nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1),
        )

    def forward(self, x):
        if x.shape[-2:] != (self.start, self.start):
            x = F.interpolate(x, (self.start, self.start), mode="bilinear", antialias=True)
        images = self.layers(x)
        margin = (images.shape[-1] - self.size) // 2
        return images[..., margin : margin + self.size, margin : margin + self.size]


class Generator(nn.Module):
    """(N, vector_size) to images (N, channels, size, size): a linear layer makes a map of about 4x4."""

    def __init__(self, vector_size, channels, size, hidden_size):
        super().__init__()
        inputs = hidden_size * min(8, 2 ** (max(1, round(math.log2(size / 4))) - 1))
        self.convolutions = UpConvolutions(inputs, channels, 4, size, hidden_size)
        self.map = (inputs, self.convolutions.start, self.convolutions.start)
        self.linear = nn.Linear(vector_size, math.prod(self.map), bias=False)
        self.norm = GlobalBatchNorm(inputs)

    def forward(self, vectors):
        return self.convolutions(self.norm(self.linear(vectors).unflatten(1, self.map)).relu())


class DownConvolutions(nn.Module):
    """Images (N, channels, size, size) to (N, `width`): each convolution halves the sides, to at most 4, and doubles the
    channels, from `hidden_size` on."""

    def __init__(self, channels, size, hidden_size):
        super().__init__()
        layers, side = [], size
        while side > 4:
            width = hidden_size * min(8, 2 ** len(layers))
            convolution = nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=not layers)
            norm = [GlobalBatchNorm(width)] if layers else []  # none on what sees the pixels
            layers.append(nn.Sequential(convolution, *norm, nn.LeakyReLU(0.2, inplace=True)))
            channels, side = width, side // 2
        self.layers = nn.Sequential(*layers)
        self.width = channels * side**2

    def forward(self, images):
        return self.layers(images).flatten(1)


@torch.no_grad()
def draw_as_dcgan(module):
    """For `_init_weights`: convolutions N(0, 0.02), the bias of a single output 0, all else as torch draws it."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            init.zeros_(module.bias)
    else:
        draw_as_torch(module)
        if isinstance(module, nn.Linear) and module.out_features == 1 and module.bias is not None:
            init.zeros_(module.bias)
