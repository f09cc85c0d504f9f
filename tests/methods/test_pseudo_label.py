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

from hf_ssl import PseudoLabelConfig, PseudoLabelForPreTraining


class TestPseudoLabel(FewLabelsTester):
    model_class = PseudoLabelForPreTraining
    config = dict(backbone_config=CLASSIFIER, align_classes=True)

    @pytest.mark.parametrize("threshold", [0.0, 0.7])
    def test_loss_equals_a_slow_formula(self, threshold):
        """The mean over all unlabelled images, of which those below the threshold give 0."""
        model, batch = self.decided_model(threshold=threshold), self.batch()
        losses, confident, added = [], [], uneven(model)
        for logits in logits_of(model.backbone, batch["pixel_values"]):
            aligned = softmax(logits + added)
            confident.append(aligned.max() >= threshold)
            losses.append(-np.log(softmax(logits)[aligned.argmax()]) if confident[-1] else 0)
        assert len(losses) == 8 and (0 < sum(confident) < 8 or threshold == 0)
        supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        output = model(**batch)
        assert output.loss.item() == pytest.approx(supervised + 3 * np.mean(losses), abs=2e-5)
        assert output.metrics["unlabelled"].item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert output.metrics["confident"].item() == np.mean(confident)

    def test_the_weight_equals_equation_16(self):
        """T1 = 100, T2 = 600 of 3000 epochs, alpha_f = 3."""
        model = self.model()
        model.config.ramp_start, model.config.ramp_end = 100 / 3000, 600 / 3000
        assert self.model_class.config_class().unlabelled_weight == 3
        for t in (0, 1, 99, 100, 101, 250, 400, 599, 600, 601, 2000, 3000):
            model.after_step(t / 3000)
            expected = 0 if t < 100 else 3 * (t - 100) / (600 - 100) if t < 600 else 3
            assert model.weight().item() == pytest.approx(expected, abs=1e-6), t

    def test_the_label_is_a_constant(self):
        """The gradients are those of the cross-entropy with labels that were written down before."""
        model, batch = self.decided_model(threshold=0.5), self.batch()
        p = softmax(logits_of(model.backbone, batch["pixel_values"]))
        counts, labels = torch.tensor(p.max(1) >= 0.5).float(), torch.tensor(p.argmax(1))
        losses = F.cross_entropy(model.backbone(batch["pixel_values"]).logits, labels, reduction="none")
        supervised = F.cross_entropy(model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"])
        constant = supervised + 3 * (losses * counts).sum() / 8
        assert_same_gradients(gradients(model(**batch).loss, model), gradients(constant, model))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"unlabelled_weight": -1.0}, "unlabelled_weight must be at least 0, found -1.0"),
            ({"ramp_start": 0.3}, "ramp_start must be at least 0, smaller than ramp_end, .*: found 0.3 and 0.2"),
            ({"ramp_start": -0.1}, "ramp_start must be at least 0, .*: found -0.1 and 0.2"),
            ({"ramp_end": 1.5}, "and that at most 1: found 0.033 and 1.5"),
            ({"threshold": 1.0}, "threshold must be at least 0 and below 1, found 1.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            PseudoLabelConfig(backbone_config=CLASSIFIER, **change)
