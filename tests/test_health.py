import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.evaluation.plots import save_loss
from hf_ssl.methods._base import SSLOutput
from hf_ssl.training.health import RepresentationCollapseWarning, representation_health, warn_if_collapsed


def test_isotropic_features_are_healthy():
    features = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    health = representation_health(SSLOutput(features=features, projections=features, projections_2=features + 0.0))
    assert health["feature_std"] == pytest.approx(1, abs=0.01)
    assert health["effective_rank"] == pytest.approx(8, abs=0.05)
    assert health["projection_std"] == health["feature_std"]
    assert health["alignment"] == pytest.approx(0, abs=1e-6)
    # E exp(-2 |x - y|^2) on the sphere of 8 dimensions, by its own Monte Carlo
    x, y = torch.nn.functional.normalize(torch.randn(2, 100_000, 8, dtype=torch.float64), dim=2)
    assert health["uniformity"] == pytest.approx((-2 * (x - y).square().sum(1)).exp().mean().log().item(), abs=0.02)
    assert not warn_if_collapsed(health, 10)


def test_rank_counts_directions():
    directions = torch.linalg.qr(torch.randn(16, 3))[0]
    features = torch.randn(2000, 3) @ directions.T
    assert representation_health(SSLOutput(features=features))["effective_rank"] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("kind", ["one point", "one line"])
def test_collapse_has_a_name(kind):
    if kind == "one point":
        features = torch.ones(64, 8) + 1e-3 * torch.randn(64, 8)
    else:
        features = torch.randn(64, 1) * torch.randn(1, 8)
    with pytest.warns(RepresentationCollapseWarning, match="has collapsed at step 7.*likely causes"):
        assert warn_if_collapsed(representation_health(SSLOutput(features=features)), 7)


def test_views_apart_are_not_aligned():
    one, other = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0))
    assert representation_health(SSLOutput(features=one, projections=one, projections_2=other))[
        "alignment"
    ] == pytest.approx(2, abs=0.2)  # E |x - y|^2 = 2 for independent
    assert all(math.isfinite(v) for v in representation_health(SSLOutput(features=torch.zeros(8, 4))).values())


def test_a_loss_is_drawn_if_there_is_one(tmp_path):
    """Of a run that has logged once too, which a line would not show."""
    save_loss([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    save_loss([{"step": 20, "loss": 3.0}], tmp_path / "one.png")
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).astype(int)
    assert (pixels.max(2) - pixels.min(2) > 50).sum() > 20  # of the marker's colour
