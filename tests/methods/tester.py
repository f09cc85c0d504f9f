"""The checks that every method passes. A test class names the model, a tiny config, a batch, and the score of ignorance."""

import copy
import subprocess
import sys

import torch
from transformers import AutoModel, AutoModelForPreTraining

from hf_ssl.methods._base import SSLModel, SSLOutput

TINY_VIT = dict(
    model_type="vit", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
    patch_size=4, layer_norm_eps=1e-6,
)  # fmt: skip


class MethodTester:
    model_class: type[SSLModel]
    config: dict  # of a tiny model
    chance_loss: float  # what a model that knows nothing scores on `batch`
    random_arguments = ("noise",)  # draws of `forward` that `batch` hands in

    def batch(self, seed=0) -> dict:
        raise NotImplementedError

    def model(self, seed=0):
        torch.manual_seed(seed)
        return self.model_class(self.model_class.config_class(**copy.deepcopy(self.config)))

    def test_every_trained_weight_gets_a_gradient(self):
        model = self.model().train()
        output = model(**self.batch())
        assert isinstance(output, SSLOutput) and output.loss.ndim == 0 and output.loss.isfinite()
        assert output.features.ndim == 2
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name

    def test_learns(self):
        model = self.model().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        for step in range(400):
            batch = {k: v for k, v in self.batch(seed=step).items() if k not in self.random_arguments}
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.after_step((step + 1) / 400)
        assert model(**self.batch(seed=1000)).loss < 0.8 * self.chance_loss

    def test_same_draw_same_loss(self):
        model = self.model().eval()
        assert torch.equal(model(**self.batch()).loss, model(**self.batch()).loss)

    def test_eval_forward_changes_nothing(self):
        model = self.model().eval()
        before = copy.deepcopy(model.state_dict())
        model(**self.batch())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_embed_does_not_depend_on_the_batch(self):
        model = self.model().eval()
        inputs = self.batch()[model.main_input_name]
        together, alone = model.embed(inputs), model.embed(inputs[:1])
        assert together.shape[0] == len(inputs) and together.ndim == 2
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(together, model.embed(inputs))

    def test_save_and_load(self, tmp_path):
        model = self.model().eval()
        model.save_pretrained(tmp_path)
        for auto in (AutoModelForPreTraining, AutoModel):
            loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is self.model_class
            assert not any(report.values()), report
            for name, value in model.state_dict().items():
                assert torch.equal(value, loaded.state_dict()[name]), name
            assert torch.equal(loaded(**self.batch()).loss, model(**self.batch()).loss)

    def test_weights_missing_from_a_file_are_drawn_not_garbage(self, tmp_path):
        """transformers builds on the meta device: what no file fills must be filled by `_init_weights`."""
        model = self.model().eval()
        kept = dict(list(model.state_dict().items())[:1])
        model.save_pretrained(tmp_path, state_dict=kept)
        torch.manual_seed(0)
        loaded = self.model_class.from_pretrained(tmp_path)
        for (name, value), fresh in zip(
            loaded.state_dict().items(), self.model(seed=1).state_dict().values(), strict=True
        ):
            assert value.isfinite().all(), name
            assert torch.isclose(value.float().std(), fresh.float().std(), rtol=0.5, atol=0.02), name

    def test_released_encoder_is_native(self, tmp_path):
        """Without hf_ssl, AutoModel loads it: no missing or unexpected key, `pooler_output` equal to `embed`."""
        model = self.model().eval()
        model.export_encoder().save_pretrained(tmp_path)
        inputs = self.batch()[model.main_input_name]
        torch.save({"inputs": inputs, "features": model.embed(inputs).detach()}, tmp_path / "expected.pt")
        program = (
            "import sys, torch\n"
            "sys.modules['hf_ssl'] = None\n"
            "from transformers import AutoModel\n"
            f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"model, report = AutoModel.from_pretrained({str(tmp_path)!r}, output_loading_info=True)\n"
            "assert type(model).__module__.startswith('transformers.models.'), type(model)\n"
            "assert not any(report.values()), report\n"
            "features = model(expected['inputs']).pooler_output.flatten(1)\n"
            "torch.testing.assert_close(features, expected['features'], rtol=0, atol=1e-6)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
