import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import (
    CLASSIFIER,
    FewLabelsTester,
    assert_same_gradients,
    cross_entropy,
    gradients,
    logits_of,
    softmax,
    uneven,
)

from hf_ssl import PiModelConfig, PiModelForPreTraining


class TestAligned(FewLabelsTester):
    model_class = PiModelForPreTraining
    config = dict(backbone_config=CLASSIFIER, align_classes=True, temperature=0.5, separate_statistics=True)

    def test_loss_equals_a_slow_formula(self):
        """The first view's prediction, aligned and sharpened, is the target of the second's."""
        model, batch = self.decided_model(), self.batch()
        target = softmax((logits_of(model.backbone, batch["pixel_values"]) + uneven(model)) / 0.5)
        p = softmax(logits_of(model.backbone, batch["pixel_values_2"]))
        difference = np.mean([np.sum((a - b) ** 2) / 4 for a, b in zip(p, target, strict=True)])
        supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        output = model(**batch)
        assert output.metrics["difference"].item() == pytest.approx(difference, rel=1e-4) and difference > 1e-3
        assert output.loss.item() == pytest.approx(supervised + 100 * difference, rel=1e-5)


class TestPiModel(FewLabelsTester):
    model_class = PiModelForPreTraining

    def test_loss_equals_a_slow_formula(self):
        """The squared difference of softmaxes is a mean over images and classes."""
        model, batch = self.decided_model(), self.batch()
        one, other = (softmax(logits_of(model.backbone, batch[name])) for name in ("pixel_values", "pixel_values_2"))
        difference = np.mean([(p - q) ** 2 for row in zip(one, other, strict=True) for p, q in zip(*row, strict=True)])
        supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        output = model(**batch)
        assert output.metrics["difference"].item() == pytest.approx(difference, rel=1e-4) and difference > 1e-3
        assert output.loss.item() == pytest.approx(supervised + 100 * difference, rel=1e-5)

    def test_the_weight_equals_the_papers_ramp(self):
        """exp(-5 (1 - T)^2) over the first 80 of 300 epochs, and 0 before the first step."""
        model = self.model()
        model.config.ramp_end = 80 / 300
        for epoch in (0, 0.1, 1, 20, 40, 79, 80, 81, 300):
            model.after_step(epoch / 300)
            expected = 100 * math.exp(-5 * (1 - epoch / 80) ** 2) if epoch < 80 else 100
            expected = expected if epoch else 0
            assert model.weight().item() == pytest.approx(expected, abs=1e-6, rel=1e-6), epoch

    def test_gradient_flows_through_both_views(self):
        """It is the sum of those that each view gets while the other one is a constant."""
        model, batch = self.decided_model(), self.batch()
        one, other = (model.backbone(batch[name]).logits.softmax(1) for name in ("pixel_values", "pixel_values_2"))
        supervised = F.cross_entropy(model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"])
        parts = [
            gradients(loss, model)
            for loss in (
                supervised,
                100 * (one - other.detach()).square().mean(),
                100 * (one.detach() - other).square().mean(),
            )
        ]
        assert all(max(part[name].abs().max() for name in part) > 1e-2 for part in parts)
        expected = {name: sum(part[name] for part in parts) for name in parts[0]}
        assert_same_gradients(gradients(model(**batch).loss, model), expected)

    def test_a_view_that_is_quite_sure_has_finite_gradients(self):
        """Whose other probabilities are 0 in float32."""
        model, batch = self.decided_model(temperature=0.5), self.batch()
        with torch.no_grad():
            model.backbone.classifier[1].weight *= 1000
        assert (model.backbone(batch["pixel_values"]).logits.softmax(1) == 0).any()
        assert all(gradient.isfinite().all() for gradient in gradients(model(**batch).loss, model).values())

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, found -1.0"),
            ({"ramp_end": 0.0}, "ramp_end must be above 0 and at most 1, found 0.0"),
            ({"temperature": -1.0}, "temperature must be positive, found -1.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            PiModelConfig(backbone_config=CLASSIFIER, **change)
