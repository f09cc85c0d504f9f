"""convert_checkpoint.py on files of the original's key layout, against the published formulas in plain torch."""

import argparse
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

import hf_ssl  # noqa: F401  registers MAE
from hf_ssl.errors import run_script

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"
HEADS, DECODER_HEADS = 3, 2
FLAGS = ["--num_attention_heads", str(HEADS), "--decoder_num_attention_heads", str(DECODER_HEADS)]


# -- a file of the original ----------------------------------------------------------------------------------------


def random_stack(name, depth, width, mlp):
    shapes = {}
    for i in range(depth):
        block = f"{name}.{i}."
        shapes |= {f"{block}norm1.{kind}": (width,) for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.qkv.weight": (3 * width, width), f"{block}attn.qkv.bias": (3 * width,)}
        shapes |= {f"{block}attn.proj.weight": (width, width), f"{block}attn.proj.bias": (width,)}
        shapes |= {f"{block}norm2.{kind}": (width,) for kind in ("weight", "bias")}
        shapes |= {f"{block}mlp.fc1.weight": (mlp, width), f"{block}mlp.fc1.bias": (mlp,)}
        shapes |= {f"{block}mlp.fc2.weight": (width, mlp), f"{block}mlp.fc2.bias": (width,)}
    return shapes


def original_weights(side=4, patch=4, channels=3, width=24, depth=3, mlp=40, decoder_width=16, decoder_depth=2):
    """Random, position tables too, under the names of the original's files; decoder_width=0: the encoder alone."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, side**2 + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= random_stack("blocks", depth, width, mlp) | {"norm.weight": (width,), "norm.bias": (width,)}
    if decoder_width:
        shapes |= {"mask_token": (1, 1, decoder_width), "decoder_pos_embed": (1, side**2 + 1, decoder_width)}
        shapes |= {"decoder_embed.weight": (decoder_width, width), "decoder_embed.bias": (decoder_width,)}
        shapes |= random_stack("decoder_blocks", decoder_depth, decoder_width, 3 * decoder_width)
        shapes |= {"decoder_norm.weight": (decoder_width,), "decoder_norm.bias": (decoder_width,)}
        pixels = patch**2 * channels
        shapes |= {"decoder_pred.weight": (pixels, decoder_width), "decoder_pred.bias": (pixels,)}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if key.endswith("weight") and len(shape) > 1 else 4
        weights[key] = torch.randn(shape, generator=generator) / fan_in**0.5 + (
            "norm" in key and key.endswith("weight")
        )
    return weights


# -- the published formulas (arXiv 2111.06377 and 2010.11929) --------------------------------------------------------


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def transformer(w, stack, x, heads):
    depth = 1 + max(int(key.split(".")[1]) for key in w if key.startswith(f"{stack}."))
    for i in range(depth):
        block = f"{stack}.{i}"
        query, key, value = linear(w, f"{block}.attn.qkv", layer_norm(w, f"{block}.norm1", x)).chunk(3, dim=-1)
        size = query.shape[-1] // heads
        mixed = []
        for h in range(heads):
            q, k, v = (part[..., h * size : (h + 1) * size] for part in (query, key, value))
            scores = torch.einsum("nid,njd->nij", q, k) / math.sqrt(size)
            mixed.append(torch.einsum("nij,njd->nid", scores.exp() / scores.exp().sum(-1, keepdim=True), v))
        x = x + linear(w, f"{block}.attn.proj", torch.cat(mixed, dim=-1))
        wide = linear(w, f"{block}.mlp.fc1", layer_norm(w, f"{block}.norm2", x))
        x = x + linear(w, f"{block}.mlp.fc2", wide * (1 + torch.erf(wide / math.sqrt(2))) / 2)
    return x


def cut(images, patch):
    """Patches row by row, (N, L, C, patch, patch)."""
    tops, lefts = range(0, images.shape[2], patch), range(0, images.shape[3], patch)
    return torch.stack([images[:, :, t : t + patch, s : s + patch] for t in tops for s in lefts], dim=1)


def embedded(w, images):
    """(cls token, patches), positions added."""
    projection = w["patch_embed.proj.weight"]
    patches = (
        torch.einsum("nlcyx,dcyx->nld", cut(images, projection.shape[-1]), projection) + w["patch_embed.proj.bias"]
    )
    cls_token = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(images), 1, -1)
    return cls_token, patches + w["pos_embed"][:, 1:]


def features(w, images, heads):
    return layer_norm(w, "norm", transformer(w, "blocks", torch.cat(embedded(w, images), dim=1), heads))


def masked_autoencoder(w, images, noise, normalise):
    """(loss, predicted patches)."""
    cls_token, patches = embedded(w, images)
    visible = [sorted(range(len(row)), key=row.__getitem__)[: len(row) // 4] for row in noise.tolist()]
    kept = torch.stack([patches[n, places] for n, places in enumerate(visible)])
    encoded = layer_norm(w, "norm", transformer(w, "blocks", torch.cat([cls_token, kept], dim=1), HEADS))
    encoded = linear(w, "decoder_embed", encoded)
    tokens = w["mask_token"].repeat(len(images), noise.shape[1], 1)
    for n, places in enumerate(visible):
        for rank, place in enumerate(places):
            tokens[n, place] = encoded[n, 1 + rank]
    tokens = torch.cat([encoded[:, :1], tokens], dim=1) + w["decoder_pos_embed"]
    decoded = layer_norm(w, "decoder_norm", transformer(w, "decoder_blocks", tokens, DECODER_HEADS))
    predicted = linear(w, "decoder_pred", decoded)[:, 1:]

    errors = []
    targets = cut(images, w["patch_embed.proj.weight"].shape[-1]).permute(0, 1, 3, 4, 2).flatten(2)  # channel last
    for n, places in enumerate(visible):
        for place in set(range(noise.shape[1])) - set(places):
            target = targets[n, place]
            if normalise:
                target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            errors.append((predicted[n, place] - target).square().mean())
    return torch.stack(errors).mean(), predicted


# -- running it ----------------------------------------------------------------------------------------------------


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "mae", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def convert(monkeypatch, capsys):
    """The script within this process: (exit code, what it printed, its errors)."""
    specification = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "convert_checkpoint", script)
    specification.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "mae", *map(str, arguments)])
        try:
            run_script(script.main)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(weights, release folder): a file with decoder, converted in a process; beside it, one that is cut off."""
    folder = tmp_path_factory.mktemp("full")
    weights = original_weights()
    torch.save({"model": weights}, folder / "tiny_full.pth")
    (folder / "cut.pth").write_bytes((folder / "tiny_full.pth").read_bytes()[:-500])
    good = start(folder / "tiny_full.pth", "--output_dir", folder / "made" / "release", *FLAGS)
    bad = start(folder / "cut.pth", "--output_dir", folder / "none", *FLAGS)
    printed, errors = good.communicate(timeout=120)
    assert good.returncode == 0 and errors == "" and "norm_pix_loss" in printed, errors
    _, errors = bad.communicate(timeout=120)
    assert bad.returncode == 1 and errors.count("\n") == 1 and "cut.pth is damaged" in errors, errors
    assert sorted(os.listdir(folder)) == ["cut.pth", "made", "tiny_full.pth"]
    return weights, folder / "made" / "release"


def load(auto_class, folder, **kwargs):
    model, report = auto_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(report.values()), report
    return model.eval()


def draw(n, channels, size, patches):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, size, size, generator=generator), torch.rand(n, patches, generator=generator)


