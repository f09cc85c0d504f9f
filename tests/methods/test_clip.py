import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import MethodTester, two_steps
from processes import on_pair
from transformers import AutoModel, VisionTextDualEncoderModel

from hf_ssl import CLIPForPreTraining, SSLCLIPConfig
from hf_ssl.methods import _contrastive
from hf_ssl.methods._contrastive import pair_cross_entropy
from hf_ssl.methods.clip import text_labels

BEGIN, END, WORDS = 38, 39, 40
TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_act="gelu")
TINY_CLIP = dict(
    model_type="clip", projection_dim=16, vision_config=TINY | dict(image_size=16, patch_size=8),
    text_config=TINY | dict(vocab_size=WORDS, max_position_embeddings=12, bos_token_id=BEGIN, eos_token_id=END,
                            pad_token_id=END),
)  # fmt: skip
OTHER_TOWERS = dict(
    model_type="vision-text-dual-encoder", projection_dim=16,
    vision_config=TINY | dict(model_type="vit", image_size=16, patch_size=8),
    text_config=TINY | dict(model_type="bert", vocab_size=WORDS, max_position_embeddings=12, pad_token_id=END),
)  # fmt: skip


def pairs(seed=0, rows=8):
    """Images with a bright stripe, and captions that name its place after words that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(16, generator=generator)[:rows]
    pixels = torch.randn(rows, 3, 16, 16, generator=generator) + 3 * F.one_hot(places, 16)[:, None, :, None]
    ids, mask = torch.full((rows, 8), END), torch.zeros(rows, 8, dtype=torch.long)
    for row, place in enumerate(places.tolist()):
        words = torch.randint(20, 30, (1 + place % 3,), generator=generator)
        text = torch.tensor([BEGIN, *words, place, END])
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


class TestCLIP(MethodTester):
    model_class = CLIPForPreTraining
    config = dict(backbone_config=TINY_CLIP)
    chance_loss = math.log(8)
    tolerance = 1e-5
    floor = 1e-7  # of the biases of keys, which change no attention
    released_call = "model.get_image_features(**inputs)"

    def batch(self, seed=0):
        return pairs(seed)

    def test_new_weights_are_spread_as_the_originals(self):
        """initialize_parameters of openai/CLIP for texts; torch's own draws of a MultiheadAttention and Linears for images."""
        width, layers = 256, 4
        wide = dict(TINY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
        towers = {name: TINY_CLIP[name] | wide for name in ("vision_config", "text_config")}
        clip = CLIPForPreTraining(SSLCLIPConfig(backbone_config=TINY_CLIP | towers)).clip
        text, vision = (tower.encoder.layers[1] for tower in (clip.text_model, clip.vision_model))
        theirs = torch.nn.MultiheadAttention(width, 2)
        full, deep = width**-0.5, (2 * width * layers) ** -0.5
        expected = {
            text.self_attn.q_proj: full, text.self_attn.v_proj: full, text.self_attn.out_proj: deep,
            text.mlp.fc1: (2 * width) ** -0.5, text.mlp.fc2: deep,
            clip.text_model.embeddings.position_embedding: 0.01,
            vision.self_attn.k_proj: theirs.in_proj_weight.std(), vision.self_attn.out_proj: theirs.out_proj.weight.std(),
            vision.mlp.fc1: (3 * width) ** -0.5, vision.mlp.fc2: (3 * 4 * width) ** -0.5,
            clip.vision_model.embeddings.position_embedding: full,
            clip.vision_model.embeddings.patch_embedding: (3 * 3 * 8 * 8) ** -0.5,
            clip.text_projection: full, clip.visual_projection: full,
        }  # fmt: skip
        for module, std in expected.items():
            assert math.isclose(module.weight.std(), std, rel_tol=0.06), (module, module.weight.std(), std)

    def test_loss_equals_a_slow_formula(self):
        """Figure 3 of the paper in NumPy, pair by pair; and transformers' own loss."""
        model, batch = self.model().eval(), self.batch()
        with torch.no_grad():
            image, text = model.embed(batch["pixel_values"]), model.embed_text(batch["input_ids"])
            native = model.clip(**batch, return_loss=True)
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
        scores = np.exp(unit(image.double().numpy()) @ unit(text.double().numpy()).T * math.exp(2.6592))
        losses = [
            -math.log(scores[i, i] / scores[i].sum()) - math.log(scores[i, i] / scores[:, i].sum()) for i in range(8)
        ]
        output = model(**batch)
        assert output.loss.item() == pytest.approx(np.mean(losses) / 2, abs=1e-4)
        torch.testing.assert_close(output.loss, native.loss)
        torch.testing.assert_close(output.logits, native.logits_per_image)
        assert output.metrics["temperature"].item() == pytest.approx(0.07, rel=1e-4)
        assert output.metrics["nats"].item() == pytest.approx(math.log(8) - np.mean(losses) / 2, abs=1e-4)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(8))

    def test_parts_equal_the_whole_batch(self):
        """Encoded three rows at a time, on one process and on two: losses, gradients and weights of the whole batch."""
        losses, values = two_steps(TestCLIP, 1)
        for losses_2, values_2 in [two_steps(InParts, 1), *on_pair(two_steps, InParts, 2)]:
            assert losses_2 == pytest.approx(losses, rel=self.tolerance)
            for name, value in values.items():
                assert np.abs(values_2[name] - value).max() <= self.tolerance * np.abs(value).max() + self.floor, name

    def test_parts_drop_alike_twice(self):
        """What dropout hides is hidden again when a part is encoded anew: the gradient is that of the loss."""
        config = copy.deepcopy(self.config)
        config["backbone_config"]["vision_config"]["attention_dropout"] = 0.5
        model = CLIPForPreTraining(SSLCLIPConfig(**config)).train()
        model.micro_batch_size = 4
        weight = model.clip.vision_model.encoder.layers[0].self_attn.v_proj.weight

        def loss():
            torch.manual_seed(3)
            return model(**self.batch()).loss

        loss().backward()
        direction = weight.grad / weight.grad.norm()
        with torch.no_grad():
            weight.add_(direction, alpha=1e-2)
            above = loss()
            weight.add_(direction, alpha=-2e-2)
            slope = (above - loss()) / 2e-2
        assert slope.item() == pytest.approx(weight.grad.norm().item(), rel=0.02)

    @pytest.mark.parametrize("backbone", [TINY_CLIP, OTHER_TOWERS], ids=["clip", "vit and bert"])
    @pytest.mark.parametrize("frozen", ["vision", "text"])
    def test_a_frozen_tower_stays(self, backbone, frozen, tmp_path):
        model = CLIPForPreTraining(SSLCLIPConfig(backbone_config=backbone, **{f"freeze_{frozen}": True})).train()
        model.micro_batch_size = 3
        tower = getattr(model.clip, f"{frozen}_model")
        assert not any(module.training for module in tower.modules()) and model.clip.visual_projection.training
        model(**self.batch()).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(f"clip.{frozen}_model."), name
        model.save_pretrained(tmp_path)
        loaded = CLIPForPreTraining.from_pretrained(tmp_path).train()
        assert not any(p.requires_grad for p in getattr(loaded.clip, f"{frozen}_model").parameters())

    def test_other_towers_are_released_as_a_dual_encoder(self, tmp_path):
        model = CLIPForPreTraining(SSLCLIPConfig(backbone_config=OTHER_TOWERS)).eval()
        model.export_encoder().save_pretrained(tmp_path)
        loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is VisionTextDualEncoderModel and not any(report.values())
        native = loaded(**self.batch(), return_loss=True)
        torch.testing.assert_close(model(**self.batch()).loss, native.loss)
        torch.testing.assert_close(model(**self.batch()).logits, native.logits_per_image)

    def test_the_temperature_has_a_floor(self):
        model = self.model().train()
        model.clip.logit_scale.data.fill_(7.0)
        model.after_step(0.5)
        assert model.clip.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)

    def test_bfloat16_has_its_attention_in_both_towers(self):
        model = self.model()
        model.set_attn_implementation("eager")
        for tower in (model.clip.vision_model, model.clip.text_model):
            assert tower.encoder.layers[0].self_attn.config._attn_implementation == "eager"

    def test_one_pair_alone_is_refused(self):
        with pytest.raises(ValueError, match="the batch of all processes is 1"):
            self.model().check_batch(1, 1)

    def test_other_backbones_are_refused(self):
        with pytest.raises(StrictDataclassError, match="found 'vit'"):
            SSLCLIPConfig(backbone_config={"model_type": "vit"})


