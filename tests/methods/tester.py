"""The checks that every method passes. A test class names the model, a tiny config, a batch, and the score of ignorance."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from processes import launch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoModelForPreTraining

from hf_ssl.methods._backbone import checkpoint_activations
from hf_ssl.methods._base import SSLModel, SSLOutput

TINY_VIT = dict(
    model_type="vit", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
    patch_size=4, layer_norm_eps=1e-6,
)  # fmt: skip
TINY_RESNET = dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


class MethodTester:
    model_class: type[SSLModel]
    config: dict  # of a tiny model
    chance_loss: float  # what a model that knows nothing scores on `batch`
    random_arguments = ("noise",)  # draws of `forward` that `batch` hands in
    tolerance = 1e-6  # relative, of two processes against one
    floor = 1e-9  # absolute: gradients that are nothing but rounding
    released_heads = ()  # prefixes of what the release has besides the encoder, which AutoModel passes by
    released_call = "model(**inputs)"
    released_features = "output.pooler_output.flatten(1)"  # what of the released encoder's output equals `embed`
    has_blocks = True  # that activation checkpointing knows
    brings_its_code = False  # the released architecture is not in transformers

    def batch(self, seed=0) -> dict:
        raise NotImplementedError

    def inputs(self) -> dict:
        """What `embed` and the released encoder take."""
        name = self.model_class.main_input_name
        return {name: self.batch()[name]}

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

    def test_two_processes_equal_one(self, checkpointing=False):
        """Contract C2: losses, gradients, weights and buffers of 2 processes x B are those of 1 process x 2 B."""
        losses, values = two_steps(type(self), 1)
        for losses_2, values_2 in launch(two_steps, type(self), 2, checkpointing, processes=2):
            assert losses_2 == pytest.approx(losses, rel=self.tolerance)
            for name, value in values.items():
                assert np.abs(values_2[name] - value).max() <= self.tolerance * np.abs(value).max() + self.floor, name

    def test_activation_checkpointing_changes_nothing(self):
        model, calls = self.model().train(), []
        if not self.has_blocks:
            with pytest.raises(ValueError, match="has no blocks to compute twice"):
                checkpoint_activations(model)
            return
        checkpoint_activations(model)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.register_forward_hook(lambda *_: calls.append(1))
        loss = model(**self.batch()).loss
        once = len(calls)
        loss.backward()
        assert len(calls) > once  # some were computed a second time

        (losses, values), (plain_losses, plain) = (two_steps(type(self), 1, twice) for twice in (True, False))
        assert losses == plain_losses
        assert all(np.array_equal(value, plain[name]) for name, value in values.items())

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
        inputs = self.inputs()
        together, alone = model.embed(**inputs), model.embed(**{name: value[:1] for name, value in inputs.items()})
        assert together.shape[0] == len(inputs[model.main_input_name]) and together.ndim == 2
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(together, model.embed(**inputs))

    def test_save_and_load(self, tmp_path):
        model = self.model().eval()
        model.save_pretrained(tmp_path)
        for auto in (AutoModelForPreTraining, AutoModel):
            loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is self.model_class
            assert not any(report.values()), report
            for name, value in model.state_dict().items():
                assert torch.equal(value, loaded.state_dict()[name]), name
            for (name, one), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
                assert one.requires_grad == other.requires_grad, name
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
            assert torch.isclose(*(v.float().std(correction=0) for v in (value, fresh)), rtol=0.5, atol=0.02), name

    def test_released_encoder_is_native(self, tmp_path):
        """Without hf_ssl, AutoModel loads it: no missing or unexpected key, and its features are those of `embed`."""
        model = self.model().eval()
        model.export_encoder().save_pretrained(tmp_path)
        inputs = self.inputs()
        torch.save({"inputs": inputs, "features": model.embed(**inputs).detach()}, tmp_path / "expected.pt")
        program = (
            "import sys, torch\n"
            "sys.modules['hf_ssl'] = None\n"
            "from transformers import AutoModel\n"
            f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"arguments = dict(trust_remote_code={self.brings_its_code}, output_loading_info=True)\n"
            f"model, report = AutoModel.from_pretrained({str(tmp_path)!r}, **arguments)\n"
            f"assert {self.brings_its_code} or type(model).__module__.startswith('transformers.models.'), type(model)\n"
            f"report['unexpected_keys'] = {{k for k in report['unexpected_keys'] if not k.startswith({self.released_heads})}}\n"
            "assert not any(report.values()), report\n"
            "inputs = expected['inputs']\n"
            f"output = {self.released_call}\n"
            f"features = {self.released_features}\n"
            "torch.testing.assert_close(features, expected['features'], rtol=0, atol=1e-6)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def two_steps(tester, processes, checkpointing=False):
    """(losses of two steps; first the gradients, then all weights and buffers after them) on this process's part."""
    tester = tester()
    model, losses, values = tester.model().train(), [], {}
    if checkpointing:
        checkpoint_activations(model)
    core = model
    if processes > 1:
        torch.distributed.init_process_group("gloo")
        model = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in core.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):
        batch = tester.batch(seed=step)
        if processes > 1:
            batch = {name: value.chunk(processes)[torch.distributed.get_rank()] for name, value in batch.items()}
        loss = model(**batch).loss
        loss.backward()
        if step == 0:
            values |= {f"gradient of {name}": p.grad.clone() for name, p in core.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        core.after_step(step / 2)
        mean = loss.detach().clone()
        if processes > 1:
            torch.distributed.all_reduce(mean.div_(processes))
        losses.append(mean.item())
    return losses, {name: value.numpy() for name, value in (values | core.state_dict()).items()}
