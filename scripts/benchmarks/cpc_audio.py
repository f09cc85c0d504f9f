"""One CPC step on 16 kHz speech against a plain module of torch's layers with a loop of 12 losses, in fp32.

The reference is what one would write: Conv1d, a norm, ReLU, a GRU, and for each k one product and one cross-entropy. With
a channel norm and our negatives its loss is ours; with batch norm, and the other windows at the same time as negatives, it is
as quick as it gets.
"""

from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from hf_ssl import CPCAudioConfig, CPCAudioForPreTraining
from hf_ssl.training.loop import TrainingArguments, choose_kernels
from hf_ssl.training.optimizers import build_optimizer

from . import cpc_table, sides
from .timing import device, interleave, place, print_speed, timed, verdict

SIZES = {"paper": (512, 8), "narrow": (128, 8)}  # channels, windows
SAMPLES, DEMANDS = 20480, {"fp32": 1.05, "bf16": 1.9}


class Plain(nn.Module):
    """With the parameters of ours, by copy."""

    def __init__(self, ours, batch_norm):
        super().__init__()
        encoder = ours.config.backbone_config
        sizes = zip(encoder.kernel_sizes, encoder.strides, encoder.paddings, strict=True)
        width, inputs = encoder.conv_size, [1] + [encoder.conv_size] * 4
        self.convolutions = nn.ModuleList(nn.Conv1d(i, width, *size) for i, size in zip(inputs, sizes, strict=True))
        norm = nn.BatchNorm1d if batch_norm else nn.LayerNorm
        self.norms = nn.ModuleList(norm(width) for _ in inputs)
        self.recurrent = nn.GRU(width, encoder.hidden_size, batch_first=True)
        self.predictors = nn.ModuleList(nn.Linear(encoder.hidden_size, width, bias=False) for _ in range(12))
        self.batch_norm = batch_norm
        self.load_state_dict(ours.backbone.state_dict(), strict=False)
        with torch.no_grad():
            for predictor, w in zip(self.predictors, ours.predictor.linear.weight.chunk(12), strict=True):
                predictor.weight.copy_(w)

    def forward(self, input_values, negatives):
        x = input_values[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            x = F.relu(norm(x) if self.batch_norm else norm(x.transpose(1, 2)).transpose(1, 2))
        z = x.transpose(1, 2)  # (N, L, D)
        c, _ = self.recurrent(z)
        rows, times = len(z), z.shape[1] - 12
        losses = []
        for k, predictor in enumerate(self.predictors, 1):
            predicted, future = predictor(c[:, :times]), z[:, k : k + times]
            if self.batch_norm:
                scores = torch.einsum("btd,etd->tbe", predicted, future).flatten(0, 1)
                labels = torch.arange(rows, device=scores.device).repeat(times)
            else:
                others = z.flatten(0, 1)[negatives]  # (N, M, D)
                positive = (predicted * future).sum(2, keepdim=True)
                scores = torch.cat([positive, torch.einsum("ntd,nmd->ntm", predicted, others)], 2).flatten(0, 1)
                labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
            losses.append(F.cross_entropy(scores, labels))
        return torch.stack(losses).mean()


def model_and_batch(size):
    channels, rows = SIZES[size]
    torch.manual_seed(0)
    encoder = dict(model_type="ssl_cpc_audio_model", conv_size=channels)
    model = CPCAudioForPreTraining(CPCAudioConfig(backbone_config=encoder))
    # from the other windows: neither side then has a positive among them
    places = torch.randint(128, rows * 128, (rows, model.config.negatives)) + 128 * torch.arange(rows)[:, None]
    inputs = dict(input_values=torch.randn(rows, SAMPLES), negatives=places % (rows * 128))
    return model, {name: value.to(device()) for name, value in inputs.items()}


def reference(size, batch_norm, losses):
    ours, inputs = model_and_batch(size)
    model = Plain(ours, batch_norm).to(device())
    optimizer = torch.optim.Adam(model.parameters(), 2e-4)
    if not batch_norm:
        with sides.exact_products():
            losses.append(model.eval()(**inputs).item())
    return partial(training_step, lambda: model.train()(**inputs), optimizer)


def ours(size, precision, losses):
    """A step as hf_ssl/training/loop.py makes it."""
    AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
    accelerator = Accelerator(mixed_precision=precision)
    model, inputs = model_and_batch(size)
    choose_kernels(model, accelerator)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, 2e-4, TrainingArguments(weight_decay=0.0)))
    with sides.exact_products():
        losses.append(model.eval()(**inputs).loss.item())
    return partial(training_step, lambda: model.train()(**inputs).loss, optimizer)


def training_step(loss, optimizer):
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def step(args):
    size, losses = args.size, []
    steps = {
        "plain fp32, channel norm": reference(size, False, losses),
        "plain fp32, batch norm": reference(size, True, losses),
        "hf_ssl fp32": ours(size, "no", losses),
        "hf_ssl bf16": ours(size, "bf16", losses),
    }
    for loss, tolerance in zip(losses, (0, 1e-5, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses of equal weights and negatives differ before the timing: {losses}.")
    seconds = interleave({name: partial(timed, run) for name, run in steps.items()}, args.rounds)
    references = {"channel norm": "plain fp32, channel norm", "batch norm": "plain fp32, batch norm"}
    channels, rows = SIZES[size]
    print_speed(f"CPC step, {channels} channels, {rows} windows, {place()}", seconds, references)
    for precision, demand in DEMANDS.items():
        for column, reference_name in references.items():
            ratios = [a / b for a, b in zip(seconds[reference_name], seconds[f"hf_ssl {precision}"], strict=True)]
            verdict(f"{precision} over {column}", sorted(ratios)[len(ratios) // 2], demand)


def table(args):
    cpc_table.compare(args.output_dir, args.flags)


PARTS = {"step": step, "table": table}
