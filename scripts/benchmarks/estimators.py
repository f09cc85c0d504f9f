"""Deep InfoMax's estimators on Gaussians of known mutual information, with a critic of the right form, on unseen pairs.

Donsker-Varadhan's estimate (DV) reaches what there is to know, at the price of a variance that grows with it; InfoNCE's stays
below log N for N candidates. A Jensen-Shannon loss is no estimate in nats, so it is not here.
"""

import math

import torch
from torch import nn

from hf_ssl.evaluation.plots import pyplot, save
from hf_ssl.methods._places import critic_loss

INFORMATION = (1, 2, 3, 4, 5, 6, 8)  # nats
ESTIMATES = {"DV, batches of 256": ("dv", 256)} | {f"NCE, batches of {n}": ("nce", n) for n in (256, 64, 8)}
BATCH = 256  # of training
PAIRS = 8192  # of the estimate
STEPS = {"dv": 800, "nce": 300}


def gaussians(count, numbers, generator):
    """Pairs of vectors, whose numbers share a nat each."""
    correlation = math.sqrt(1 - math.exp(-2))
    one, other = torch.randn(2, count, numbers, generator=generator)
    return one, correlation * one + math.sqrt(1 - correlation**2) * other


def estimate(estimator, information, count, seed=1):
    """(mean, standard deviation over batches of `count` pairs), in nats, of what `estimator` says of `information` nats."""
    generator = torch.Generator().manual_seed(seed)
    form = nn.Linear(1 + 2 * information, 1 + 2 * information, bias=False)
    nn.init.zeros_(form.weight)

    def scores(one, other):  # in 1, x and x * x the logarithm of the densities' ratio is bilinear
        one, other = (torch.cat([torch.ones(len(x), 1), x, x * x], dim=1) for x in (one, other))
        return (form(one) @ other.T)[..., None]

    optimizer = torch.optim.Adam(form.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, STEPS[estimator])
    for _ in range(STEPS[estimator]):
        critic_loss(scores(*gaussians(BATCH, information, generator)), estimator).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    with torch.no_grad():
        batches = [scores(*gaussians(count, information, generator)) for _ in range(PAIRS // count)]
        nats = -torch.stack([critic_loss(batch, estimator) for batch in batches])
    nats = nats + math.log(count) if estimator == "nce" else nats
    return nats.mean().item(), nats.std().item()


def compare(output=None):
    """Print the table; output: a file for the curves."""
    rows = {name: [estimate(each, nats, count) for nats in INFORMATION] for name, (each, count) in ESTIMATES.items()}
    print("\n| nats to know | " + " | ".join(map(str, INFORMATION)) + " |\n|---|" + "---:|" * len(INFORMATION))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{mean:.2f} ± {spread:.2f}" for mean, spread in row) + " |")
    if output is None:
        return
    figure, axis = pyplot().subplots(figsize=(6, 4))
    axis.plot(INFORMATION, INFORMATION, color="grey", linestyle=":", label="what there is")
    for name, row in rows.items():
        (line,) = axis.plot(INFORMATION, [mean for mean, _ in row], marker="o", label=name)
        estimator, count = ESTIMATES[name]
        if estimator == "nce":
            axis.axhline(math.log(count), color=line.get_color(), linestyle="--", linewidth=0.8)
    axis.set(xlabel="mutual information in nats", ylabel="estimate in nats", ylim=(0, 1.1 * INFORMATION[-1]))
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, output, bbox_inches="tight")
