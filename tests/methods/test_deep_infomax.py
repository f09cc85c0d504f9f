import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester, sines
from torch import nn

from hf_ssl import DeepInfoMaxConfig, DeepInfoMaxForPreTraining
from hf_ssl.methods._places import Scorer, critic_loss, map_channels, score_places

SMALL = dict(backbone_config=TINY_RESNET, vector_size=8, head_hidden_size=32, critic_size=32, global_grid=2)


def waves(count, seed):
    """Images of one wave each, of its own direction and colour, so that a place says much about the image."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    across, down = torch.rand(2, count, 1, 1, generator=generator)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return (y * down + x * across).sin()[:, None] * 0.3 + colours


class TestLocalNCE(MethodTester):
    """With the adversary, which is the hardest for gradients and processes."""

    model_class = DeepInfoMaxForPreTraining
    config = SMALL | dict(estimator="nce")
    chance_loss = math.log(7 * 16 + 1) + 2.1 * math.log(2)
    random_arguments = ("sample_seeds",)
    tolerance = 5e-5
    floor = 1e-6  # what all places have in common changes no softmax: the gradient of its bias is rounding

    def batch(self, seed=0):
        seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": waves(8, seed), "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def test_loss_is_the_sum_of_its_parts(self):
        for estimator in ("jsd", "nce", "dv"):
            weights = dict(global_weight=0.5, local_weight=2.0, prior_weight=0.3, estimator=estimator)
            config = DeepInfoMaxConfig(**SMALL | weights)
            output = DeepInfoMaxForPreTraining(config).eval()(**self.batch())
            found, ceilings = {k: v.item() for k, v in output.metrics.items()}, {"local": 0.0, "global": 0.0}
            if estimator == "nce":
                ceilings = {"local": math.log(7 * 16 + 1), "global": math.log(8)}
                assert found["local_most_nats"] == pytest.approx(ceilings["local"])
                assert found["global_most_nats"] == pytest.approx(ceilings["global"])
            losses = {
                name: found[f"{name}_loss"] if estimator == "jsd" else ceiling - found[f"{name}_nats"]
                for name, ceiling in ceilings.items()
            }
            expected = 0.5 * losses["global"] + 2 * losses["local"]
            expected += 0.3 * found["prior_loss"] + found["adversary_loss"]
            assert output.loss.item() == pytest.approx(expected, rel=1e-5)

    def test_both_players_have_the_gradients_of_two_optimizers(self):
        """One backward pass, against one for each player."""
        model, batch = self.model().train(), self.batch()
        model(**batch).loss.backward()
        model_2 = self.model().train()
        vectors = model_2.head(model_2.embed(batch["pixel_values"]))
        from hf_ssl.methods._random import PRIOR_STREAM, fold_in, uniform

        prior = uniform(fold_in(batch["sample_seeds"], PRIOR_STREAM), 8)
        real, fake = model_2.adversary(prior), model_2.adversary(vectors.sigmoid())
        bce = F.binary_cross_entropy_with_logits
        of_adversary = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
        own = torch.autograd.grad(of_adversary, list(model_2.adversary.parameters()), retain_graph=True)
        for gradient, parameter in zip(own, model.adversary.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)

        local = model_2(**batch).loss - of_adversary.detach()  # value only
        encoder = [p for name, p in model_2.named_parameters() if not name.startswith("adversary")]
        without = DeepInfoMaxForPreTraining(DeepInfoMaxConfig(**self.config | dict(prior_weight=0.0))).train()
        without.load_state_dict({k: v for k, v in self.model().state_dict().items() if not k.startswith("adversary")})
        critic = without(**batch).loss
        matched = 0.1 * bce(fake, torch.ones_like(fake))
        assert local.item() == pytest.approx(critic.item() + matched.item(), rel=1e-4)
        of_critic = dict(zip(encoder, torch.autograd.grad(critic, list(without.parameters())), strict=True))
        of_prior = torch.autograd.grad(matched, encoder, allow_unused=True)
        for (name, parameter), player in zip(
            [(n, p) for n, p in model.named_parameters() if not n.startswith("adversary")], encoder, strict=True
        ):
            second = of_prior[[id(e) for e in encoder].index(id(player))]
            expected = of_critic[player] + (0 if second is None else second)
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6, msg=name)

    def test_the_adversary_makes_vectors_uniform(self):
        """Vectors that begin far from it: their means and spreads go to those of U(0, 1)."""
        torch.manual_seed(0)
        config = SMALL | dict(vector_size=2, prior_weight=1.0)
        model = DeepInfoMaxForPreTraining(DeepInfoMaxConfig(**config)).train()
        vectors = nn.Parameter(torch.randn(64, 2) * 0.2 + 2)
        optimizer = torch.optim.Adam(
            [{"params": [vectors], "lr": 0.03}, {"params": model.adversary.parameters()}], lr=1e-3
        )
        for step in range(250):
            matched, judged, _ = model.match_prior(vectors, torch.arange(64) + 64 * step)
            (matched + judged).backward()
            optimizer.step()
            optimizer.zero_grad()
        values = vectors.sigmoid().detach()
        assert (values.mean(0) - 0.5).abs().max() < 0.1 and (values.std(0) - 12**-0.5).abs().max() < 0.1

    def test_scorers_begin_as_copies(self):
        scorer = Scorer(5, 9, nn.LayerNorm(9))
        model = self.model()
        weight = model.local_critic["place"].shortcut.weight
        assert weight.diagonal().eq(1).all()
        rest = weight[~torch.eye(*weight.shape, dtype=torch.bool)].detach()
        assert rest.abs().max() <= 0.01 and rest.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.2)
        assert scorer(torch.randn(3, 4, 5)).shape == (3, 4, 9)

    def test_maps_of_networks(self):
        batch = self.batch()
        for backbone, stage, channels in ((TINY_VIT, -1, 32), (TINY_RESNET, 0, 8), (TINY_RESNET, 2, 16)):
            config = DeepInfoMaxConfig(**SMALL | dict(backbone_config=backbone, map_stage=stage, global_weight=1.0))
            assert map_channels(config.backbone_config, stage, "map_stage") == channels
            model = DeepInfoMaxForPreTraining(config).train()
            model(**batch).loss.backward()
        with pytest.raises(ValueError, match="^map_stage=3 is none of the 3 hidden_states of backbone_config"):
            DeepInfoMaxForPreTraining(DeepInfoMaxConfig(**SMALL | dict(map_stage=3)))

    def test_what_does_not_fit_is_refused(self):
        for wrong, message in (
            (dict(estimator="mine"), "estimator must be one of jsd, nce, dv, found 'mine'"),
            (dict(local_weight=0.0), "global_weight and local_weight must not both be 0"),
            (dict(vector_size=0), "vector_size must be at least 1, found 0"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                DeepInfoMaxConfig(**wrong)
        with pytest.raises(ValueError, match="the batch of all processes is 1, expected 2 or more"):
            self.model().check_batch(1, 1)


class TestGlobalDV(MethodTester):
    """The estimator whose loss is not a mean over rows."""

    model_class = DeepInfoMaxForPreTraining
    config = SMALL | dict(estimator="dv", global_weight=1.0, local_weight=0.5, prior_weight=0.0)
    chance_loss = 0.0
    tolerance, floor = TestLocalNCE.tolerance, TestLocalNCE.floor
    random_arguments = TestLocalNCE.random_arguments
    batch, inputs = TestLocalNCE.batch, TestLocalNCE.inputs


class TestJSD(MethodTester):
    model_class = DeepInfoMaxForPreTraining
    config = SMALL | dict(prior_weight=0.0)
    chance_loss = 0.0
    tolerance, floor = TestLocalNCE.tolerance, TestLocalNCE.floor
    random_arguments = TestLocalNCE.random_arguments
    batch, inputs = TestLocalNCE.batch, TestLocalNCE.inputs


def test_estimators_equal_slow_formulas():
    scores = 3 * torch.randn(5, 5, 4)
    T = scores.double().numpy()
    positives = [(n, n, place) for n in range(5) for place in range(4)]
    negatives = [(n, m, place) for n in range(5) for m in range(5) for place in range(4) if m != n]
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    jsd = np.mean([softplus(-T[i]) + T[i] - np.log(2) for i in negatives])
    jsd -= np.mean([np.log(2) - softplus(-T[i]) for i in positives])
    nce = []
    for i in positives:
        others = [np.exp(T[k]) for k in negatives if k[0] == i[0]]
        nce.append(-np.log(np.exp(T[i]) / (np.exp(T[i]) + sum(others))))
    dv = np.log(np.mean([np.exp(T[i]) for i in negatives])) - np.mean([T[i] for i in positives])
    for estimator, expected in (("jsd", jsd), ("nce", np.mean(nce)), ("dv", dv)):
        assert critic_loss(scores, estimator).item() == pytest.approx(expected, abs=1e-5), estimator
    assert critic_loss(torch.zeros(5, 5, 4), "nce").item() == pytest.approx(math.log(17))
    for estimator in ("jsd", "dv"):
        assert critic_loss(torch.zeros(5, 5, 4), estimator).item() == pytest.approx(0, abs=1e-6)
    for estimator in ("jsd", "nce", "dv"):  # large scores do not overflow
        assert critic_loss(300 * torch.randn(5, 5, 4), estimator).isfinite()


@pytest.mark.parametrize(
    "places, jsd, nce, dv", [(3, 1.68548870, 5.30698633, 2.82515979), (1, -0.46133375, 0.21619391, -2.74175453)]
)
def test_losses_are_those_of_the_authors_code(places, jsd, nce, dv):
    """Recorded from fenchel_dual_loss, with measure "JSD", and infonce_loss of cortex_DIM/functions/dim_losses.py, commit
    bac4765, which has each place of the own image among the negatives, with a score of -10: one more image here.
    donsker_varadhan_loss there raises a RuntimeError for one vector an image; get_negative_expectation less
    get_positive_expectation, with "DV", of gan_losses.py are the same formula."""
    scores = score_places(sines(0.1, 5, 8) / 4, sines(0.2, 5, places, 8))
    assert critic_loss(scores, "jsd").item() == pytest.approx(jsd, abs=1e-5)
    assert critic_loss(scores, "dv").item() == pytest.approx(dv, abs=1e-5)
    with_own = torch.cat([scores, torch.full((5, 1, places), -10.0)], dim=1)
    assert critic_loss(with_own, "nce").item() == pytest.approx(nce, abs=1e-5)
    assert 0 < critic_loss(with_own, "nce") - critic_loss(scores, "nce") < 1e-3


def test_the_players_losses_are_those_of_the_authors_code():
    """Recorded from generator_loss, "non-saturating", and the two expectations of cortex_DIM/functions/gan_losses.py, commit
    bac4765, with measure "GAN", by which prior_matching.py trains; its penalty on the gradient is left out."""
    model = DeepInfoMaxForPreTraining(DeepInfoMaxConfig(**SMALL))
    model.adversary = nn.Identity()
    matched, judged, _ = model.match_prior(sines(0.4, 5, 1), prior=sines(0.3, 5, 1))
    assert matched.item() == pytest.approx(0.46238145, abs=1e-5)
    assert judged.item() == pytest.approx(1.79923046, abs=1e-5)


@pytest.mark.parametrize("estimator, information, count", [("dv", 1, 256), ("nce", 1, 256), ("nce", 3, 8)])
def test_estimates_of_gaussians(estimator, information, count):
    """Of a critic with the right form, on pairs that it has not seen, `count` of them at a time."""
    from hf_ssl.scripts.benchmarks.estimators import estimate

    nats, _ = estimate(estimator, information, count)
    if estimator == "dv":
        assert nats == pytest.approx(information, rel=0.1)
        return
    ceiling = math.log(count)
    assert nats < min(ceiling, 1.05 * information)
    assert nats > 0.8 * min(ceiling, information)
