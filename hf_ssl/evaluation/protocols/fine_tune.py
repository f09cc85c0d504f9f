"""Fine-tuning of the whole network, with all labels or few.

MAE's settings where they apply (https://github.com/facebookresearch/mae, FINETUNE.md and main_finetune.py).
Deviations: head on the feature that the probes use, learning rate and layer decay for small networks, no drop path,
mixup, cutmix or random erasing, and at least 500 steps.
"""

import copy
import math
import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm.auto import tqdm

from ...data.images import ImageDecoder
from ...data.views import RandomResizedCropAndFlip
from ...errors import InputError
from ...methods._random import fold_in
from ..processes import process_state
from .low_label import balanced_subset

EPOCHS, BATCH_SIZE = 50, 256  # FINETUNE.md has 50 epochs for ViT-L and ViT-H; batch 1024
LEARNING_RATE = 2e-3  # x batch / 256; what FINETUNE.md's 5e-4 x batch / 256 comes to at its batch of 1024
WEIGHT_DECAY, LABEL_SMOOTHING = 0.05, 0.1
LAYER_DECAY = 0.75
WARMUP = 0.05  # of the steps: 5 of 100 epochs
MIN_RATE = 1e-6
MIN_STEPS = 500  # few rows make few steps in 50 epochs
FRACTIONS = (0.01, 0.1, 1.0)
SETTINGS = {
    "optimizer": "AdamW, cosine schedule",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate": f"{LEARNING_RATE} x batch / 256",
    "weight_decay": f"{WEIGHT_DECAY}, of matrices but for cls token and positions",
    "layer_decay": LAYER_DECAY,
    "warmup": WARMUP,
    "label_smoothing": LABEL_SMOOTHING,
    "augmentation": "random resized crop and flip",
    "deviation": "no drop path, mixup, cutmix or random erasing",
    "random_initialisation": "the same run from random weights",
}
NOT_DECAYED = re.compile(
    r"(cls|distillation)_token|position_embedding"
)  # besides vectors: no_weight_decay of MAE's ViT
LISTS_OF_LAYERS = re.compile(r"(^|\.)(layers|layer|stages|blocks)$")


@dataclass
class LabelledRows:
    """items: uint8 images (C, H, W) of any sizes, or texts. labels: (N,) int64; float32 for regression."""

    items: list
    labels: torch.Tensor

    def subset(self, rows):
        return LabelledRows([self.items[row] for row in rows], self.labels[rows])


class Classifier(nn.Module):
    """An encoder and a linear head on its feature."""

    def __init__(self, encoder, width, classes):
        super().__init__()
        self.backbone = encoder.model
        self.feature = encoder
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # main_finetune.py
        nn.init.zeros_(self.head.bias)

    def forward(self, pixel_values):
        return self.head(self.feature(pixel_values))


def fine_tune(
    encoder, train, test, classes, *, fraction=1.0, epochs=EPOCHS, batch_size=BATCH_SIZE,
    min_steps=MIN_STEPS, seed=0, device=None,
):  # fmt: skip
    """Accuracy on `test`, a fraction, after training a copy of `encoder` on a class-balanced `fraction` of `train`."""
    device = device or process_state().device
    if fraction < 1:
        train = train.subset(balanced_subset(train.labels, fraction, seed))
    with torch.random.fork_rng():  # head and dropout; views have the seeds of their samples
        torch.manual_seed(seed)
        encoder = copy.copy(encoder)
        encoder.model = copy.deepcopy(encoder.model).to(device)
        with torch.no_grad():
            width = encoder(encoder.preprocess(train.items[:1], device)).shape[1]
        classifier = Classifier(encoder, width, classes).to(device)
        _train(classifier, train, epochs, min(batch_size, len(train.labels)), min_steps, seed, device)
        return _accuracy(classifier.eval(), test, batch_size, device)


def _train(classifier, train, epochs, batch_size, min_steps, seed, device):
    encoder = classifier.feature
    view = RandomResizedCropAndFlip(**encoder.view)
    collate = ImageDecoder(None, encoder.channels, view).collate
    groups = parameter_groups(classifier)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE * batch_size / 256, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = len(train.items) // batch_size
    steps = max(epochs * steps_per_epoch, min_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [partial(_rate, steps=steps, group=g) for g in groups])
    criterion = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    sample_seeds = fold_in(torch.arange(len(train.items)), seed)
    generator = torch.Generator().manual_seed(seed)

    classifier.train()
    for step in tqdm(range(steps), desc="fine-tuning", unit="step"):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0:
            order = torch.randperm(len(train.items), generator=generator)
        rows = order[place * batch_size : (place + 1) * batch_size]
        crops = collate([train.items[row] for row in rows], fold_in(sample_seeds[rows], epoch))
        pixel_values = view(**{name: tensor.to(device) for name, tensor in crops.items()})["pixel_values"]
        loss = criterion(classifier(pixel_values), train.labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not loss.isfinite():
        raise InputError("fine_tune: the loss is not finite at the end, so its accuracy would be that of chance.")


@torch.no_grad()
def _accuracy(classifier, test, batch_size, device):
    correct = 0
    for start in range(0, len(test.labels), batch_size):
        pixel_values = classifier.feature.preprocess(test.items[start : start + batch_size], device)
        predicted = classifier(pixel_values).argmax(-1).cpu()
        correct += int((predicted == test.labels[start : start + batch_size]).sum())
    return correct / len(test.labels)


def parameter_groups(classifier):
    """Parameter groups with layer-wise learning rates: the head has 1, each layer below LAYER_DECAY of the one above.

    What comes before the list of layers in the model (patch embeddings, stem) is one layer, what comes after (norm,
    pooler) belongs to the head. A model without a list of layers has one rate. Vectors, the cls token and position tables are
    not decayed.
    """
    dual_prefix = "vision_model." if classifier.feature.feature == "image features" else ""
    lists = [
        (name, len(module))
        for name, module in classifier.backbone.named_modules()
        if isinstance(module, nn.ModuleList) and LISTS_OF_LAYERS.search(name) and name.startswith(dual_prefix)
    ]
    prefix, depth = lists[0] if lists else (None, 0)  # the outermost
    groups, seen_layers = {}, False
    for name, parameter in classifier.named_parameters():
        inner = name.removeprefix("backbone.")
        if depth and inner.startswith(f"{prefix}."):
            seen_layers, level = True, int(inner[len(prefix) + 1 :].split(".")[0]) + 1
        else:
            level = depth + 1 if seen_layers or not depth else 0
        decay = WEIGHT_DECAY if parameter.ndim > 1 and not NOT_DECAYED.search(name) else 0.0
        group = groups.setdefault((level, decay), {"params": [], "weight_decay": decay})
        group["scale"] = LAYER_DECAY ** (depth + 1 - level)
        group["params"].append(parameter)
    return list(groups.values())


def _rate(step, steps, group):
    """Linear warm-up, then half a cosine to MIN_RATE, times the scale of the layer."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return group["scale"] * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return group["scale"] * max(cosine, MIN_RATE / LEARNING_RATE)


__all__ = ["FRACTIONS", "SETTINGS", "LabelledRows", "fine_tune", "parameter_groups"]
