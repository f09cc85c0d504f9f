"""The parts that methods are made of."""

import numpy as np
import pytest
import torch
from methods.tester import TINY_RESNET, TINY_VIT
from processes import launch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig

import hf_ssl.methods._random as random_numbers
from hf_ssl.methods._backbone import build_backbone
from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput
from hf_ssl.methods._batch_norm import GlobalBatchNorm
from hf_ssl.methods._distributed import own_part, sum_with_gradient
from hf_ssl.methods._memory import write_rows


def test_no_two_streams_are_alike():
    streams = {name: value for name, value in vars(random_numbers).items() if name.endswith("_STREAM")}
    of_tokens = {name: streams.pop(name) for name in list(streams) if name.startswith("HIDDEN_")}
    first_view = streams.pop("VIEW_STREAM")
    views = range(first_view, first_view + 99)
    assert len({*streams.values(), *views}) == len(streams) + 99
    assert len({*of_tokens.values(), streams["NEGATIVES_STREAM"]}) == len(of_tokens) + 1


class TestBase:
    def test_names_of_the_log_are_refused_as_metrics(self):
        assert SSLOutput(torch.tensor(1.0), metrics={"accuracy": torch.tensor(0.5)}).metrics["accuracy"] == 0.5
        for name in ("loss", "learning_rate", "step", "epoch"):
            with pytest.raises(ValueError, match=f"^metrics must not be called .*; found {name}.$"):
                SSLOutput(torch.tensor(1.0), metrics={"accuracy": torch.tensor(0.5), name: torch.tensor(0.5)})

    def test_one_backbone_is_what_is_embedded_and_released(self):
        config = AutoConfig.for_model(**TINY_RESNET)
        model = SSLModel(SSLConfig()).eval()
        model.backbone = build_backbone(config).eval()
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            expected = model.backbone(pixels).pooler_output.flatten(1)
            assert torch.equal(model.embed(pixels), expected)
            assert torch.equal(model.export_encoder()(pixels).pooler_output.flatten(1), expected)

    def test_without_one_backbone_the_defaults_say_so(self):
        model = SSLModel(SSLConfig())
        with pytest.raises(NotImplementedError, match="no module `backbone` and does not define embed"):
            model.embed(torch.zeros(2, 3, 16, 16))
        with pytest.raises(NotImplementedError, match="no module `backbone` and does not define export_encoder"):
            model.export_encoder()
        model.backbone = build_backbone(AutoConfig.for_model(**TINY_VIT | {"model_type": "vit_mae"}))
        with pytest.raises(ValueError, match="ViTMAEModel gives no pooler_output"):
            model.embed(torch.zeros(2, 3, 16, 16))


def on_each_process(processes):
    """What the parts that span processes compute of a batch of 8, of which each process holds a part."""
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    values = {f"sum: {name}": value for name, value in summed().items()} | {"bank": written()}
    for affine in (False, True):
        for x in (WAVES, WAVES[:, :, 0, 0]):
            found = normalized(x, affine).items()
            values |= {f"norm, affine={affine}, {x.ndim} axes: {name}": value for name, value in found}
    return {name: value.numpy() for name, value in values.items()}


WAVES = torch.arange(8 * 3 * 4 * 4.0, dtype=torch.float64).mul(0.7).sin().add(0.3).view(8, 3, 4, 4)


def normalized(x, affine):
    norm = GlobalBatchNorm(3, affine=affine).double()
    x = own_part(x).clone().requires_grad_()
    for _ in range(2):  # the running statistics move twice
        y = norm(x)
    y.pow(3).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    if torch.distributed.is_initialized():
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
    return {"of x": x.grad, "y": y.detach()} | gradients | dict(norm.named_buffers())


def summed():
    """A loss of a sum over the batch, through DDP as the loop's."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2).double()
    model = DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    rows = model(own_part(WAVES[:, 0, 0]))
    total = sum_with_gradient(rows.T @ rows)
    total.det().backward()
    return {"total": total.detach()} | {name: p.grad for name, p in network.named_parameters()}


def written():
    """Row 5 stands twice on one process, row 2 on both, row 7 three times."""
    bank, indices = torch.zeros(9, 2), torch.tensor([5, 2, 5, 7, 2, 7, 0, 7])
    write_rows(bank, own_part(indices), own_part(torch.arange(16.0, dtype=torch.float64).view(8, 2)))
    return bank


@pytest.fixture(scope="module")
def alone():
    return on_each_process(1)


class TestOverProcesses:
    def test_two_processes_equal_one(self, alone):
        for rank, values in enumerate(launch(on_each_process, 2, processes=2)):
            assert values.keys() == alone.keys()
            for name, value in values.items():
                expected = np.split(alone[name], 2)[rank] if name.endswith((": of x", ": y")) else alone[name]
                np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12, err_msg=name)

    def test_global_batch_norm_alone_is_torch_s(self, alone):
        plain, x = nn.BatchNorm2d(3, affine=False).double(), WAVES.clone().requires_grad_()
        plain(x), plain(x).pow(3).sum().backward()
        np.testing.assert_allclose(alone["norm, affine=False, 4 axes: of x"], x.grad)

    def test_the_last_of_equal_rows_is_written(self, alone):
        expected = np.zeros((9, 2), np.float32)
        for place, row in ((5, 2), (2, 4), (0, 6), (7, 7)):
            expected[place] = 2 * row, 2 * row + 1
        np.testing.assert_array_equal(alone["bank"], expected)
