"""ResNet with a 3x3 stem: torchvision's features, and loading where hf_ssl is not installed."""

import json
import os
import re

import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from processes import run_plain
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ResNetModel,
    set_seed,
)

import hf_ssl
from hf_ssl.data import image_processor

AUTO_MAP = {
    "AutoConfig": "_resnet.SSLResNetConfig",
    "AutoModel": "_resnet.SSLResNetModel",
    "AutoModelForImageClassification": "_resnet.SSLResNetForImageClassification",
    "AutoBackbone": "_resnet.SSLResNetBackbone",
}
RESNET18 = dict(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
TINY = dict(layer_type="bottleneck", embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2])


@torch.no_grad()
def randomise_batch_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(0, 0.2)
    return model.eval()


def native_name(key):
    """torchvision's name of a weight -> transformers'."""
    key = re.sub(r"^(conv|bn)1", r"embedder.embedder.\g<1>", key)
    key = re.sub(r"^layer(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.", key)
    key = re.sub(r"\b(conv|bn)(\d)", lambda m: f"layer.{int(m[2]) - 1}.{m[1]}", key)
    key = key.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.bn")
    return re.sub(r"\bconv\b", "convolution", re.sub(r"\bbn\b", "normalization", key))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    set_seed(0)
    folder = tmp_path_factory.mktemp("release") / "tiny"
    model = randomise_batch_norms(hf_ssl.SSLResNetModel(hf_ssl.SSLResNetConfig(**TINY)))
    model.save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    images = torch.randn(2, 3, 16, 16)
    expected = model(images, output_hidden_states=True)
    torch.save({"images": images, "stages": [stage.detach() for stage in expected.hidden_states]}, folder / "x.pt")
    return folder


def run_without_hf_ssl(program, cache):
    run_plain("import torch\n" + program, HF_HUB_CACHE=str(cache))


