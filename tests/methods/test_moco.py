import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester
from torch import nn

from hf_ssl import MoCoConfig, MoCoForPreTraining
from hf_ssl.methods._batch_norm import SplitBatchNorm
from hf_ssl.methods._contrastive import CHUNK, queue_cross_entropy, queue_logits
from hf_ssl.methods._memory import enqueue


def two_views(seed, count=8, noise=0.1):
    """Waves of random direction and colour, seen twice with noise of this standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.linspace(0, 6, 16)
    angle = torch.rand(count, 3, 1, 1, generator=generator) * math.pi
    images = (angle.cos() * along[:, None] + angle.sin() * along).sin() + 2 * angle.cos()
    return [images + noise * torch.randn(images.shape, generator=generator) for _ in range(2)]


class TestMoCo(MethodTester):
    model_class = MoCoForPreTraining
    config = dict(
        backbone_config=TINY_RESNET, queue_size=48, projection_size=16, momentum=0.9, batch_norm_group_size=4
    )
    chance_loss = math.log(49)
    tolerance = 2e-6
    teachers = {"key_backbone": "backbone", "key_projector": "projector"}

    def batch(self, seed=0):
        queries, keys = two_views(seed)
        return {"pixel_values": queries, "pixel_values_2": keys, "sample_seeds": torch.arange(8) + 8 * seed}

    def test_key_encoder_starts_equal_and_follows_by_momentum(self):
        model = self.model().train()
        pairs = list(zip(model.key_backbone.parameters(), model.backbone.parameters(), strict=True))
        assert all(torch.equal(key, query) for key, query in pairs)
        assert not any(key.requires_grad for key, _ in pairs)
        before = [key.clone() for key, _ in pairs]
        with torch.no_grad():
            for _, query in pairs:
                query += 1.0
        model(**self.batch()).loss.backward()
        assert all(torch.equal(key, old) for (key, _), old in zip(pairs, before, strict=True))  # not by `forward`
        statistics = [buffer.clone() for buffer in model.key_backbone.buffers()]
        model.after_step(0.5)
        for (key, query), old in zip(pairs, before, strict=True):
            torch.testing.assert_close(key, 0.9 * old + 0.1 * query)
        assert all(map(torch.equal, model.key_backbone.buffers(), statistics))  # batch statistics are its own

    def test_equals_a_slow_formula(self):
        """Three steps in NumPy from the paper's pseudo-code, on features of the two encoders without batch norm."""
        model = self.model().eval()
        queue = model.queue.numpy().astype(np.float64)
        for step in range(3):
            queries, keys = (view for view in two_views(step))
            with torch.no_grad():
                q = model.projector(model.embed(queries)).numpy().astype(np.float64)
                k = model.key_projector(model.key_backbone(keys).pooler_output.flatten(1)).numpy().astype(np.float64)
            q, k = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, k))
            logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], axis=1) / 0.2
            loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
            output = model(queries, keys)
            assert output.loss.item() == pytest.approx(loss, abs=1e-6)
            np.testing.assert_allclose(output.logits.detach(), logits, atol=1e-5)
            assert output.metrics["nats"].item() == pytest.approx(math.log(49) - loss, abs=1e-5)
            assert output.metrics["most_nats"].item() == pytest.approx(math.log(49))
            queue[8 * step : 8 * step + 8] = k  # by hand, as eval mode leaves the queue alone
            enqueue(model.queue, model.queue_position, torch.from_numpy(k))
        assert model.queue_position == 24

    def test_equals_the_original(self):
        """Losses of three training steps and the queue after them, as printed by the authors' moco/builder.py (commit
        0d6137a, one gloo process, the same backbone, SGD as below) for these weights and images."""
        config = dict(backbone_config=TINY_RESNET, queue_size=64, projection_size=16, momentum=0.9, temperature=0.2)
        model = MoCoForPreTraining(MoCoConfig(**config, batch_norm_group_size=8)).train()
        with torch.no_grad():
            for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
                if parameter.ndim > 1:
                    wave = torch.arange(1, 1 + parameter.numel(), dtype=torch.float64).sin()
                    parameter.copy_((wave * (3 / parameter[0].numel()) ** 0.5).view_as(parameter))
            model.projector[0].bias.zero_(), model.projector[2].bias.zero_()
            model.queue.copy_(F.normalize(torch.arange(1024.0).mul(7).cos().view(64, 16), dim=1))
        model.init_key_encoder()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-4)
        for step, expected in enumerate((0.8113938570022583, 2.6510350704193115, 2.775036573410034)):
            pixels = torch.arange(8 * 3 * 16 * 16.0)
            views = [pixels.mul(0.37 + 0.11 * v).add(step).sin().view(8, 3, 16, 16) for v in range(2)]
            loss = model(*views).loss
            tolerance = 2e-4 if step else 1e-6  # later: float32 on other hardware
            assert loss.item() == pytest.approx(expected, abs=tolerance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.after_step(step / 3)
        assert model.queue_position == 24
        sums = torch.tensor([0.144405, 0.139831, 0.124148, 0.148025, 0.124424, 0.123452, 0.148201, 0.120705])
        torch.testing.assert_close(model.queue[16:24].sum(1), sums, rtol=0, atol=2e-4)

    def test_queue_takes_the_keys_of_this_step_after_the_loss(self):
        model = self.model().train()
        before = model.queue.clone()
        model.init_queue(7)
        start = model.queue.clone()
        assert not torch.equal(before, start)
        again = copy.deepcopy(model)
        again.init_queue(7)
        assert torch.equal(again.queue, start) and again.queue_position == 0
        torch.testing.assert_close(start.norm(dim=1), torch.ones(48))
        with torch.no_grad():
            keys = copy.deepcopy(model).encode_keys(self.batch()["pixel_values_2"], self.batch()["sample_seeds"])
            model(**self.batch())
        torch.testing.assert_close(model.queue[:8], keys)
        assert torch.equal(model.queue[8:], start[8:]) and model.queue_position == 8
        for step in range(1, 7):
            model(**self.batch(step))
        assert model.queue_position == 56 - 48

    def test_keys_are_shuffled_between_the_groups_of_batch_norm(self):
        """The same images in another order of seeds: other statistics, and each key back in its place."""
        torch.manual_seed(0)
        model = MoCoForPreTraining(MoCoConfig(**self.config | {"batch_norm_group_size": 2})).train()
        batch = self.batch()
        one = model.encode_keys(batch["pixel_values_2"], batch["sample_seeds"])
        other = model.encode_keys(batch["pixel_values_2"], batch["sample_seeds"] + 100)
        in_order = F.normalize(
            model.key_projector(model.key_backbone(batch["pixel_values_2"]).pooler_output.flatten(1)), dim=1
        )
        assert not torch.allclose(one, other) and not torch.allclose(one, in_order)
        nearest = (one @ in_order.T).argmax(1)  # statistics of two samples disturb much, but not whose key it is
        assert (nearest == torch.arange(8)).sum() >= 6

    @pytest.mark.parametrize(
        "backbone", [TINY_VIT, {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1]}]
    )
    def test_any_image_encoder_is_a_backbone(self, backbone):
        if backbone["model_type"] == "convnext":
            backbone = backbone | {"num_stages": 2}
        model = MoCoForPreTraining(MoCoConfig(**self.config | {"backbone_config": backbone})).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        features = model.eval().embed(self.batch()["pixel_values"])
        native = model.export_encoder()(self.batch()["pixel_values"]).pooler_output.flatten(1)
        torch.testing.assert_close(native, features)

    def test_a_plain_network_is_both_encoders_at_the_start(self, tmp_path):
        """Of a folder of a network alone, with the config of a method or without, its own."""
        network = self.model(seed=5).export_encoder()
        network.save_pretrained(tmp_path)
        given = MoCoForPreTraining.from_pretrained(tmp_path, config=MoCoConfig(**self.config))
        found = MoCoForPreTraining.from_pretrained(tmp_path, queue_size=48)
        assert found.config.backbone_config.hidden_sizes == [8, 16] and found.config.queue_size == 48
        for model in (given, found):
            for name, tensor in network.state_dict().items():
                assert torch.equal(model.backbone.state_dict()[name], tensor), name
                assert torch.equal(model.key_backbone.state_dict()[name], tensor), name
            for name, tensor in model.projector.state_dict().items():
                assert torch.equal(model.key_projector.state_dict()[name], tensor), name

    def test_attention_can_be_chosen_where_there_is_any(self, tmp_path):
        model = MoCoForPreTraining(MoCoConfig(**self.config | {"backbone_config": TINY_VIT}))
        model.save_pretrained(tmp_path)
        for attention in ("eager", "sdpa"):
            loaded = MoCoForPreTraining.from_pretrained(tmp_path, attn_implementation=attention)
            networks = (loaded.backbone, loaded.key_backbone)
            assert [network.config._attn_implementation for network in networks] == [attention] * 2
            loaded.set_attn_implementation("eager")
            assert loaded.backbone.config._attn_implementation == "eager"

    def test_half_precision_encoders_are_trained_in_float32(self):
        backbone = TINY_RESNET | {"dtype": "bfloat16"}
        model = MoCoForPreTraining(MoCoConfig(**self.config | {"backbone_config": backbone}))
        assert {p.dtype for p in (*model.parameters(), *model.export_encoder().parameters())} == {torch.float32}

    def test_every_trained_weight_of_dinov2_gets_a_gradient(self):
        """Its mask token would never get one, which DDP does not forgive."""
        backbone = TINY_VIT | {"model_type": "dinov2"}
        model = MoCoForPreTraining(MoCoConfig(**self.config | {"backbone_config": backbone})).train()
        model(**self.batch()).loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_encoders_without_pooled_features_are_refused(self):
        with pytest.raises(ValueError, match="'vit_mae' gives no pooler_output"):
            MoCoForPreTraining(MoCoConfig(**self.config | {"backbone_config": TINY_VIT | {"model_type": "vit_mae"}}))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"projector_layers": 3}, "projector_layers must be 1 or 2, found 3"),
            ({"temperature": 0.0}, "temperature must be positive"),
            ({"momentum": 1.5}, "momentum must lie in"),
            ({"queue_size": 0}, "queue_size must be at least 1"),
        ],
    )
    def test_impossible_configs_are_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            MoCoConfig(**self.config | change)

    def test_impossible_batches_are_refused(self):
        model = self.model().train()
        with pytest.raises(ValueError, match="multiple of batch_norm_group_size=4, found 7"):
            model(*(view[:7] for view in two_views(0)))
        with pytest.raises(ValueError, match="must fit in queue_size=48, found 52"):
            model(*two_views(0, 52))
        with pytest.raises(ValueError, match="'bert' has no num_channels: expected an image encoder"):
            MoCoForPreTraining(MoCoConfig(backbone_config={"model_type": "bert"}))


