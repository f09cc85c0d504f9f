import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import CLASSIFIER, FewLabelsTester, cross_entropy, logits_of, softmax

from hf_ssl import PiModelConfig, PiModelForPreTraining


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
        """As central differences of the loss say, and with the views exchanged the gradients are."""
        model, batch = self.decided_model(), self.batch()
        names = ["pixel_values", "pixel_values_2"]
        views = [batch.pop(name).requires_grad_() for name in names]
        both = torch.autograd.grad(model(*views, **batch).loss, views)
        exchanged = torch.autograd.grad(model(*views[::-1], **batch).loss, views)
        generator = torch.Generator().manual_seed(1)
        for number, gradient in enumerate(both):
            torch.testing.assert_close(gradient, exchanged[number])
            step = 3e-3 * torch.randn(gradient.shape, generator=generator)
            losses = []
            for sign in (1, -1):
                moved = [view.detach() + sign * step * (place == number) for place, view in enumerate(views)]
                losses.append(model(*moved, **batch).loss.item())
            slope = (losses[0] - losses[1]) / 2
            assert abs(slope) > 1e-3 and (gradient * step).sum().item() == pytest.approx(slope, rel=0.02)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, found -1.0"),
            ({"ramp_end": 0.0}, "ramp_end must be above 0 and at most 1, found 0.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            PiModelConfig(backbone_config=CLASSIFIER, **change)
