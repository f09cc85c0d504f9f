import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import CLASSIFIER, FewLabelsTester, cross_entropy, logits_of, softmax, statistics, uneven

from hf_ssl import TemporalEnsemblingConfig, TemporalEnsemblingForPreTraining


class SecondEpochTester(FewLabelsTester):
    model_class = TemporalEnsemblingForPreTraining
    config = dict(backbone_config=CLASSIFIER, num_samples=16)

    def model(self, seed=0):
        """In the second epoch, after one in which all rows were taken for what they are."""
        model = super().model(seed)
        model.predictions.copy_(F.one_hot(torch.arange(16) % 4, 4))
        model.before_epoch(1, None)
        return model


class TestOriginal(SecondEpochTester):
    """One pass over all images, nothing aligned and nothing sharpened."""


class TestTemporalEnsembling(SecondEpochTester):
    config = SecondEpochTester.config | dict(align_classes=True, temperature=0.5, separate_statistics=True)

    def new_model(self, **changes):
        """With the original's settings, in the first epoch, learning, with the statistics of evaluation, so that images do not
        see each other."""
        torch.manual_seed(0)
        config = TemporalEnsemblingConfig(backbone_config=CLASSIFIER, num_samples=16, **changes)
        model = self.model_class(config).eval()
        model.training = True
        with torch.no_grad():
            model.backbone.classifier[1].weight *= 10
        return model

    def test_three_epochs_equal_a_slow_loop(self):
        """Z <- 0.6 Z + 0.4 z once an epoch, of the predictions as they were at each step; targets Z / (1 - 0.6^t)."""
        model, steps = self.new_model(), 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        ensemble, predictions, targets_moved = np.zeros((16, 4)), np.zeros((16, 4)), []
        for epoch in range(3):
            if epoch > 0:
                ensemble = 0.6 * ensemble + 0.4 * predictions
            model.before_epoch(epoch, None)
            np.testing.assert_allclose(model.ensemble, ensemble, atol=1e-6)
            for rows in torch.randperm(16, generator=torch.Generator().manual_seed(epoch)).split(8):
                batch = self.batch(seed=steps) | {"sample_indices": rows}
                p = softmax(logits_of(model.backbone, batch["pixel_values"]))
                predictions[rows] = p
                targets = ensemble[rows] / (1 - 0.6**epoch) if epoch else ensemble[rows]
                if epoch:
                    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
                np.testing.assert_allclose(model.targets(rows), targets, atol=1e-6)
                supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
                ramp = math.exp(-5 * (1 - min(1, steps / 6 / 0.267)) ** 2)
                expected = supervised + 30 * (ramp if epoch else 0) * ((p - targets) ** 2).mean()
                output = model(**batch)
                assert output.loss.item() == pytest.approx(expected, rel=1e-5)
                assert output.metrics["difference"].item() == pytest.approx(((p - targets) ** 2).mean(), abs=1e-6)
                np.testing.assert_allclose(model.predictions, predictions, atol=1e-6)
                output.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                model.after_step(steps / 6)
                targets_moved.append(np.abs(predictions[rows] - targets).max())
        assert min(targets_moved[2:]) > 1e-2  # there was something to compare

    def test_aligned_and_sharpened_ensembles_equal_a_slow_loop(self):
        """What is remembered has the labels' frequencies; what the ensemble gives is sharpened."""
        model, ensemble, predictions = self.new_model(align_classes=True, temperature=0.5), 0, np.zeros((16, 4))
        factors = uneven(model)
        for epoch in range(4):
            ensemble = 0.6 * ensemble + 0.4 * predictions
            model.before_epoch(epoch, None)
            for half, rows in enumerate(torch.arange(16).split(8)):
                batch = self.batch(seed=2 * epoch + half) | {"sample_indices": rows}
                logits = logits_of(model.backbone, batch["pixel_values"])
                targets = np.zeros((8, 4))
                if epoch:
                    means = ensemble[rows] / (1 - 0.6**epoch)
                    targets = np.array([mean**2 / (mean**2).sum() for mean in means])
                    np.testing.assert_allclose(model.targets(rows), targets, atol=1e-6)
                    assert np.abs(targets - means).max() > 0.05
                supervised = cross_entropy(logits_of(model.backbone, batch["labelled_pixel_values"]), batch["labels"])
                expected = supervised + model.weight().item() * ((softmax(logits) - targets) ** 2).mean()
                assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
                predictions[rows] = softmax(logits + factors)
                np.testing.assert_allclose(model.predictions[rows], predictions[rows], atol=1e-6)
            model.after_step((epoch + 1) / 4)
        assert model.weight() == 30

    def test_a_row_that_the_first_epoch_has_not_shown_is_to_be_of_all_classes_alike(self):
        """A batch across the border of two epochs belongs to the later one."""
        model, batch = self.new_model(temperature=0.5), self.batch()
        model.predictions[2:] = F.one_hot(torch.arange(14) % 4, 4).float()
        model.before_epoch(1, None)
        batch["sample_indices"] = torch.arange(8)
        assert model(**batch).loss.isfinite()
        np.testing.assert_allclose(
            model.targets(torch.tensor([0, 1, 2])), [[0.25] * 4, [0.25] * 4, [1, 0, 0, 0]], atol=1e-6
        )

    def test_the_weight_equals_the_papers_ramp_and_is_0_in_the_first_epoch(self):
        model, epochs = self.new_model(), (0, 1, 20, 40, 79, 80, 300)
        model.config.ramp_end = 80 / 300
        for epoch in epochs:
            model.after_step(epoch / 300)
            assert model.weight() == 0
        model.before_epoch(0, None)
        assert model.weight() == 0 and model.epochs == 0
        model.before_epoch(1, None)
        for epoch in epochs:
            model.after_step(epoch / 300)
            expected = 30 * math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)
            assert model.weight().item() == pytest.approx(expected, abs=1e-6, rel=1e-6), epoch

    def test_predictions_are_written_by_row_and_others_stay(self):
        """Of a row that stands twice, the later one; in evaluation none."""
        model, batch = self.new_model(), self.batch()
        model.predictions.fill_(0.25)
        batch["sample_indices"] = torch.tensor([3, 9, 3, 0, 15, 9, 1, 3])
        p = torch.tensor(softmax(logits_of(model.backbone, batch["pixel_values"])))
        expected = torch.full((16, 4), 0.25)
        for row, own in zip(batch["sample_indices"], p, strict=True):
            expected[row] = own
        evaluated = self.new_model().eval()
        evaluated(**batch)
        assert (evaluated.predictions == 0).all()
        model(**batch)
        torch.testing.assert_close(model.predictions, expected, rtol=0, atol=1e-6)
        assert (p[2] - p[7]).abs().max() > 1e-2 and not model.predictions.requires_grad

    def test_the_labelled_images_alone_move_running_statistics(self):
        model, batch = self.model().train(), self.batch()
        alone = model.export_encoder().train()
        alone(batch["labelled_pixel_values"])
        model(**batch)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"num_samples": -1}, "num_samples must be at least 0, found -1"),
            ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, found -1.0"),
            ({"ramp_end": 1.1}, "ramp_end must be above 0 and at most 1, found 1.1"),
            ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
            ({"ensemble_momentum": 1.0}, "ensemble_momentum must be at least 0 and below 1, found 1.0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            TemporalEnsemblingConfig(**self.config | change)
