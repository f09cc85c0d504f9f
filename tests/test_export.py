"""Releases in other runtimes and libraries: the same features there, or one sentence and no file."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from methods.tester import TINY_RESNET, TINY_VIT, find_tester
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from hf_ssl.data import image_processor
from hf_ssl.errors import InputError
from hf_ssl.evaluation.encoders.loading import released_encoder
from hf_ssl.hub.export import export_release
from hf_ssl.methods import METHODS, SSLResNetConfig, SSLResNetModel

SMALL_BERT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)


def saved(model, folder, size=16):
    released_encoder(model).save_pretrained(folder)
    if hasattr(model.config, "num_channels"):
        image_processor(size, 3).save_pretrained(folder)
    return str(folder)


ENCODERS = {name: find_tester(name).model().export_encoder() for name in METHODS}
# methods that release the same network are one test, and the smallest of each kind of input is in the quick suite
ARCHITECTURES = {encoder.config.to_json_string(): name for name, encoder in reversed(ENCODERS.items())}
BY_SIZE = sorted(ARCHITECTURES.values(), key=lambda name: -ENCODERS[name].num_parameters())
QUICK = {ENCODERS[name].main_input_name: name for name in BY_SIZE}.values()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BY_SIZE]
)
def test_every_release_runs_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    release = saved(ENCODERS[name], tmp_path / "release")
    export_release(release, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    tester, model = find_tester(name), AutoModel.from_pretrained(release).eval()
    batch = tester.batch() | tester.inputs()
    if "input_ids" in batch:
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    names = [each.name for each in session.get_inputs()]
    for rows in (1, 3):
        values = {key: batch[key][:rows] for key in names}
        with torch.no_grad():
            expected = model(**values)
        outputs = session.run(None, {key: value.numpy() for key, value in values.items()})
        for output, value in zip(session.get_outputs(), outputs, strict=True):
            torch.testing.assert_close(torch.from_numpy(value), expected[output.name], rtol=1e-4, atol=1e-4)
    assert {"pooler_output", "image_embeds"} & {each.name for each in session.get_outputs()}
    assert (tmp_path / "onnx/config.json").is_file()


def test_texts_of_any_length_and_number_run_in_torch_alone(tmp_path):
    release = saved(ENCODERS["word2vec"], tmp_path / "release")
    export_release(release, "torch", tmp_path / "torch")
    program, model = (
        torch.export.load(tmp_path / "torch/model.pt2").module(),
        AutoModel.from_pretrained(release).eval(),
    )
    for shape in ((1, 9), (4, 20)):
        ids = torch.randint(12, shape)
        values = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        with torch.no_grad():
            expected, outputs = model(**values), program(**values)
        assert set(outputs) == {"last_hidden_state", "pooler_output"}
        for key, value in outputs.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4)


def test_a_pooler_that_no_file_has_is_not_exported(tmp_path):
    """transformers would draw it at random."""
    release = saved(ViTModel(ViTConfig(**TINY_VIT), add_pooling_layer=False), tmp_path / "release")
    export_release(release, "torch", tmp_path / "torch")
    program = torch.export.load(tmp_path / "torch/model.pt2").module()
    assert set(program(pixel_values=torch.zeros(3, 3, 16, 16))) == {"last_hidden_state"}


RESNET18 = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
RESNET50 = ResNetConfig(embedding_size=64, hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 6, 3])
GREY_VIT = ViTConfig(**TINY_VIT | {"num_channels": 1})


def drawn(config, seed=0):
    """With statistics of batch norms that are not those of any new network."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("format", ["timm", "torchvision"])
@pytest.mark.parametrize(
    "config", [RESNET18, RESNET50, ViTConfig(**TINY_VIT), GREY_VIT], ids="r18 r50 vit grey".split()
)
def test_other_libraries_load_it_by_the_code_that_is_printed(config, format, tmp_path, monkeypatch, capsys):
    """Strictly, as their own networks do, and with the same features."""
    if format == "timm":
        pytest.importorskip("timm")
    size = 16 if config.model_type == "vit" else 64
    release = saved(drawn(config), tmp_path / "release", size)
    arguments = ["export", release, "--format", format, "--output_dir", str(tmp_path / format)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(Path(__file__).parents[1] / "scripts/export.py"), run_name="__main__")
    code = capsys.readouterr().out.split("To load it:")[1]
    images = torch.randn(3, 3, size, size)
    names = {"images": images}
    exec(code, names)
    output = AutoModel.from_pretrained(release).eval()(images)
    expected = output.last_hidden_state[:, 0] if config.model_type == "vit" else output.pooler_output.flatten(1)
    torch.testing.assert_close(names["features"], expected, rtol=1e-4, atol=1e-4)
    if format == "timm":
        assert names["settings"]["input_size"] == (3, size, size)
        assert names["settings"]["mean"] == pytest.approx((0.485, 0.456, 0.406))
        assert names["model"].pretrained_cfg.get("license") is None  # no other network's


@pytest.mark.parametrize(
    "model, format, sentence",
    [
        (lambda: SSLResNetModel(SSLResNetConfig(**TINY_RESNET)), "torchvision", "3x3 stem of stride 1.*--backbone resnet18"),
        (lambda: ResNetModel(ResNetConfig(**TINY_RESNET)), "torchvision", r"\[1, 1\] basic layers .* expected one of resnet18"),
        (lambda: BertModel(BertConfig(**SMALL_BERT)), "torchvision", "model_type 'bert': expected resnet or vit"),
        (lambda: ViTModel(ViTConfig(**TINY_VIT, hidden_act="relu")), "torchvision", "other features there: they differ by"),
        (lambda: ViTModel(ViTConfig(**TINY_VIT, qkv_bias=False)), "torchvision", "does not fit the network of torchvision"),
        (lambda: T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)), "torch", "T5Model"),
        (lambda: BertModel(BertConfig(**SMALL_BERT)), "tflite", "format 'tflite' is unknown"),
    ],
)  # fmt: skip
def test_what_has_no_such_form_is_one_sentence_and_leaves_nothing(model, format, sentence, tmp_path):
    torch.manual_seed(0)
    release = saved(model().eval(), tmp_path / "release")
    with pytest.raises(InputError, match=sentence) as refusal:
        export_release(release, format, tmp_path / "file")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_folder_that_holds_something_is_refused(tmp_path):
    release = saved(ENCODERS["word2vec"], tmp_path / "release")
    with pytest.raises(InputError, match="is not an empty folder"):
        export_release(release, "torch", release)
