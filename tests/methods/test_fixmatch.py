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
    statistics,
)

from hf_ssl import FixMatchConfig, FixMatchForPreTraining


class TestFixMatch(FewLabelsTester):
    model_class = FixMatchForPreTraining
    # an untrained network is sure of the threshold at times; in eval mode neither of the others changes anything
    config = dict(
        backbone_config=CLASSIFIER, threshold=0.3, momentum=0.9, align_classes=True, separate_statistics=True
    )
    teachers = {"average": "backbone"}
    noise = 0.1, 0.6

    def test_loss_equals_a_slow_formula(self):
        """The mean over all unlabelled images, of which those below the threshold give 0: -log of what the strong view gives to
        the class of the weak one."""
        model, batch = self.decided_model(threshold=0.8, unlabelled_weight=2.0), self.batch()
        losses, confident = [], []
        weak, strong = (softmax(logits_of(model.backbone, batch[name])) for name in ("pixel_values", "pixel_values_2"))
        for p, q in zip(weak, strong, strict=True):
            confident.append(p.max() >= 0.8)
            losses.append(-np.log(q[p.argmax()]) if confident[-1] else 0)
        assert len(losses) == 8 and 0 < sum(confident) < 8
        supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        output = model(**batch)
        assert output.loss.item() == pytest.approx(supervised + 2 * sum(losses) / 8, abs=1e-5)
        assert output.metrics["unlabelled"].item() == pytest.approx(sum(losses) / 8, abs=1e-5)
        assert output.metrics["confident"].item() == np.mean(confident)

    def test_no_gradient_flows_into_the_weak_views(self):
        """The gradients are those of constant labels, and what is done to weak images without crossing the threshold does
        nothing."""
        model, batch = self.decided_model(threshold=0.8), self.batch()
        p = softmax(logits_of(model.backbone, batch["pixel_values"]))
        counts, labels = torch.tensor(p.max(1) >= 0.8).float(), torch.tensor(p.argmax(1))
        losses = F.cross_entropy(model.backbone(batch["pixel_values_2"]).logits, labels, reduction="none")
        supervised = F.cross_entropy(model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"])
        assert_same_gradients(
            gradients(model(**batch).loss, model), gradients(supervised + (losses * counts).mean(), model)
        )
        views = [batch.pop(name).requires_grad_() for name in ("pixel_values", "pixel_values_2")]
        weak, strong = torch.autograd.grad(model(*views, **batch).loss, views, allow_unused=True)
        assert weak is None and torch.equal(strong.abs().amax((1, 2, 3)) > 0, counts > 0)

    def test_all_images_share_batch_statistics(self):
        """Unless `separate_statistics`."""
        model, batch = self.model().train(), self.batch()
        model.config.separate_statistics = False
        together = [batch[name] for name in ("labelled_pixel_values", "pixel_values", "pixel_values_2")]
        alone = model.export_encoder().train()
        logits = alone(torch.cat(together)).logits[:8]
        output = model(**batch)
        torch.testing.assert_close(output.logits, logits)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)

    def test_each_kind_of_images_has_batch_statistics_of_its_own(self):
        """With `separate_statistics`; the running ones are of the weakly augmented images, and guesses of the first step are
        aligned by its own frequencies."""
        model, batch = self.model().train(), self.batch()
        names = ("labelled_pixel_values", "pixel_values_2", "pixel_values")
        networks = [model.export_encoder().train() for _ in names]
        logits, strong, weak = (
            network(batch[name]).logits.detach() for network, name in zip(networks, names, strict=True)
        )
        p = weak.softmax(1)
        frequencies = 0.99 * 0.25 + 0.01 * torch.stack([torch.bincount(batch["labels"], minlength=4) / 8, p.mean(0)])
        p = p * (frequencies[0] + 1e-6) / (frequencies[1] + 1e-6)
        p = p / p.sum(1, keepdim=True)
        losses = F.cross_entropy(strong, p.argmax(1), reduction="none") * (p.amax(1) >= 0.3)
        output = model(**batch)
        assert (losses > 0).any()
        torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch["labels"]) + losses.mean())
        for name, value in statistics(networks[2]).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)

    def test_the_average_equals_a_slow_loop(self):
        """Of weights; running statistics are those of the network."""
        model = self.model().train()
        expected = [parameter.detach().double() for parameter in model.average.parameters()]
        for step in range(3):
            with torch.no_grad():
                for parameter in model.backbone.parameters():
                    parameter += 0.1
            model(**self.batch(step))
            model.after_step(step / 3)
            for place, parameter in enumerate(model.backbone.parameters()):
                expected[place] = 0.9 * expected[place] + 0.1 * parameter.detach().double()
        for parameter, own in zip(model.average.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), own, rtol=0, atol=1e-6)
        for name, value in statistics(model.backbone).items():
            assert torch.equal(model.average.get_buffer(name), value), name

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"unlabelled_weight": -1.0}, "unlabelled_weight must be at least 0, found -1.0"),
            ({"threshold": 1.0}, "threshold must be at least 0 and below 1, found 1.0"),
            ({"momentum": -0.1}, "momentum must be at least 0 and below 1, found -0.1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            FixMatchConfig(**self.config | change)