@torch.no_grad()
def test_the_root_gives_the_originals_features(released):
    weights, folder = released
    model = load(AutoModel, folder)
    assert type(model).__name__ == "ViTModel" and model.dtype == torch.float32
    images, _ = draw(2, 3, 16, 16)
    expected, output = features(weights, images, HEADS), model(images)
    torch.testing.assert_close(output.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooler_output, expected[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_pretraining_gives_the_originals_loss_and_predictions(released, normalise):
    weights, folder = released
    model = load(AutoModelForPreTraining, folder, subfolder="pretraining")
    assert model.config.norm_pix_loss  # the default
    model.config.norm_pix_loss = normalise
    images, noise = draw(3, 3, 16, 16)
    loss, predicted = masked_autoencoder(weights, images, noise, normalise)
    output = model(images, noise=noise)
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, predicted, atol=1e-5, rtol=1e-5)


def test_the_card_states_origin_and_licence(released):
    _, folder = released
    card = (folder / "README.md").read_text()
    for words in (
        "license: cc-by-nc-4.0",
        "facebookresearch/mae",
        "arxiv.org/abs/2111.06377",
        "tiny_full.pth",
        "3 heads",
    ):
        assert words in card
    assert str(folder.parent) not in card and "{{" not in card and "\n\n\n" not in card
    assert sorted(os.listdir(folder)) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "pretraining",
    ]  # fmt: skip


@torch.no_grad()
def test_an_encoder_alone_at_the_authors_width(tmp_path, convert):
    weights = original_weights(side=7, patch=32, width=768, depth=1, mlp=96, decoder_width=0)
    torch.save({"model": weights}, tmp_path / "encoder.pth")
    (tmp_path / "release").mkdir()  # empty is as good as not there
    code, printed, errors = convert(tmp_path / "encoder.pth", "--output_dir", tmp_path / "release")
    assert code == 0 and errors == "" and "encoder.pth holds the encoder alone" in printed.splitlines()[0]
    assert not (tmp_path / "release" / "pretraining").exists()
    model = load(AutoModel, tmp_path / "release")
    images, _ = draw(1, 3, 224, 49)
    expected = features(weights, images, heads=12)
    torch.testing.assert_close(model(images).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "release")
    assert processor.size.shortest_edge == 256 and processor.crop_size.height == processor.crop_size.width == 224
    assert list(processor.image_mean) == [0.485, 0.456, 0.406] and list(processor.image_std) == [0.229, 0.224, 0.225]


