"""Linear classification of frozen features: the protocol that most papers report.

Optimisation as in SimCLR (https://arxiv.org/abs/2002.05709, appendix B.6), features standardised as by the
parameter-free batch norm before MAE's probe (https://github.com/facebookresearch/mae, main_linprobe.py). Deviation:
features are computed once, so the training images are not augmented. In return weight decay and learning rate are
chosen, on a held-out tenth of the training rows; all candidates are trained at once as one matrix.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..features import check_finite
from ..processes import process_state

EPOCHS, BATCH_SIZE, MOMENTUM = 90, 256, 0.9  # SimCLR appendix B.6; Nesterov
LEARNING_RATES = (0.1, 0.01, 0.001)  # SimCLR's 0.1, and lower ones for wide features; all x batch / 256
WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
EPSILON = 1e-6  # MAE main_linprobe.py
HELD_OUT = 0.1
MIN_STEPS = 1000  # few rows make few steps in 90 epochs
SETTINGS = {
    "optimizer": "SGD with Nesterov momentum 0.9, cosine schedule, zero initialisation",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rates": LEARNING_RATES,
    "weight_decays": WEIGHT_DECAYS,
    "chosen_on": "10% of the training rows, held out; then trained on all",
    "features": "standardised by the training rows",
    "deviation": "no augmentation, since features are computed once",
}
CHUNK = 16384  # rows that are in double precision, or on the device, at a time


@dataclass
class LinearProbe:
    """A trained probe. accuracy: fraction of the test rows. predictions: (M,) int64."""

    accuracy: float
    predictions: torch.Tensor
    learning_rate: float
    weight_decay: float


@torch.no_grad()
def linear_probe(
    train_features, train_labels, test_features, test_labels, classes=None, *,
    seed=0, epochs=EPOCHS, learning_rates=LEARNING_RATES, weight_decays=WEIGHT_DECAYS, device=None,
):  # fmt: skip
    """Train a softmax layer on (N, D) features and test it on (M, D). The same seed gives the same probe. Raises InputError
    if features are not finite."""
    device = device or process_state().device
    check_finite("test features", test_features)
    classes = classes or int(max(train_labels.max(), test_labels.max())) + 1
    standardise = standardiser(train_features, device)
    candidates = list(itertools.product(learning_rates, weight_decays))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_labels), generator=generator)
    held_out, rest = order[: round(HELD_OUT * len(order))], order[round(HELD_OUT * len(order)) :]

    chosen = candidates[0]
    if len(candidates) > 1 and len(held_out):
        layer = _train(train_features, train_labels, rest, classes, candidates, standardise, epochs, generator, device)
        correct, loss = 0, 0
        for rows in held_out.split(CHUNK):
            logits = _logits(standardise(train_features[rows]), *layer)  # (B, S, K)
            target = train_labels[rows].to(device)
            correct += (logits.argmax(-1) == target[:, None]).sum(0)
            loss += functional.cross_entropy(
                logits.transpose(1, 2), target[:, None].expand(-1, len(candidates)), reduction="none"
            ).sum(0)
        loss = loss.nan_to_num(nan=math.inf)  # of a rate that diverged
        best = min(range(len(candidates)), key=lambda i: (-correct[i].item(), loss[i].item()))
        chosen = candidates[best]

    layer = _train(train_features, train_labels, order, classes, [chosen], standardise, epochs, generator, device)
    logits = (_logits(standardise(x), *layer)[:, 0] for x in test_features.split(CHUNK))  # (B, K) each
    predictions = torch.cat([part.argmax(-1).cpu() for part in logits])
    accuracy = (predictions == test_labels.cpu()).float().mean().item()
    return LinearProbe(accuracy, predictions, *chosen)


def standardiser(features, device):
    """A function that moves a batch to the device and gives it the training set's zero mean and unit variance."""
    check_finite("training features", features)
    mean, square = torch.zeros(2, features.shape[1], dtype=torch.float64)
    for part in features.split(CHUNK):
        mean += part.double().sum(0) / len(features)
    for part in features.split(CHUNK):
        square += (part.double() - mean).square().sum(0) / len(features)
    mean, scale = mean.float().to(device), (square + EPSILON).rsqrt().float().to(device)
    return lambda batch: (batch.to(device) - mean) * scale


def _logits(x, weight, bias):
    """x: (B, D), weight: (D, S, K), bias: (S, K) to (B, S, K), for S candidates."""
    return (x @ weight.flatten(1)).unflatten(1, bias.shape) + bias


def _train(features, labels, rows, classes, candidates, standardise, epochs, generator, device):
    """SGD with Nesterov momentum from zero for each (learning rate, weight decay): one pass over the data serves all.

    Written out, since each candidate has its own constants; the gradient of a softmax layer is two products.
    """
    weight = torch.zeros(features.shape[1], len(candidates), classes, device=device)  # (D, S, K)
    bias = torch.zeros(len(candidates), classes, device=device)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    base_rate, decay = torch.tensor(candidates, dtype=torch.float32, device=device).T[:, :, None]  # (S, 1) each

    batch_size = min(BATCH_SIZE, len(rows))
    steps_per_epoch = len(rows) // batch_size
    steps = max(epochs * steps_per_epoch, MIN_STEPS)
    base_rate = base_rate * batch_size / 256
    for step in range(steps):
        place = step % steps_per_epoch
        if place == 0:
            shuffled = rows[torch.randperm(len(rows), generator=generator)]
        batch = shuffled[place * batch_size : (place + 1) * batch_size]
        x, target = standardise(features[batch]), labels[batch].to(device)
        error = _logits(x, weight, bias).softmax(-1)  # (B, S, K)
        error[torch.arange(batch_size, device=device), :, target] -= 1
        error /= batch_size
        weight_gradient = (x.T @ error.flatten(1)).view_as(weight).addcmul_(weight, decay)
        bias_gradient = error.sum(0)
        weight_velocity.mul_(MOMENTUM).add_(weight_gradient)
        bias_velocity.mul_(MOMENTUM).add_(bias_gradient)
        rate = base_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        weight -= rate * weight_gradient.add_(weight_velocity, alpha=MOMENTUM)
        bias -= rate * (bias_gradient + MOMENTUM * bias_velocity)
    return weight, bias


__all__ = ["SETTINGS", "LinearProbe", "linear_probe", "standardiser"]
