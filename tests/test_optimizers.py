"""Optimizers and schedules against their papers' formulas."""

import numpy as np
import pytest
import torch

from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.optimizers import LARS, build_optimizer, build_scheduler


def test_lars_equals_a_slow_formula():
    """google-research/simclr, lars_optimizer.py, classic momentum, weight by weight in NumPy; the rate changes on the way."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((4, 3), (2, 3, 3, 3), (5,))]
    start[1] *= 100
    weights = [value.clone().requires_grad_() for value in (*start, torch.zeros(3, 3))]
    groups = [
        {"params": [weights[0], weights[1], weights[3]], "weight_decay": 0.1},
        {"params": [weights[2]], "adapted": False},
    ]
    optimizer = LARS(groups, lr=0.0, momentum=0.9)
    expected = [weight.detach().numpy().astype(np.float64) for weight in weights]
    momenta = [np.zeros_like(value) for value in expected]
    for rate in (0.5, 2.0, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator)
            gradient, trust = weight.grad.numpy().astype(np.float64), 1.0
            if i != 2:
                gradient = gradient + 0.1 * expected[i]
                norms = np.linalg.norm(expected[i]), np.linalg.norm(gradient)
                trust = 0.001 * norms[0] / norms[1] if min(norms) > 0 else 1.0
            momenta[i] = 0.9 * momenta[i] + rate * trust * gradient
            expected[i] = expected[i] - momenta[i]
        optimizer.step()
        for weight, value in zip(weights, expected, strict=True):
            np.testing.assert_allclose(weight.detach(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optim, decayed", [("adamw", 1), ("lars", 1), ("sgd", 2)])
def test_vectors_are_decayed_by_sgd_only(optim, decayed):
    model = torch.nn.Linear(3, 2)
    args = TrainingArguments(optim=optim, weight_decay=0.3, momentum=0.7)
    groups = build_optimizer(model, 0.1, args).param_groups
    assert sum(len(group["params"]) for group in groups if group["weight_decay"] == 0.3) == decayed
    assert sum(len(group["params"]) for group in groups) == 2
    assert optim == "adamw" or all(group["momentum"] == 0.7 for group in groups)


def test_step_schedule_drops_twice_after_a_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_scheduler(optimizer, TrainingArguments(lr_scheduler_type="step", warmup_steps=4), 100)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [rates[i] for i in (59, 60, 79, 80, 99)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
