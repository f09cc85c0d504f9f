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

from hf_ssl import UDAConfig, UDAForPreTraining


class TestUDA(FewLabelsTester):
    model_class = UDAForPreTraining
    # an untrained network is sure of the threshold at times
    config = dict(backbone_config=CLASSIFIER, threshold=0.3, align_classes=True, separate_statistics=True)
    noise = 0.1, 0.6

    def model(self, seed=0):
        """So early that some labels do not count, more of them on one process than on the other."""
        model = super().model(seed)
        model.progress.fill_(0.02)
        return model

    @pytest.mark.parametrize("annealing", ["none", "linear"])
    def test_loss_equals_a_slow_formula(self, annealing):
        """The mean over all unlabelled images, of which those below the threshold give 0; that over the labelled images whose
        label the network does not yet give more than a tenth of the way from 1 / 4 to 1."""
        model, batch = (
            self.decided_model(threshold=0.7, unlabelled_weight=2.0, signal_annealing=annealing),
            self.batch(),
        )
        model.progress.fill_(0.1)
        losses, confident = [], []
        weak, strong = (logits_of(model.backbone, batch[name]) for name in ("pixel_values", "pixel_values_2"))
        for a, b in zip(weak + uneven(model), strong, strict=True):
            sharpened = np.array([x ** (1 / 0.4) for x in softmax(a)])
            sharpened /= sharpened.sum()
            confident.append(softmax(a).max() >= 0.7)
            losses.append(-(sharpened * np.log(softmax(b))).sum() if confident[-1] else 0)
        assert len(losses) == 8 and 0 < sum(confident) < 8
        labelled = softmax(logits_of(model.backbone, batch["labelled_pixel_values"]))
        right = [p[label] for p, label in zip(labelled, batch["labels"], strict=True)]
        counted = [p for p in right if annealing == "none" or p <= 0.25 + 0.1 * 0.75]
        assert 0 < len(counted) < 8 or annealing == "none"
        supervised = -np.mean(np.log(counted))
        output = model(**batch)
        assert output.loss.item() == pytest.approx(supervised + 2 * sum(losses) / 8, abs=1e-5)
        assert output.metrics["supervised"].item() == pytest.approx(supervised, abs=1e-5)
        assert output.metrics["unlabelled"].item() == pytest.approx(sum(losses) / 8, abs=1e-5)
        assert output.metrics["confident"].item() == np.mean(confident)

    @pytest.mark.parametrize("annealing", ["linear", "log", "exp"])
    def test_annealing_equals_the_papers_formulas(self, annealing):
        """A probability 1e-5 below alpha_t (1 - 1 / K) + 1 / K counts, one above it does not."""
        model = self.model()
        model.config.signal_annealing = annealing
        for t in (0, 0.1, 0.35, 0.5, 0.8, 0.99):
            alpha = {"linear": t, "log": 1 - math.exp(-t * 5), "exp": math.exp((t - 1) * 5)}[annealing]
            highest = alpha * (1 - 1 / 4) + 1 / 4
            model.after_step(t)
            right = [0.2, highest - 1e-5, highest + 1e-5]
            logits = torch.tensor([[p, 0.7 * (1 - p), 0.2 * (1 - p), 0.1 * (1 - p)] for p in right]).log()
            loss = model.annealed_cross_entropy(logits, torch.zeros(3, dtype=torch.long))
            assert loss.item() == pytest.approx(-(math.log(right[0]) + math.log(right[1])) / 2, abs=1e-6), t
            assert model.annealed_cross_entropy(logits[2:], torch.zeros(1, dtype=torch.long)) == 0
        model.after_step(0.0)
        sure = torch.tensor([[9.0, 0, 0, 0]], requires_grad=True)
        loss = model.annealed_cross_entropy(sure, torch.zeros(1, dtype=torch.long))
        assert loss == 0 and (torch.autograd.grad(loss, sure)[0] == 0).all()

    @pytest.mark.parametrize("aligned", [False, True])
    def test_no_gradient_flows_into_the_weak_views(self, aligned):
        """The gradients are those of constant targets, and also those of the divergence, which differs by a constant. An
        alignment would stop gradients by itself."""
        model, batch = self.decided_model(threshold=0.7, signal_annealing="none"), self.batch()
        if not aligned:
            model.alignment = None
        weak = torch.tensor(logits_of(model.backbone, batch["pixel_values"])).float()
        counts, targets = (weak.softmax(1).amax(1) >= 0.7).float(), (weak / 0.4).softmax(1)
        log_q = model.backbone(batch["pixel_values_2"]).logits.log_softmax(1)
        divergences = (targets * (targets.log() - log_q)).sum(1)
        supervised = F.cross_entropy(model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"])
        assert_same_gradients(
            gradients(model(**batch).loss, model), gradients(supervised + (divergences * counts).sum() / 8, model)
        )
        views = [batch.pop(name).requires_grad_() for name in ("pixel_values", "pixel_values_2")]
        weak, strong = torch.autograd.grad(model(*views, **batch).loss, views, allow_unused=True)
        assert weak is None and torch.equal(strong.abs().amax((1, 2, 3)) > 0, counts > 0)

    def test_without_annealing_the_labels_count_as_in_supervised_learning(self):
        model, batch = self.decided_model(signal_annealing="none", unlabelled_weight=0.0), self.batch()
        expected = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        assert model(**batch).loss.item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"unlabelled_weight": -1.0}, "unlabelled_weight must be at least 0, found -1.0"),
            ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
            ({"threshold": 1.0}, "threshold must be at least 0 and below 1, found 1.0"),
            ({"signal_annealing": "step"}, "signal_annealing must be one of none, linear, log, exp, found 'step'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            UDAConfig(**self.config | change)
