import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.test_moco import two_views
from methods.tester import TINY_RESNET, MethodTester
from torch import nn

from hf_ssl import SimCLRConfig, SimCLRForPreTraining
from hf_ssl.methods._batch_norm import GlobalBatchNorm
from hf_ssl.methods._contrastive import nt_xent


class TestSimCLR(MethodTester):
    model_class = SimCLRForPreTraining
    config = dict(backbone_config=TINY_RESNET, projection_size=16)
    chance_loss = math.log(15)
    tolerance = 1e-5
    floor = 1e-8  # shifts of batch norms, the ends of long sums, have moved by a few thousandths

    def batch(self, seed=0):
        views = two_views(seed, noise=0.5)  # with less, untrained features tell them apart as well
        return dict(zip(("pixel_values", "pixel_values_2"), views, strict=True))

    def test_two_processes_that_compute_activations_twice_equal_one(self):
        """Statistics of all processes are asked for again within the backward pass."""
        self.test_two_processes_equal_one(checkpointing=True)

    def test_loss_equals_a_slow_formula(self):
        """Equation 1 of the paper, pair by pair in NumPy."""
        model = self.model().eval()
        batch = self.batch()
        with torch.no_grad():
            z = torch.cat([model.projector(model.embed(view)) for view in batch.values()]).numpy().astype(np.float64)
        similarity = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
        losses = []
        for i in range(16):
            scores = {k: math.exp(similarity(z[i], z[k]) / 0.1) for k in range(16) if k != i}
            losses.append(-math.log(scores[(i + 8) % 16] / sum(scores.values())))
        output = model(**batch)
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        assert output.metrics["nats"].item() == pytest.approx(math.log(15) - np.mean(losses), abs=1e-5)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(15))

    def test_head_is_the_official_one(self):
        """Batch norm after each linear layer, which has no bias; the last has a scale only (tf2/model.py)."""
        head = SimCLRForPreTraining(SimCLRConfig(**self.config, projector_layers=3)).projector
        hidden = [nn.Linear, GlobalBatchNorm, nn.ReLU]
        assert [type(layer) for layer in head] == [*hidden, *hidden, nn.Linear, GlobalBatchNorm]
        assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
        assert head[1].bias is not None and head[-1].bias is None
        assert head[0].weight.std().item() == pytest.approx(0.01, rel=0.2)

    def test_one_image_alone_is_refused(self):
        with pytest.raises(ValueError, match="the batch of all processes is 1"):
            self.model().check_batch(1, 1)

    @pytest.mark.parametrize("change", [{"temperature": -1.0}, {"projector_layers": 0}, {"projection_size": 0}])
    def test_impossible_configs_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            SimCLRConfig(**self.config | change)


def test_only_the_own_similarity_is_left_out():
    first, second = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    loss, logits = nt_xent(first, second, 0.5)
    assert torch.equal(logits.isinf(), torch.eye(8, dtype=torch.bool))
    torch.testing.assert_close(logits[1, 5], first[1] @ second[1] / 0.5)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])))
