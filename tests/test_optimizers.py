"""Optimizers and schedules against their papers' formulas."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from hf_ssl.errors import InputError
from hf_ssl.evaluation.protocols.fine_tune import Classifier, parameter_groups
from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.optimizers import LARS, SCHEDULES, build_optimizer, build_scheduler


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


class _TwoPlayers(torch.nn.Module):
    learning_rate_factors = {"discriminator": 0.1, "discriminator.head": 3.0}

    def __init__(self):
        super().__init__()
        self.discriminator = torch.nn.ModuleDict({"body": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 1)})
        self.generator = torch.nn.Linear(3, 4)
        self.discriminators = torch.nn.Linear(2, 2)  # another part, though its name begins alike
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)

    factors = {"discriminator.body": 0.1, "discriminator.head": 3.0, "generator": 1.0, "discriminators": 1.0}


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_parts_learn_at_their_own_rates_throughout(optim, schedule):
    model = _TwoPlayers()
    args = TrainingArguments(optim=optim, weight_decay=0.3, lr_scheduler_type=schedule, warmup_steps=3)
    optimizer = build_optimizer(model, 0.2, args)
    scheduler = build_scheduler(optimizer, args, 12)
    names = {parameter: name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    for _ in range(12):
        highest = optimizer.param_groups[0]["lr"]
        assert scheduler.get_last_lr()[0] == highest <= 0.2
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert group["lr"] == pytest.approx(model.factors[names[parameter]] * highest)
                assert group["weight_decay"] == (0.3 if optim == "sgd" or parameter.ndim > 1 else 0.0)
        optimizer.step()
        scheduler.step()
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {*own} == {parameter for parameter in model.parameters() if parameter.requires_grad} and len(own) == 8


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars"])
def test_a_factor_is_a_rate_of_its_own(optim):
    """A step with the factor is that of an optimizer with the multiplied rate."""
    moved = {}
    for factors, rate in (({"": 1.0}, 0.01), ({"1": 0.1}, 0.1)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        model.learning_rate_factors = {prefix: factor for prefix, factor in factors.items() if prefix}
        optimizer = build_optimizer(model, rate, TrainingArguments(optim=optim))
        for step in range(3):
            model(torch.eye(3) * (step + 1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model[0].load_state_dict({name: value * 0 + 0.5 for name, value in model[0].state_dict().items()})
        moved[rate] = model[1].weight.detach()
    torch.testing.assert_close(moved[0.01], moved[0.1])


def test_a_factor_of_nothing_is_refused():
    class Misspelt(_TwoPlayers):
        learning_rate_factors = {"discriminator": 0.1, "frozen": 0.5}

    with pytest.raises(
        InputError,
        match="^learning_rate_factors of Misspelt name 'frozen', .*: expected .* discriminator, discrimi.*, gen",
    ):
        build_optimizer(Misspelt(), 0.1, TrainingArguments())


def test_optimizers_of_models_without_factors_are_as_their_checkpoints_know_them():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    numbers = {parameter: number for number, parameter in enumerate(model.parameters())}
    for optim, expected in (("adamw", [[0, 2], [1, 3]]), ("lars", [[0, 2], [1, 3]]), ("sgd", [[0, 1, 2, 3]])):
        groups = build_optimizer(model, 0.1, TrainingArguments(optim=optim)).param_groups
        assert [[numbers[parameter] for parameter in group["params"]] for group in groups] == expected


def test_fine_tuning_decays_matrices_but_no_tokens_and_positions():
    """main_finetune.py of MAE: neither vectors nor what the ViT names in no_weight_decay."""
    vit = dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    encoder = SimpleNamespace(model=ViTModel(ViTConfig(**vit)), feature="pooler_output")
    classifier = Classifier(encoder, 8, 3)
    decayed = {id(p) for group in parameter_groups(classifier) if group["weight_decay"] for p in group["params"]}
    names = {
        name
        for name, parameter in classifier.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in decayed
    }
    assert names == {"backbone.embeddings.cls_token", "backbone.embeddings.position_embeddings"}
    assert not any(p.ndim < 2 for p in classifier.parameters() if id(p) in decayed)
    assert id(classifier.backbone.embeddings.patch_embeddings.projection.weight) in decayed
