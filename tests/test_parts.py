"""The parts that methods are made of."""

import pytest
import torch
from methods.tester import TINY_RESNET, TINY_VIT
from transformers import AutoConfig

import hf_ssl.methods._random as random_numbers
from hf_ssl.methods._backbone import build_backbone
from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput


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
