import copy
import math

import numpy as np
import pytest
import torch
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
    uneven,
)

from hf_ssl import MeanTeacherConfig, MeanTeacherForPreTraining
from hf_ssl.methods._semi_supervised import sharpen


class TestMeanTeacher(FewLabelsTester):
    model_class = MeanTeacherForPreTraining
    config = dict(backbone_config=CLASSIFIER, align_classes=True, temperature=0.5, separate_statistics=True)
    teachers = {"teacher": "backbone"}

    def apart(self, model):
        """The teacher with other weights than the network."""
        with torch.no_grad():
            for number, parameter in enumerate(model.teacher.parameters()):
                parameter *= 1 + 0.3 * math.sin(number + 1)
        return model

    def test_loss_equals_a_slow_formula(self):
        """The network sees the second view, the teacher the first."""
        model, batch = self.apart(self.decided_model()), self.batch()
        student = softmax(logits_of(model.backbone, batch["pixel_values_2"]))
        teacher = softmax((logits_of(model.teacher, batch["pixel_values"]) + uneven(model)) / 0.5)
        difference = np.mean([np.sum((p - q) ** 2) / 4 for p, q in zip(student, teacher, strict=True)])
        supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
        for epoch in (0, 1, 20, 40, 79, 80, 300):
            model.config.ramp_end = 80 / 300
            model.progress.fill_(epoch / 300)
            weight = 100 * math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)
            output = model(**batch)
            assert output.loss.item() == pytest.approx(supervised + weight * difference, rel=1e-5), epoch
            assert model.weight().item() == pytest.approx(weight, rel=1e-6, abs=1e-6), epoch
        assert output.metrics["difference"].item() == pytest.approx(difference, rel=1e-5) and difference > 1e-3

    def test_weights_equal_a_slow_loop(self):
        """a = min(1 - 1 / (s + 1), a_max), with one a_max in the ramp and another after it, the network moving meanwhile."""
        config = dict(self.config, ramp_end=0.5, momentum=0.7, final_momentum=0.95)
        model = MeanTeacherForPreTraining(MeanTeacherConfig(**config))
        expected = [parameter.detach().double().numpy() for parameter in model.teacher.parameters()]
        generator, seen = torch.Generator().manual_seed(0), []
        for step in range(1, 25):
            with torch.no_grad():
                for parameter in model.backbone.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            model.after_step(step / 24)
            a = min(1 - 1 / (step + 1), 0.7 if step < 12 else 0.95)
            seen.append(a)
            for place, parameter in enumerate(model.backbone.parameters()):
                expected[place] = a * expected[place] + (1 - a) * parameter.detach().double().numpy()
            for parameter, average in zip(model.teacher.parameters(), expected, strict=True):
                np.testing.assert_allclose(parameter.detach(), average, atol=1e-6)
        assert (
            seen[:3] == pytest.approx([1 / 2, 2 / 3, 0.7]) and seen[11] == pytest.approx(12 / 13) and seen[-1] == 0.95
        )
        assert model.steps == 24

    def test_no_gradient_flows_into_the_teacher(self):
        """Neither to its weights nor to its images, also where it is the network: as if what it says were constants."""
        model, batch = self.decided_model(), self.batch()
        model.teacher = model.backbone  # whose weights are trained
        model.alignment = None  # which would stop gradients itself
        one, other = (model.backbone(batch[name]).logits.softmax(1) for name in ("pixel_values_2", "pixel_values"))
        supervised = torch.nn.functional.cross_entropy(
            model.backbone(batch["labelled_pixel_values"]).logits, batch["labels"]
        )
        constant = supervised + 100 * (one - sharpen(other.detach(), 0.5)).square().mean()
        assert_same_gradients(gradients(model(**batch).loss, model), gradients(constant, model))

    def test_the_teacher_has_batch_statistics_of_its_own(self):
        """Its running ones are those of the first view alone, by its own weights."""
        model, batch = self.apart(self.model().train()), self.batch()
        alone = copy.deepcopy(model.teacher)
        alone(batch["pixel_values"])
        model(**batch)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.teacher.get_buffer(name), value)
        moved = [not torch.equal(value, model.backbone.get_buffer(name)) for name, value in statistics(alone).items()]
        assert sum(moved) >= 2 * len(moved) / 3
        kept = statistics(model.teacher)
        model.after_step(0.5)
        assert all(torch.equal(value, kept[name]) for name, value in statistics(model.teacher).items())

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, found -1.0"),
            ({"ramp_end": 0.0}, "ramp_end must be above 0 and at most 1, found 0.0"),
            ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
            ({"momentum": 1.0}, " momentum must be at least 0 and below 1, found 1.0"),
            ({"final_momentum": -0.1}, "final_momentum must be at least 0 and below 1, found -0.1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            MeanTeacherConfig(backbone_config=CLASSIFIER, **change)
