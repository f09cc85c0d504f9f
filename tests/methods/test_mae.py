import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_VIT, MethodTester, filled_with_nan
from transformers import ViTMAEForPreTraining

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.methods._patches import patchify, sincos_positions, unpatchify

TINY_MAE = dict(
    backbone_config=TINY_VIT, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    decoder_intermediate_size=32,
)  # fmt: skip


class TestMAE(MethodTester):
    model_class = MAEForPreTraining
    config = TINY_MAE
    chance_loss = 15 * 3 / (16 * 3 - 1)  # normalised patches have variance (n - 1) / n about their mean
    fixed = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")

    def batch(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        waves = torch.rand(8, 3, 1, 1, generator=generator) * torch.linspace(0, 6, 16)[:, None] + torch.linspace(
            0, 6, 16
        )
        noise = torch.rand(8, 16, generator=generator)
        return {"pixel_values": waves.sin(), "noise": noise}

    @pytest.mark.parametrize("norm_pix_loss", [False, True])
    def test_loss_equals_transformers(self, norm_pix_loss):
        """Both equal the official formula on the same weights and the same noise (issue of parity: 1e-6)."""
        model = MAEForPreTraining(MAEConfig(**TINY_MAE, norm_pix_loss=norm_pix_loss))
        native = ViTMAEForPreTraining(model.config.vit_mae)
        native.load_state_dict(model.state_dict())
        ours, theirs = model(**self.batch()), native(**self.batch())
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-6)
        assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.mask, theirs.mask)

    def test_loss_equals_a_slow_formula(self):
        """Patch by patch in NumPy, from the paper: the mean over hidden patches of the mean squared difference."""
        model = self.model().eval()
        batch = self.batch()
        output = model(**batch)
        errors = []
        for image, noise, predicted in zip(
            batch["pixel_values"].numpy(), batch["noise"].numpy(), output.logits.detach().numpy(), strict=True
        ):
            for patch in np.argsort(noise)[4:]:  # a quarter of 16 stays
                row, column = divmod(patch, 4)
                pixels = (
                    image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                    .transpose(1, 2, 0)
                    .reshape(-1)
                    .astype(np.float64)
                )
                target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
                errors.append(np.mean((predicted[patch] - target) ** 2))
        assert output.loss.item() == pytest.approx(np.mean(errors), abs=1e-6)

    def test_position_tables_and_tokens_are_set(self):
        """transformers' own class leaves them at zero when it is built from a config, and nothing is learnt."""
        model = self.model()
        table = model.vit.embeddings.position_embeddings[0]
        assert torch.equal(table, sincos_positions(4, 4, 32)) and not table[0].any() and table[1:].std() > 0.5
        assert torch.equal(model.decoder.decoder_pos_embed[0], sincos_positions(4, 4, 16))
        assert model.decoder.mask_token.std() > 0.01 and model.vit.embeddings.cls_token.std() > 0.01
        # patch (row 1, column 0) differs from (0, 0) in the second half only: first half the column, second the row
        assert torch.equal(table[1][:16], table[5][:16]) and not torch.equal(table[1][16:], table[5][16:])

    def test_linear_layers_are_drawn_as_in_the_original(self):
        layer = self.model().vit.layers[0]
        for weight, fan in ((layer.mlp.fc1.weight, 32 + 64), (layer.attention.q_proj.weight, 32 + 96)):
            assert weight.abs().max() <= (6 / fan) ** 0.5
            assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)

    def test_weights_of_another_shape_are_drawn(self, tmp_path):
        """Grey images from a model of coloured ones: the patch projection begins as in a new model."""
        self.model().save_pretrained(tmp_path)
        with filled_with_nan():
            grey = MAEForPreTraining.from_pretrained(
                tmp_path, backbone_config={"num_channels": 1}, ignore_mismatched_sizes=True
            )
        weight = grey.vit.embeddings.patch_embeddings.projection.weight
        assert weight.shape == (32, 1, 4, 4) and weight.abs().max() <= (6 / (16 + 32)) ** 0.5
        assert weight.std().item() == pytest.approx((2 / (16 + 32)) ** 0.5, rel=0.1)
        assert grey(self.batch()["pixel_values"][:, :1]).loss.isfinite()

    def test_mask_belongs_to_the_sample(self):
        model, batch, seeds = self.model().eval(), self.batch(), torch.arange(8)
        whole = model(batch["pixel_values"], sample_seeds=seeds).mask
        half = model(batch["pixel_values"][4:], sample_seeds=seeds[4:]).mask
        assert torch.equal(whole[4:], half) and len(torch.unique(whole, dim=0)) == 8
        assert whole.sum(1).eq(12).all()

    def test_attention_implementation_reaches_the_decoder(self):
        model = self.model()
        model.set_attn_implementation("eager")
        assert model.decoder.decoder_layers[0].attention.config._attn_implementation == "eager"
        assert model.vit.layers[0].attention.config._attn_implementation == "eager"

    def test_reconstruction_keeps_what_was_visible(self):
        model, batch = self.model().eval(), self.batch()
        mask = model(**batch).mask
        masked, reconstructed = model.reconstruct(batch["pixel_values"], mask)
        hidden = unpatchify(mask[..., None].expand(-1, -1, 48), 4, 4).bool()
        torch.testing.assert_close(reconstructed[~hidden], batch["pixel_values"][~hidden])
        assert not masked[hidden].any() and torch.equal(masked[~hidden], batch["pixel_values"][~hidden])

    def test_reconstruction_is_what_the_loss_compares(self):
        """Under a mask that was drawn the pixels are those that `forward` predicts, and under another as many as it hides."""
        model = MAEForPreTraining(MAEConfig(**TINY_MAE, norm_pix_loss=False)).eval()
        pixels = self.batch()["pixel_values"]
        output = model(pixels, noise=self.batch()["noise"])
        _, reconstructed = model.reconstruct(pixels, output.mask)
        hidden = output.mask.bool()
        torch.testing.assert_close(patchify(reconstructed, 4)[hidden], output.logits[hidden])
        for count in (0, 1, 16):
            mask = (torch.arange(16) < count).expand(len(pixels), -1)
            changed = patchify(model.reconstruct(pixels, mask)[1], 4).ne(patchify(pixels, 4)).any(2)
            assert torch.equal(changed, mask)
        with pytest.raises(ValueError, match="as many patches of each image"):
            model.reconstruct(pixels[:2], torch.eye(16)[:2].cumsum(0))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"backbone_config": TINY_VIT | {"image_size": 18}}, "image_size must be divisible by patch_size"),
            ({"mask_ratio": 1.0}, "mask_ratio"),
            ({"decoder_hidden_size": 18}, "decoder_hidden_size must be divisible by 4"),
            ({"backbone_config": {"model_type": "resnet"}}, "model_type 'vit'"),
        ],
    )
    def test_impossible_configs_are_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            MAEConfig(**TINY_MAE | change)


@pytest.mark.parametrize("patch_size", [1, 4, 8])
def test_patchify_is_invertible(patch_size):
    images = torch.randn(2, 5, 16, 24)
    patches = patchify(images, patch_size)
    assert torch.equal(unpatchify(patches, patch_size, 16 // patch_size), images)
    assert torch.equal(
        patches[0, 1].reshape(patch_size, patch_size, 5),
        images[0, :, :patch_size, patch_size : 2 * patch_size].permute(1, 2, 0),
    )
