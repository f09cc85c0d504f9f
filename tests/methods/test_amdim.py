import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_deep_infomax import waves
from methods.tester import TINY_RESNET, MethodTester, sines

from hf_ssl import AMDIMConfig, AMDIMForPreTraining
from hf_ssl.methods._places import critic_loss

GRIDS = dict(coarse_stage=-1, fine_stage=-2, coarse_grid=2, fine_grid=3)


class TestAMDIM(MethodTester):
    model_class = AMDIMForPreTraining
    config = dict(backbone_config=TINY_RESNET, projection_size=32, score_penalty=0.05) | GRIDS
    chance_loss = 2 * math.log(7 * 4 + 1) + math.log(7 * 9 + 1)
    random_arguments = ("sample_seeds",)
    tolerance = 5e-5
    floor = 1e-6

    def batch(self, seed=0):
        seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(seed))
        first = waves(8, seed)
        return {"pixel_values": first, "pixel_values_2": first.flip(3) * 0.9, "sample_seeds": seeds}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def test_loss_equals_a_slow_formula(self):
        """Place by place, of the projections that the model gives."""
        model, batch = self.model().eval(), self.batch()
        with torch.no_grad():
            for projector in (model.vector_projector, model.coarse_projector, model.fine_projector):
                projector.norm.weight.mul_(5)  # so that scores are clipped
            places = torch.arange(16).view(8, 2) % 4
            output = model(**batch, source_places=places)
            views = [
                [x.double().numpy() for x in model.project(batch[name])[1:]]
                for name in ("pixel_values", "pixel_values_2")
            ]
        losses, penalty = dict.fromkeys(("1_to_5", "1_to_7", "5_to_5"), 0.0), 0.0
        for view, other in ((0, 1), (1, 0)):
            vector, coarse, _ = views[view]
            source = np.stack([coarse[n, places[n, view]] for n in range(8)])
            pairs = (vector, views[other][1]), (vector, views[other][2]), (source, views[other][1])
            for name, (sources, targets) in zip(losses, pairs, strict=True):
                raw = np.array([[[a @ b for b in image] for image in targets] for a in sources]) / 32**0.5
                penalty += 0.05 * (raw**2).mean() / 2
                scores, terms = 20 * np.tanh(raw / 20), []
                for n in range(8):
                    others = np.exp(np.delete(scores[n], n, axis=0)).sum()
                    terms += [-np.log(np.exp(s) / (np.exp(s) + others)) for s in scores[n, n]]
                losses[name] += np.mean(terms) / 2
        assert abs(raw).max() > 10  # the clip is felt
        for name, loss in losses.items():
            assert output.metrics[f"loss_{name}"].item() == pytest.approx(loss, rel=1e-5), name
        assert output.metrics["penalty"].item() == pytest.approx(penalty, rel=1e-5)
        assert output.loss.item() == pytest.approx(sum(losses.values()) + penalty, rel=1e-5)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(7 * 9 + 1))
        assert output.metrics["nats"].item() == pytest.approx(math.log(7 * 9 + 1) - losses["1_to_7"], abs=1e-4)

    def test_loss_is_that_of_the_authors_code(self):
        """Recorded from NCE_MI_MULTI of costs.py, commit 627eca3, whose penalty has its weight in it."""
        model = AMDIMForPreTraining(AMDIMConfig(**self.config | dict(projection_size=8)))

        vectors, coarse, fine = (
            [sines(phase, *shape) for phase in phases]
            for phases, shape in (((0.1, 0.2), (4, 8)), ((0.3, 0.4), (4, 25, 8)), ((0.5, 0.6), (4, 49, 8)))
        )
        places = torch.tensor([[0, 24], [7, 3], [12, 12], [20, 1]])
        sources = [view[torch.arange(4), places[:, number]] for number, view in enumerate(coarse)]
        penalty = 0.0
        for own, other, loss in (
            (vectors, coarse, 7.8931241),
            (vectors, fine, 8.6585350),
            (sources, coarse, 8.0134926),
        ):
            both = [model.scores(own[view], other[1 - view]) for view in (0, 1)]
            assert sum(critic_loss(scores, "nce") for scores, _ in both).item() / 2 == pytest.approx(loss, abs=1e-5)
            penalty += 0.05 * sum(square for _, square in both).item() / 2
        assert penalty == pytest.approx(2.3439147, abs=1e-5)

    def test_a_place_is_drawn_for_each_view(self):
        seeds = torch.arange(4000)
        places = self.model().draw_places(4000, seeds)
        assert places.shape == (4000, 2) and places.min() == 0 and places.max() == 3
        assert torch.equal(places, self.model().draw_places(4000, seeds))
        counts = torch.bincount(places[:, 0] * 4 + places[:, 1], minlength=16)
        assert (counts - 250).abs().max() < 80  # all pairs of places

    def test_what_does_not_fit_is_refused(self):
        for wrong, message in (
            (dict(score_clip=0.0), "score_clip must be positive, found 0.0"),
            (dict(fine_grid=0), "fine_grid must be at least 1, found 0"),
        ):
            with pytest.raises(StrictDataclassError, match=message):
                AMDIMConfig(**wrong)
        with pytest.raises(ValueError, match="^fine_stage=3 is none of the 3 hidden_states of backbone_config"):
            AMDIMForPreTraining(AMDIMConfig(**self.config | dict(fine_stage=3)))
        with pytest.raises(ValueError, match="the batch of all processes is 1, expected 2 or more"):
            self.model().check_batch(1, 1)
