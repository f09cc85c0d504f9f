"""Is the representation alive? Measured on the features of a training batch, without labels."""

import warnings

import torch
import torch.nn.functional as F


class RepresentationCollapseWarning(UserWarning):
    """Different inputs get nearly the same features."""


# Healthy runs of this project's methods stay above a spread of 0.1 and a rank of 4; collapsed ones fall below 0.01 and 2.
SMALLEST_SPREAD, SMALLEST_RANK = 0.02, 1.5
LEAST_STEPS = 50  # before which a network is nearly the one that was drawn
CAUSES = (
    "likely causes: a learning rate that is too high or without warm-up, no negatives or stop-gradient, a key encoder "
    "that moves too fast, batch statistics that leak, a temperature that is too high, or inputs that are all alike"
)


@torch.no_grad()
def representation_health(output):
    """output: an SSLOutput. All values are Python floats; one transfer from the device; none of a single sample.

    feature_std: mean standard deviation of the unit-length features' dimensions times sqrt(D): 0 collapsed, 1 spread
    evenly over the sphere (Chen and He 2020, section 4.1). effective_rank: exp of the entropy of the centred features'
    normalised singular values (Roy and Vetterli 2007; RankMe, Garrido et al. 2022). Where two views are compared, of their
    projections: projection_std as above, since a head can collapse alone; alignment, the mean squared distance of the two
    views, and uniformity, log mean exp(-2 squared distance) over pairs (Wang and Isola 2020).
    """
    if len(output.features) < 2:
        return {}
    features = output.features.detach().float()
    singular = torch.linalg.svdvals(features - features.mean(0))
    share = singular / singular.sum().clamp(min=1e-12)
    values = {
        "feature_std": _spread(F.normalize(features, dim=1)),
        "effective_rank": torch.exp(-(share * share.clamp(min=1e-12).log()).sum()),
    }
    if output.projections is not None:
        one, other = (F.normalize(p.detach().float(), dim=1) for p in (output.projections, output.projections_2))
        values["projection_std"] = _spread(one)
        values["alignment"] = (one - other).square().sum(1).mean()
        values["uniformity"] = torch.pdist(one).square().mul(-2).exp().mean().log()
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def _spread(unit):
    return unit.std(0).mean() * unit.shape[1] ** 0.5


def warn_if_collapsed(health, step):
    """Warn by name; returns whether it did."""
    spread = min(health["feature_std"], health.get("projection_std", 1.0))
    collapsed = spread < SMALLEST_SPREAD or health["effective_rank"] < SMALLEST_RANK
    if collapsed:
        what = "projection_std" if spread < health["feature_std"] else "feature_std"
        warnings.warn(
            f"The representation has collapsed at step {step}: {what} {spread:.2g} (alive: above {SMALLEST_SPREAD}), "
            f"effective_rank {health['effective_rank']:.2g} (alive: above {SMALLEST_RANK}); {CAUSES}.",
            RepresentationCollapseWarning,
            stacklevel=2,
        )
    return collapsed
