import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import CLASSIFIER, FewLabelsTester, cross_entropy, logits_of, softmax, statistics

from hf_ssl import EntropyMinimizationConfig, EntropyMinimizationForPreTraining
from hf_ssl.methods._semi_supervised import entropy


class TestEntropyMinimization(FewLabelsTester):
    model_class = EntropyMinimizationForPreTraining

    def test_loss_equals_a_slow_formula(self):
        model, batch = self.decided_model(entropy_weight=0.7), self.batch()
        p = softmax(logits_of(model.backbone, batch["pixel_values"]))
        uncertainty = np.mean([-sum(q * np.log(q) for q in row) for row in p])
        logits = logits_of(model.backbone, batch["labelled_pixel_values"])
        supervised = cross_entropy(logits, batch["labels"])
        output = model(**batch)
        assert output.loss.item() == pytest.approx(supervised + 0.7 * uncertainty, abs=1e-5)
        assert output.metrics["entropy"].item() == pytest.approx(uncertainty, abs=1e-6) and uncertainty > 0.1
        assert output.metrics["supervised"].item() == pytest.approx(supervised, abs=1e-5)
        assert output.metrics["accuracy"].item() == np.mean(logits.argmax(1) == batch["labels"].numpy())
        assert output.metrics["chance"] == 0.25

    def test_gradient_flows_into_the_probabilities_and_equals_a_formula(self):
        """d H / d logit k = -p_k (log p_k + H), of each image, over their number."""
        logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(entropy(logits), logits)[0]
        p = softmax(logits.detach().numpy())
        of_each = -(p * np.log(p)).sum(1, keepdims=True)
        np.testing.assert_allclose(gradient, -p * (np.log(p) + of_each) / 5, atol=1e-12)

    def test_without_a_weight_it_equals_supervised_learning(self):
        """Of transformers' classifier by itself, loss, gradients and statistics; of the unlabelled images not even NaN is
        seen."""
        model, batch = self.model().train(), self.batch()
        model.config.entropy_weight = 0.0
        plain = model.export_encoder().train()
        batch["pixel_values"] = batch["pixel_values"] * np.nan
        output = model(**batch)
        expected = plain(batch["labelled_pixel_values"], labels=batch["labels"]).loss
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        expected.backward()
        for one, other in zip(model.backbone.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
        for name, value in statistics(plain).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)
        assert output.features.shape == (8, 16) and "entropy" not in output.metrics

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(StrictDataclassError, match="entropy_weight must be at least 0, found -1"):
            EntropyMinimizationConfig(backbone_config=CLASSIFIER, entropy_weight=-1.0)
