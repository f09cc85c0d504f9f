"""Weights of files: damaged, of other shapes, missing, of other types; and that every model that trains can be released."""

import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from methods.tester import TINY_RESNET, TINY_VIT, drawn_otherwise, find_tester
from transformers import AutoConfig, AutoModel

from hf_ssl import METHODS, SimCLRConfig, SimCLRForPreTraining
from hf_ssl.cli.parse import build_model, override_config
from hf_ssl.errors import InputError
from hf_ssl.evaluation.encoders.loading import load_model
from hf_ssl.hub.release import check_run
from hf_ssl.methods import _ARCHITECTURES
from hf_ssl.training import TrainingArguments

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    model = SimCLRForPreTraining(SimCLRConfig(backbone_config=TINY_VIT, projection_size=16))
    model.export_encoder().save_pretrained(folder)
    model.save_pretrained(folder / "pretraining")
    return folder


def evaluate(folder):
    load_model(folder)


def evaluate_pretraining(folder):
    load_model(f"{folder}/pretraining")


def begin_from_encoder(folder):
    config = SimCLRConfig(backbone_config=AutoConfig.from_pretrained(folder))
    build_model(SimCLRForPreTraining, config, SimpleNamespace(seed=0))


def go_on_from_release(folder):
    config = SimCLRConfig.from_pretrained(folder, subfolder="pretraining")
    config.name_or_path = str(folder)
    build_model(SimCLRForPreTraining, config, SimpleNamespace(seed=0))


def other_shapes(_):
    config = AutoConfig.for_model(**TINY_VIT | {"hidden_size": 16})
    state = AutoModel.from_config(config).state_dict()
    return state | {f"backbone.{name}": tensor for name, tensor in state.items()}


