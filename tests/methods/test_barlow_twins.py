import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.test_moco import two_views
from methods.tester import TINY_RESNET, MethodTester
from torch import nn

from hf_ssl import BarlowTwinsConfig, BarlowTwinsForPreTraining
from hf_ssl.methods._batch_norm import GlobalBatchNorm


class TestBarlowTwins(MethodTester):
    model_class = BarlowTwinsForPreTraining
    config = dict(backbone_config=TINY_RESNET, projection_size=8)
    chance_loss = 8.0  # of views that have nothing in common
    tolerance = 1e-5
    floor = 1e-7

    def batch(self, seed=0):
        return dict(zip(("pixel_values", "pixel_values_2"), two_views(seed), strict=True))

    def test_two_processes_that_compute_activations_twice_equal_one(self):
        self.test_two_processes_equal_one(checkpointing=True)

    def test_loss_equals_a_slow_formula(self):
        """Equations 1 and 2 of the paper, pair by pair in NumPy, on projections centred over the batch."""
        model, batch = self.model().train(), self.batch()
        output = model(**batch)
        first, second = (z.double().numpy() for z in (output.projections, output.projections_2))
        first, second = first - first.mean(0), second - second.mean(0)
        loss = 0.0
        for i in range(8):
            for j in range(8):
                norms = np.sqrt((first[:, i] ** 2).sum()) * np.sqrt((second[:, j] ** 2).sum())
                correlation = (first[:, i] * second[:, j]).sum() / norms
                loss += (1 - correlation) ** 2 if i == j else 0.0051 * correlation**2
                assert output.logits[i, j].item() == pytest.approx(correlation, abs=2e-3)  # batch norm has an eps
        assert output.loss.item() == pytest.approx(loss, rel=2e-3)
        parts = output.metrics["invariance"] + 0.0051 * output.metrics["redundancy"]
        assert output.loss.item() == pytest.approx(parts.item())

    def test_equal_and_independent_numbers_have_no_loss(self):
        model = self.model().train()
        signs = torch.tensor([[1.0, -1.0]])
        for _ in range(2):
            signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)], 0)
        orthogonal = torch.cat([signs, -signs]).T[:, :4]  # (8, 4), each column of mean 0
        model.normalize = GlobalBatchNorm(4, affine=False)
        correlation = model.cross_correlation(3 * orthogonal + 5, orthogonal)
        torch.testing.assert_close(correlation, torch.eye(4), rtol=0, atol=1e-4)

    def test_head_is_the_official_one(self):
        head = self.model().projector
        hidden = [nn.Linear, GlobalBatchNorm, nn.ReLU]
        assert [type(layer) for layer in head] == [*hidden, *hidden, nn.Linear]
        assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
        assert head[0].weight.abs().max() <= head[0].in_features ** -0.5

    def test_correlation_is_made_in_float32(self):
        model, (first, second) = self.model().train(), (torch.randn(8, 8) for _ in range(2))
        expected = model.cross_correlation(first, second)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.cross_correlation(first, second), expected)

    def test_one_image_alone_is_refused(self):
        with pytest.raises(ValueError, match="that of all processes is 1, expected 2 or more"):
            self.model().check_batch(1, 1)

    @pytest.mark.parametrize("change", [{"redundancy_weight": -1.0}, {"projector_layers": 0}, {"projection_size": 1}])
    def test_impossible_configs_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            BarlowTwinsConfig(**self.config | change)