@pytest.mark.parametrize("size", [100, CHUNK + 300])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2])
def test_chunked_loss_has_the_value_and_gradient_of_the_plain_one(size, temperature):
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (F.normalize(torch.randn(n, 32, generator=generator), dim=1) for n in (16, 16, size))
    keys = F.normalize(queries + 0.3 * keys, dim=1)
    queries.requires_grad_()
    plain = F.cross_entropy(queue_logits(queries, keys, queue, temperature), torch.zeros(16, dtype=torch.long))
    expected = torch.autograd.grad(plain, queries)[0]
    loss = queue_cross_entropy(queries, keys, queue, temperature)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, queries)[0], expected, rtol=1e-4, atol=1e-6)
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float16, 1e-5)):  # whose exponentials need float32
        with torch.autocast("cpu", dtype):
            loss = queue_cross_entropy(queries, keys, queue, temperature)
        torch.testing.assert_close(loss, plain, rtol=tolerance, atol=tolerance)


def test_negatives_weigh_in_bfloat16_what_they_weigh_in_float32():
    """Keys far from their queries, so that the loss is all negatives; 1 / 0.07 in bfloat16 would make it less by 0.026."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (F.normalize(torch.randn(n, 32, generator=generator), dim=1) for n in (64, 64, 2000))
    expected = queue_cross_entropy(queries, keys, queue, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(queue_cross_entropy(queries, keys, queue, 0.07), expected, rtol=0, atol=4e-3)


def test_split_statistics_are_those_of_the_groups():
    x, split = torch.randn(12, 3, 5, 5) * 2 + 1, SplitBatchNorm(3, group_size=4)
    plain = nn.BatchNorm2d(3, momentum=None)  # whose running statistics are the mean over its batches
    expected = torch.cat([plain(group) for group in x.split(4)])
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(split.running_mean, 0.1 * plain.running_mean)
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * plain.running_var)
    torch.testing.assert_close(split.eval()(x), F.batch_norm(x, split.running_mean, split.running_var))