class InParts(TestCLIP):
    def model(self, seed=0):
        model = super().model(seed)
        model.micro_batch_size = 3
        return model


@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
@pytest.mark.parametrize("scores", [2**20, 7 * 50])
def test_chunks_equal_cross_entropy(scale, scores, monkeypatch):
    """Loss and all three gradients, in one chunk and in several; rows and columns that are far from everything too."""
    monkeypatch.setattr(_contrastive, "SCORES", scores)
    images, texts = (F.normalize(torch.randn(50, 16, dtype=torch.float64), dim=1) for _ in range(2))
    texts[7] = -images.mean(0) / images.mean(0).norm()
    inputs = [x.requires_grad_() for x in (images, texts, torch.tensor(scale, dtype=torch.float64))]
    logits, target = inputs[2] * images @ texts.T, torch.arange(50)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    brief = [x.detach().float().requires_grad_() for x in inputs]
    loss = pair_cross_entropy(*brief)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for own, other in zip(torch.autograd.grad(loss, brief), torch.autograd.grad(expected, inputs), strict=True):
        assert (own - other).norm() <= 1e-5 * other.norm()
    with torch.no_grad():
        assert torch.equal(pair_cross_entropy(*brief), loss)


def test_duplicates_are_spared():
    """Alike captions are left out of each other's rows and columns; by default they are negatives."""
    images, texts = (F.normalize(torch.randn(6, 8), dim=1).requires_grad_() for _ in range(2))
    labels, scale = torch.tensor([5, 3, 5, 1, 5, 3]), torch.tensor(10.0)
    logits = scale * images @ texts.T
    alike = (labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)
    spared, target = logits.masked_fill(alike, -torch.inf), torch.arange(6)
    expected = (F.cross_entropy(spared, target) + F.cross_entropy(spared.T, target)) / 2
    loss = pair_cross_entropy(images, texts, scale, labels)
    torch.testing.assert_close(loss, expected)
    for own, other in zip(
        torch.autograd.grad(loss, (images, texts)), torch.autograd.grad(expected, (images, texts)), strict=True
    ):
        torch.testing.assert_close(own, other)
    batch = pairs()
    for name in ("input_ids", "attention_mask"):
        batch[name][4] = batch[name][2]
    losses = [
        CLIPForPreTraining(SSLCLIPConfig(backbone_config=TINY_CLIP, spare_duplicates=spare)) for spare in (True, False)
    ]
    losses[1].load_state_dict(losses[0].state_dict())
    spared, plain = (model(**batch) for model in losses)
    assert spared.loss < plain.loss
    # a bound that counts candidates that are none would be higher than it may be
    same = (batch["input_ids"][:, None] == batch["input_ids"]).all(-1).sum(1)
    most = (len(same) + 1 - same).log().mean()
    assert most < plain.metrics["most_nats"] and same.max() > 1
    torch.testing.assert_close(spared.metrics["most_nats"], most)
    torch.testing.assert_close(spared.metrics["nats"], most - spared.loss)


def test_texts_are_known_again_however_they_are_padded():
    ids = torch.tensor([[9, 4, 5, 2], [9, 5, 4, 2], [9, 4, 2, 2], [9, 4, 5, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    labels = text_labels(ids, mask)
    assert labels[0] == labels[3] and len(labels.unique()) == 3
    assert torch.equal(labels, text_labels(F.pad(ids, (0, 3), value=7), F.pad(mask, (0, 3))))