DAMAGES = {  # file's name, its content from what was there, what the sentence says
    "truncated": ("model.safetensors", lambda old: old[: len(old) // 2], "incomplete metadata"),
    "empty": ("model.safetensors", lambda old: b"", "model.safetensors is empty"),
    "a Git-LFS pointer": ("model.safetensors", lambda old: LFS, "model.safetensors is a pointer of Git LFS"),
    "a page": ("model.safetensors", lambda old: b"<html>not found</html>", "damaged or no checkpoint"),
    "a pickle": ("pytorch_model.bin", lambda old: {"a": Evil()}, r"holds more than tensors \(posix.mkdir\)"),
    "an old pickle": ("pytorch_model.bin", lambda old: pickle.dumps(Evil()), "damaged or no checkpoint"),
    "half a pickle": ("pytorch_model.bin", lambda old: pickle.dumps({"a": 1})[:9], "damaged or no checkpoint"),
    "a list": ("pytorch_model.bin", lambda old: [1, 2], "damaged or no checkpoint"),
    "other shapes": ("pytorch_model.bin", other_shapes, r"found \(1, 1, 16\), expected \(1, 1, 32\)"),
}


@pytest.mark.parametrize("load", [evaluate, evaluate_pretraining, begin_from_encoder, go_on_from_release])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_one_sentence(release, tmp_path, monkeypatch, damage, load):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(release, "run")
    name, content, expected = DAMAGES[damage]
    for folder in ("run", "run/pretraining"):
        with open(f"{folder}/model.safetensors", "rb") as file:
            new = content(file.read())
        os.remove(f"{folder}/model.safetensors")
        if isinstance(new, bytes):
            with open(f"{folder}/{name}", "wb") as file:
                file.write(new)
        else:
            torch.save(new, f"{folder}/{name}")
    with pytest.raises(InputError, match=expected) as caught:
        load("run")
    text = str(caught.value)
    assert "'run" in text and "\n" not in text and "weights_only" not in text, text
    assert os.listdir() == ["run"]


def test_what_a_file_lacks_is_told(release, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(release, folder)
    model = SimCLRForPreTraining.from_pretrained(folder, subfolder="pretraining")
    state = model.state_dict()
    del state["projector.0.weight"]
    model.save_pretrained(folder / "pretraining", state_dict=state)
    go_on_from_release(folder)
    assert "lacks 1 weights, for example 'projector.0.weight': they begin anew" in caplog.text
    load_model(f"{folder}/pretraining")  # it is none of the encoder's
    del state["backbone.layernorm.weight"], state["backbone.layers.0.mlp.fc1.weight"]
    model.save_pretrained(folder / "pretraining", state_dict=state)
    with pytest.raises(InputError, match="lacks 1 weights of its encoder, for example 'layers.0.mlp.fc1.weight'"):
        load_model(f"{folder}/pretraining")


SMALL = {  # of each architecture that we release; the defaults of the others are small enough
    "SSLResNet": {name: value for name, value in TINY_RESNET.items() if name != "model_type"} | {"num_labels": 16},
    "SSLAlexNet": {"stride": 1, "hidden_sizes": [8, 8, 8, 8, 16], "num_labels": 16},
    "SSLSobel": {"encoder_config": TINY_RESNET | {"num_channels": 2}},
    "SSLTwoHalves": {
        half: TINY_RESNET | {"num_channels": channels}
        for half, channels in (("first_config", 1), ("second_config", 2))
    },
    "CPCAudio": {"conv_size": 32, "hidden_size": 24},
    "CPCText": {"vocab_size": 50, "embedding_size": 16, "hidden_size": 24},
    "Word2Vec": {"vocab_size": 50, "hidden_size": 24},
}


def small(model_class):
    values = next(value for name, value in SMALL.items() if model_class.__name__.startswith(name))
    return model_class(model_class.config_class(**values)).eval()


@pytest.mark.parametrize("model_class", [model for _, model in _ARCHITECTURES], ids=lambda each: each.__name__)
def test_what_a_file_of_a_release_lacks_is_drawn_as_in_a_new_model(model_class, tmp_path):
    assert not (faults := drawn_otherwise(small(model_class), tmp_path)), "\n".join(faults)


@pytest.mark.parametrize("model_class", [model for _, model in _ARCHITECTURES], ids=lambda each: each.__name__)
def test_released_architectures_take_the_arguments_of_transformers(model_class):
    model = small(model_class)
    inputs = {
        "pixel_values": torch.rand(2, 3, 16, 16), "input_ids": torch.arange(12).view(2, 6) % 5,
        "input_values": torch.rand(2, 1600),
    }[model.main_input_name]  # fmt: skip
    output = model(inputs)
    as_tuple = model(inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output) and "hidden_states" not in output
    torch.testing.assert_close(as_tuple[0], output[0])
    hidden = model(inputs, output_hidden_states=True).hidden_states
    assert len(hidden) > 0 and all(isinstance(layer, torch.Tensor) and len(layer) == 2 for layer in hidden)
    model.config.output_hidden_states = True
    assert len(model(inputs).hidden_states) == len(hidden)
    half = model.bfloat16()(inputs.bfloat16() if inputs.is_floating_point() else inputs)
    tensors = [tensor for value in half.values() for tensor in (value if isinstance(value, tuple) else (value,))]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["bert", "cpc_text", "word2vec"])
def test_a_resized_vocabulary_is_saved_and_released(name, tmp_path):
    tester = find_tester(name)
    model = tester.model()
    size = model.config.vocab_size + 7
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    model.save_pretrained(tmp_path)
    loaded, report = tester.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    model.eval(), loaded.eval()
    assert torch.equal(loaded(**tester.batch()).loss, model(**tester.batch()).loss)
    assert model.export_encoder().get_input_embeddings().num_embeddings == size
    assert all(parameter.isfinite().all() for parameter in model.parameters())


ARGUMENTS = TrainingArguments(eval_protocols="none")


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_trains_can_be_released(name, tmp_path):
    """A wider encoder, by an override as the command line makes it; and one whose export fails is refused at the start."""
    tester = find_tester(name)
    config = tester.model().config
    owner, part = config.backbone_config, "backbone_config"
    if inner := {"clip": "vision_config", "cmc": "first_config", "split_brain": "first_config"}.get(name):
        owner, part = getattr(owner, inner), f"{part}.{inner}"
    wider = f"hidden_sizes={[8, 32]}" if hasattr(owner, "hidden_sizes") else f"hidden_size={2 * owner.hidden_size}"
    override_config(config, f"{part}.{wider}")
    model = tester.model_class(config).eval()
    check_run(model, ARGUMENTS)
    model.export_encoder().save_pretrained(tmp_path)
    assert not (tmp_path / "pretraining").exists()

    class Faulty(tester.model_class):
        def export_encoder(self):
            raise RuntimeError("size mismatch for pooler")

    with pytest.raises(InputError, match="could be trained but not released with these settings: size mismatch"):
        check_run(Faulty(config), ARGUMENTS)


def test_a_release_shares_no_config():
    for name in METHODS:
        model = find_tester(name).model()
        encoder = model.export_encoder()
        encoder.config.hidden_dropout_prob = 0.5
        assert encoder.config is not model.config.backbone_config, name
        assert getattr(model.config.backbone_config, "hidden_dropout_prob", 0) != 0.5, name
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