# -- the network ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_stage_is_that_of_torchvision_with_a_small_stem():
    set_seed(0)
    original = torchvision.models.resnet18()
    original.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    original.maxpool = torch.nn.Identity()
    original = randomise_batch_norms(original)
    model = hf_ssl.SSLResNetModel(hf_ssl.SSLResNetConfig(**RESNET18)).eval()
    weights = {native_name(key): value for key, value in original.state_dict().items() if not key.startswith("fc.")}
    model.load_state_dict(weights)

    images = torch.randn(2, 3, 32, 32)
    stages = [original.relu(original.bn1(original.conv1(images)))]
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stages.append(original.get_submodule(name)(stages[-1]))
    output = model(images, output_hidden_states=True)
    assert output.hidden_states[0].shape == output.hidden_states[1].shape == (2, 64, 32, 32)
    for found, expected in zip(output.hidden_states, stages, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert output.pooler_output.shape == (2, 512, 1, 1)
    torch.testing.assert_close(output.pooler_output, original.avgpool(stages[-1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(output.pooler_output, model(images).pooler_output)


def test_names_and_initialisation_are_the_native_ones(tmp_path):
    set_seed(0)
    config = hf_ssl.SSLResNetConfig(**RESNET18)
    model = hf_ssl.SSLResNetModel(config)
    assert list(model.state_dict()) == list(ResNetModel(config).state_dict())

    weights = model.state_dict()
    del weights["embedder.embedder.convolution.weight"], weights["embedder.embedder.normalization.running_var"]
    model.save_pretrained(tmp_path, state_dict=weights)
    for network in (
        model,
        hf_ssl.SSLResNetModel.from_pretrained(tmp_path),  # built without memory; the missing ones are drawn later
        hf_ssl.SSLResNetForImageClassification(config).resnet,
        hf_ssl.SSLResNetBackbone(config),
    ):
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Conv2d):  # normal, by the fan out
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert abs(module.weight.std() * (fan_out / 2) ** 0.5 - 1) < 0.05, name
            elif isinstance(module, torch.nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.running_var == 1).all(), name


def test_the_config_is_checked_as_the_native_one():
    for wrong in ({"layer_type": "wide"}, {"num_channels": 1.5}):
        with pytest.raises(StrictDataclassError, match=next(iter(wrong))):
            hf_ssl.SSLResNetConfig(**wrong)
    grey = hf_ssl.SSLResNetModel(hf_ssl.SSLResNetConfig(num_channels=1, **TINY))
    assert grey(torch.zeros(2, 1, 8, 8)).last_hidden_state.shape == (2, 64, 4, 4)


# -- loading -------------------------------------------------------------------------------------------------------

LOCAL = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
folder, again, tuned = {arguments}
expected = torch.load(folder + "/x.pt")
same = lambda found, stage: torch.testing.assert_close(found, expected["stages"][stage], rtol=0, atol=1e-6)

for source in (folder, again):
    model, report = AutoModel.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not any(report.values()), report
    same(model(expected["images"]).last_hidden_state, -1)
    assert model(expected["images"]).pooler_output.shape == (2, 64, 1, 1)
    model.save_pretrained(again)

classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=10, trust_remote_code=True)
assert classifier(expected["images"]).logits.shape == (2, 10)
same(classifier.resnet(expected["images"]).last_hidden_state, -1)
classifier.save_pretrained(tuned)

config = AutoConfig.from_pretrained(folder, out_indices=[1, 2], trust_remote_code=True)
backbone = AutoBackbone.from_config(config, trust_remote_code=True)
backbone = type(backbone).from_pretrained(folder, config=config)
for stage, found in enumerate(backbone(expected["images"]).feature_maps, 1):
    same(found, stage)

from PIL import Image
image = Image.radial_gradient("L").convert("RGB")
pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
features = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)(image, return_tensors=True)
torch.testing.assert_close(features, model(**pixels).last_hidden_state, rtol=0, atol=1e-6)
"""


@torch.no_grad()
def test_a_folder_loads_with_and_without_hf_ssl(folder, tmp_path):
    assert sorted(os.listdir(folder)) == [
        "_resnet.py",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "x.pt",
    ]
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    again, tuned = tmp_path / "again", tmp_path / "tuned"
    run_without_hf_ssl(LOCAL.format(arguments=[str(folder), str(again), str(tuned)]), tmp_path / "cache")

    expected = torch.load(folder / "x.pt")
    for source in (folder, again, tuned):
        assert (source / "_resnet.py").read_bytes() == (folder / "_resnet.py").read_bytes()
        assert json.loads((source / "config.json").read_text())["auto_map"] == AUTO_MAP
        for trust in ({}, {"trust_remote_code": True}):  # what is installed comes before what is in the folder
            model = AutoModel.from_pretrained(source, **trust).eval()
            assert type(model) is hf_ssl.SSLResNetModel
            found = model(expected["images"]).last_hidden_state
            torch.testing.assert_close(found, expected["stages"][-1], rtol=0, atol=1e-6)
    assert type(AutoModelForImageClassification.from_pretrained(tuned)) is hf_ssl.SSLResNetForImageClassification
    config = AutoConfig.from_pretrained(folder)
    assert (
        type(config) is hf_ssl.SSLResNetConfig and type(AutoBackbone.from_config(config)) is hf_ssl.SSLResNetBackbone
    )


REMOTE = """
from transformers import AutoBackbone, AutoModel
expected = torch.load({file!r})
backbone = AutoBackbone.from_pretrained("org/tiny", out_indices=[0, 1, 2], trust_remote_code=True)
for found, stage in zip(backbone(expected["images"]).feature_maps, expected["stages"], strict=True):
    torch.testing.assert_close(found, stage, rtol=0, atol=1e-6)
model = AutoModel.from_pretrained("org/tiny", trust_remote_code=True)
torch.testing.assert_close(model(expected["images"]).last_hidden_state, stage, rtol=0, atol=1e-6)
model.save_pretrained({again!r})
"""


def test_a_hub_id_loads_without_hf_ssl(hub, folder, tmp_path):
    hub.add("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "x.pt"})
    program = REMOTE.format(file=str(folder / "x.pt"), again=str(tmp_path / "again"))
    run_without_hf_ssl(program, tmp_path / "cache")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert type(AutoModel.from_pretrained(tmp_path / "again")) is hf_ssl.SSLResNetModel