def test_safetensors_and_settings_that_no_file_holds(tmp_path, convert, released):
    weights, folder = released
    for name, flags, expected in (
        ("mae_visualize_tiny", [], False),  # the authors' files for pictures predict pixels as they are
        ("mae_visualize_again", ["--norm_pix_loss"], True),
        ("tiny", ["--no-norm_pix_loss"], False),
    ):
        save_file(weights, tmp_path / f"{name}.safetensors")
        code, _, errors = convert(tmp_path / f"{name}.safetensors", "--output_dir", tmp_path / name, *FLAGS, *flags)
        assert code == 0, errors
        config = hf_ssl.MAEConfig.from_pretrained(tmp_path / name, subfolder="pretraining")
        assert config.norm_pix_loss is expected and config.decoder_intermediate_size == 48
        assert (tmp_path / name / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def without(key):
    weights = original_weights()
    del weights[key]
    return {"model": weights}


def with_extra(**extra):
    return {"model": original_weights() | extra}


BAD = {
    "fine-tuned": (lambda: with_extra(**{"fc_norm.weight": torch.ones(24), "head.bias": torch.ones(9)}), "head.bias"),
    "missing": (lambda: without("blocks.1.attn.qkv.bias"), "lacks the keys blocks.1.attn.qkv.bias:"),
    "no sizes": (lambda: without("pos_embed"), "lacks the key pos_embed"),
    "no block": (lambda: {"model": {k: v for k, v in original_weights().items() if "blocks.1." not in k}}, "blocks.2"),
    "half a decoder": (lambda: without("mask_token"), "lacks the keys mask_token:"),
    "unexpected": (lambda: with_extra(extra=torch.ones(1)), "has the unexpected keys extra:"),
    "other shape": (lambda: with_extra(**{"norm.bias": torch.ones(25)}), "norm.bias has shape (25,), expected (24,)"),
    "flat": (lambda: with_extra(pos_embed=torch.ones(17, 24)), "pos_embed has shape (17, 24), expected 3 dim"),
    "not square": (lambda: with_extra(pos_embed=torch.ones(1, 16, 24)), "15 patches"),
    "one patch": (lambda: {"model": original_weights(side=1)}, "mask_ratio must"),
    "training run": (
        lambda: with_extra() | {"args": argparse.Namespace(lr=1.0)},
        "more than tensors (argparse.Namespace)",
    ),
    "integers": (lambda: with_extra(step=torch.tensor(3)), "something else than weights under 'step'"),
    "a list": (lambda: [torch.ones(1)], "holds no weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(tmp_path, convert, case):
    content, expected = BAD[case]
    torch.save(content(), tmp_path / "bad.pth")
    code, printed, errors = convert(tmp_path / "bad.pth", "--output_dir", tmp_path / "release", *FLAGS)
    assert code == 1 and printed == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert expected in errors and "bad.pth" in errors
    assert os.listdir(tmp_path) == ["bad.pth"]


def test_bad_arguments_are_one_line(tmp_path, convert):
    file, release = tmp_path / "tiny.pth", tmp_path / "release"
    torch.save({"model": original_weights()}, file)
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.safetensors").touch()
    before = sorted(os.listdir(tmp_path))
    for arguments, expected in (
        ([file, "--output_dir", release], "give --num_attention_heads"),
        ([file, "--output_dir", release, *FLAGS[:2]], "give --decoder_num_attention_heads"),
        (
            [file, "--output_dir", release, "--num_attention_heads", 5],
            "--num_attention_heads must divide the width 24",
        ),
        ([file, "--output_dir", tmp_path, *FLAGS], "is not an empty folder"),
        ([file, "--output_dir", file, *FLAGS], "is not an empty folder"),
        ([file, "--output_dir", file / "below", *FLAGS], "could not be written"),
        ([tmp_path / "none.pth", "--output_dir", release], "none.pth could not be opened"),
        ([tmp_path, "--output_dir", release], "could not be opened"),
        ([tmp_path / "text.pth", "--output_dir", release], "text.pth is damaged"),
        ([tmp_path / "empty.safetensors", "--output_dir", release], "empty.safetensors is damaged"),
    ):
        code, printed, errors = convert(*arguments)
        assert code == 1 and printed == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert expected in errors, errors
        assert sorted(os.listdir(tmp_path)) == before
