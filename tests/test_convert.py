"""convert_checkpoint.py on files of the originals' key layouts, against the published formulas and torchvision."""

import argparse
import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from processes import run_plain
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForPreTraining, ResNetModel

import hf_ssl
from hf_ssl.hub.conversion.torchvision_resnet import resnet_config, resnet_name, resnet_parameters

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"
HEADS, DECODER_HEADS = 3, 2
FLAGS = ["--num_attention_heads", str(HEADS), "--decoder_num_attention_heads", str(DECODER_HEADS)]


# -- a file of MAE ------------------------------------------------------------------------------------------------


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
    "not finite": (
        lambda: with_extra(**{"norm.bias": torch.full((24,), torch.nan)}),
        "holds values that are not finite",
    ),
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
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
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
        ([tmp_path / "pointer.pth", "--output_dir", release], "pointer.pth is a pointer of Git LFS"),
        ([tmp_path / "empty.safetensors", "--output_dir", release], "empty.safetensors is empty"),
    ):
        code, printed, errors = convert(*arguments)
        assert code == 1 and printed == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert expected in errors, errors
        assert sorted(os.listdir(tmp_path)) == before


# -- MoCo and SimCLR -----------------------------------------------------------------------------------------------


def torchvision_resnet(block="BasicBlock", depths=(1, 1, 1, 1), outputs=1000, width=1, seed=0):
    """With running statistics that are not those of a start. width: as in SimCLR's 2x and 4x."""
    torch.manual_seed(seed)
    block = getattr(torchvision.models.resnet, block)
    model = torchvision.models.ResNet(block, depths, num_classes=outputs)
    if width > 1:
        model.conv1, model.bn1 = torch.nn.Conv2d(3, 64 * width, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64 * width)
        model.inplanes = 64 * width
        for stage, depth in enumerate(depths):
            layer = model._make_layer(block, 64 * width * 2**stage, depth, stride=1 if stage == 0 else 2)
            setattr(model, f"layer{stage + 1}", layer)
        model.fc = torch.nn.Linear(512 * width * block.expansion, outputs)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return model.eval()


RESNET50 = dict(block="Bottleneck", depths=(3, 4, 6, 3))


class OriginalMoCo(torch.nn.Module):
    """The modules and buffers of moco/builder.py."""

    def __init__(self, mlp, keys=96, **resnet):
        super().__init__()
        self.encoder_q, self.encoder_k = (torchvision_resnet(outputs=128, seed=seed, **resnet) for seed in (1, 2))
        for encoder in (self.encoder_q, self.encoder_k) if mlp else ():
            width = encoder.fc.in_features
            encoder.fc = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), encoder.fc)
        self.register_buffer("queue", torch.nn.functional.normalize(torch.randn(128, keys), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([32]))

    def checkpoint(self):
        """As main_moco.py writes it, under distributed training."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)
        state_dict = torch.nn.DataParallel(self).state_dict()
        assert "module.encoder_q.bn1.num_batches_tracked" in state_dict
        return {"epoch": 200, "arch": "resnet50", "state_dict": state_dict, "optimizer": optimizer.state_dict()}


def stages(network, images):
    """After the stem's pooling, after each layer, and pooled."""
    found = [network.maxpool(network.relu(network.bn1(network.conv1(images))))]
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        found.append(layer(found[-1]))
    return [*found, network.avgpool(found[-1])]


def bare(network, but="fc."):
    return {key: value for key, value in network.state_dict().items() if not key.startswith(but)}


EQUAL_STAGES = """
import sys, torch
from transformers import AutoImageProcessor, AutoModel
images, expected = torch.load(sys.argv[1])
for folder, stages in expected.items():
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert type(model).__module__ == "transformers.models.resnet.modeling_resnet" and model.dtype == torch.float32
    output = model(images, output_hidden_states=True)
    for found, stage in zip([*output.hidden_states, output.pooler_output], stages, strict=True):
        torch.testing.assert_close(found, stage, rtol=1e-5, atol=1e-5, msg=lambda text: folder + text)
    assert AutoImageProcessor.from_pretrained(folder).do_normalize is ("moco" in folder)
"""


@torch.no_grad()
def test_resnets_give_the_originals_features_at_every_stage(tmp_path, convert):
    small = OriginalMoCo(mlp=True, depths=(2, 2, 2, 2))
    large = OriginalMoCo(mlp=False, **RESNET50)
    simclr, wide = torchvision_resnet("Bottleneck"), torchvision_resnet("Bottleneck", width=2)
    prefixed = {f"encoder_q.{key}": value for key, value in small.encoder_q.state_dict().items()}
    without_counters = {k: v for k, v in bare(small.encoder_q).items() if not k.endswith("num_batches_tracked")}
    expected, images = {}, torch.randn(2, 3, 64, 64)
    for name, network, content, is_whole, note in (
        ("moco_v2", small.encoder_q, small.checkpoint(), True, "taken as 0.2; else give --temperature"),
        ("moco_v1", large.encoder_q, large.checkpoint(), True, "taken as 0.07; else"),
        ("moco_query", small.encoder_q, {"state_dict": prefixed}, False, "holds no key encoder"),
        ("moco_plain", small.encoder_q, without_counters, False, "holds no key encoder"),
        ("simclr_1x", simclr, {"state_dict": simclr.state_dict()}, False, "the layer fc, a classifier, is left out"),
        ("simclr_2x", wide, {f"module.{k}": v for k, v in bare(wide).items()}, False, "holds the encoder alone"),
    ):
        file, folder = tmp_path / f"{name}.pth.tar", tmp_path / name
        torch.save(content, file, _use_new_zipfile_serialization=name != "moco_v1")  # the official files are that old
        code, printed, errors = convert(file, "--output_dir", folder, kind=name.split("_")[0])
        assert code == 0 and errors == "" and note in printed and file.name in printed, errors
        assert (folder / "pretraining").exists() is is_whole
        expected[str(folder)] = stages(network, images)
    torch.save((images, expected), tmp_path / "expected.pt")
    run_plain(EQUAL_STAGES, tmp_path / "expected.pt")

    for name, words in {
        "moco_v1": ["ResNet-50", "license: other", "CC-BY-NC 4.0", "MIT", "1 linear, 128 units", "96 keys", "(0.07)"],
        "moco_v2": ["ResNet-18", "2 linear, 512 and 128 units", "(0.2)", "facebookresearch/moco", "1911.05722"],
        "moco_plain": ["there is no `pretraining/`"],
        "simclr_2x": ["license: apache-2.0", "2002.05709", "without normalisation", "(0, 1)", "stem of 128 channels"],
    }.items():
        card = (tmp_path / name / "README.md").read_text()
        assert not [word for word in (*words, f"`{name}.pth.tar`", f"- {name.split('_')[0]}") if word not in card], (
            card
        )
        assert str(tmp_path) not in card and "{" not in card and "\n\n\n" not in card


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_of_torchvision_is_recognised(depth):
    with torch.device("meta"):  # sizes without memory
        weights = bare(getattr(torchvision.models, f"resnet{depth}")())
        config = resnet_config(weights, "file")
        parameters = resnet_parameters(ResNetModel(config))
    assert resnet_name(config) == f"ResNet-{depth}" and parameters.keys() == weights.keys()
    assert all(parameters[key][0].shape == weights[key].shape for key in weights)


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_pretraining_moco_gives_the_originals_logits(tmp_path, convert, version):
    original = OriginalMoCo(mlp=version == 2)
    torch.save(original.checkpoint(), tmp_path / "moco.pth.tar")
    flags = ["--temperature", 0.1] if version == 2 else []
    code, _, errors = convert(tmp_path / "moco.pth.tar", "--output_dir", tmp_path / "release", *flags, kind="moco")
    assert code == 0, errors
    model = load(AutoModelForPreTraining, tmp_path / "release", subfolder="pretraining")
    assert type(model) is hf_ssl.MoCoForPreTraining and model.config.projector_layers == version
    assert torch.equal(model.queue, original.queue.T) and model.queue.is_contiguous()
    assert model.queue_position.shape == () and model.queue_position == 32
    assert model.key_backbone.embedder.embedder.normalization.num_batches_tracked == 7

    views = torch.randn(2, 3, 3, 64, 64)
    features = stages(original.encoder_q, views[0])[-1].flatten(1)
    torch.testing.assert_close(model.embed(views[0]), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.projector(features), original.encoder_q.fc(features), rtol=1e-5, atol=1e-5)
    query, key = original.encoder_q(views[0]), original.encoder_k(views[1])
    query, key = (projected / projected.norm(dim=1, keepdim=True) for projected in (query, key))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ original.queue], dim=1)
    logits /= 0.07 if version == 1 else 0.1
    output = model(*views)
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, (logits.exp().sum(1).log() - logits[:, 0]).mean(), rtol=1e-5, atol=1e-5)


@functools.cache
def moco_weights():
    return OriginalMoCo(mlp=True).checkpoint()["state_dict"]


def changed_moco(missing=(), **changes):
    weights = {key: value for key, value in moco_weights().items() if key not in missing}
    return {"state_dict": weights | {f"module.{key.replace('__', '.')}": value for key, value in changes.items()}}


BAD_RESNET = {
    "an MAE": (
        "moco",
        lambda: {"model": original_weights()},
        "holds no ResNet under torchvision's names, but blocks.",
    ),
    "missing": ("moco", lambda: changed_moco(["module.encoder_k.bn1.bias"]), "lacks the keys encoder_k.bn1.bias:"),
    "no layer": ("moco", lambda: changed_moco(["module.encoder_q.layer4.0.conv2.weight"]), "layer4.0.conv2.weight."),
    "no head": (
        "moco",
        lambda: changed_moco(["module.encoder_q.fc.2.weight"]),
        "lacks the key encoder_q.fc.2.weight.",
    ),
    "no pointer": ("moco", lambda: changed_moco(["module.queue_ptr"]), "lacks the keys queue_ptr:"),
    "unexpected": ("moco", lambda: changed_moco(extra=torch.ones(1)), "has the unexpected keys extra:"),
    "other shape": (
        "moco",
        lambda: changed_moco(encoder_q__bn1__bias=torch.ones(9)),
        "encoder_q.bn1.bias has shape (9,), expected (64,)",
    ),
    "flat queue": ("moco", lambda: changed_moco(queue=torch.ones(128)), "queue has shape (128,), expected 2 dim"),
    "narrow queue": ("moco", lambda: changed_moco(queue=torch.ones(64, 8)), "(64, 8), expected (128, 8)"),
    "classifier": (
        "moco",
        lambda: {"state_dict": torch.nn.DataParallel(torchvision_resnet()).state_dict(), "best_acc1": torch.ones(1)},
        "is a classifier (its fc.weight has shape (1000, 512))",
    ),
    "small stem": ("moco", lambda: {"conv1.weight": torch.ones(64, 3, 3, 3)}, "conv1 is 3 x 3, expected 7 x 7"),
    "wide_resnet50_2": (
        "simclr",
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=128
        ).state_dict(),
        "bottlenecks of 128 channels in blocks of 256, expected a quarter",
    ),
    "MoCo as SimCLR": ("simclr", lambda: changed_moco(), "convert it as `moco`"),
    "not under torchvision's names": (
        "simclr",
        lambda: {"state_dict": {"net.0.weight": torch.ones(1)}},
        "net.0.weight",
    ),
    "text": ("simclr", lambda: {"state_dict": "resnet50"}, "holds no weights"),
}


@pytest.mark.parametrize("case", BAD_RESNET)
def test_a_bad_resnet_is_one_line(tmp_path, convert, case):
    kind, content, expected = BAD_RESNET[case]
    torch.save(content(), tmp_path / "bad.pth")
    code, printed, errors = convert(tmp_path / "bad.pth", "--output_dir", tmp_path / "release", kind=kind)
    assert code == 1 and printed == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert expected in errors and "bad.pth" in errors, errors
    assert os.listdir(tmp_path) == ["bad.pth"]


def test_a_bad_temperature_is_one_line(tmp_path, convert):
    torch.save(changed_moco(), tmp_path / "moco.pth")
    arguments = [tmp_path / "moco.pth", "--output_dir", tmp_path / "release", "--temperature", -1]
    code, printed, errors = convert(*arguments, kind="moco")
    assert code == 1 and errors.count("\n") == 1 and "temperature must be positive, found -1.0" in errors, errors


# -- CPC for audio -------------------------------------------------------------------------------------------------


class OriginalCPC(torch.nn.Module):
    """cpc/model.py of CPC_audio: convolutions, the channels of a frame normalised by their unbiased variance, an LSTM."""

    def __init__(self):
        super().__init__()
        self.gEncoder, self.gAR = torch.nn.Module(), torch.nn.Module()
        for i, shape in enumerate([(1, 8, 10, 5, 3), (8, 8, 8, 4, 2), *[(8, 8, 4, 2, 1)] * 3]):
            norm = torch.nn.Module()
            norm.weight, norm.bias = (torch.nn.Parameter(torch.randn(1, 8, 1)) for _ in range(2))
            self.gEncoder.add_module(f"conv{i}", torch.nn.Conv1d(*shape))
            self.gEncoder.add_module(f"batchNorm{i}", norm)
        self.gAR.baseNet = torch.nn.LSTM(8, 6, 2, batch_first=True)

    def forward(self, x):
        for i in range(5):
            x, norm = getattr(self.gEncoder, f"conv{i}")(x), getattr(self.gEncoder, f"batchNorm{i}")
            x = (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5)
            x = (x * norm.weight + norm.bias).relu()
        z = x.transpose(1, 2)
        return z, self.gAR.baseNet(z)[0]


@torch.no_grad()
def test_cpc_audio_gives_the_originals_features_and_loss(tmp_path, convert):
    """The authors' own classes were run on such weights too: contexts equal to 1e-6, losses to 1e-6."""
    torch.manual_seed(0)
    original = OriginalCPC()
    heads = [torch.randn(8, 6) for _ in range(3)]
    criterion = {f"wPrediction.predictors.{k}.weight": w for k, w in enumerate(heads)}
    torch.save(
        {"gEncoder": original.state_dict(), "cpcCriterion": criterion, "best": None}, tmp_path / "checkpoint_9.pt"
    )
    torch.save({"config": {"arMode": "LSTM"}, "weights": original.state_dict()}, tmp_path / "hub.pt")
    wave = 0.1 * torch.randn(2, 4000)
    z, c = original(wave[:, None])
    for file, note in (("checkpoint_9.pt", ""), ("hub.pt", "no linear predictors")):
        folder = tmp_path / file.removesuffix(".pt")
        code, printed, errors = convert(tmp_path / file, "--output_dir", folder, kind="cpc_audio")
        assert code == 0 and note in printed, errors
        output = load(AutoModel, folder)(wave)
        torch.testing.assert_close(output.last_hidden_state, c, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.extract_features, z, rtol=0, atol=1e-5)
        assert not AutoFeatureExtractor.from_pretrained(folder).do_normalize
    assert not (tmp_path / "hub" / "pretraining").exists()

    negatives = torch.stack([25 + torch.arange(25), torch.arange(25)])  # all frames of the other
    losses = []
    for k, head in enumerate(heads, 1):
        candidates = torch.cat([z[:, k : k + 22, None], z.flip(0)[:, None].expand(2, 22, 25, 8)], 2)
        scores = ((c[:, :22] @ head.T)[:, :, None] * candidates).mean(3)  # (2, 22, 1 + 25)
        losses.append((scores.logsumexp(2) - scores[..., 0]).mean())
    model = load(AutoModelForPreTraining, tmp_path / "checkpoint_9", subfolder="pretraining")
    torch.testing.assert_close(model(wave, negatives=negatives).loss, torch.stack(losses).mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "key, value, error",
    [
        ("gEncoder.batchNorm0.running_mean", torch.zeros(8), "another norm than over channels"),
        ("gAR.baseNet.weight_hh_l0", torch.zeros(12, 6), "neither a GRU's nor an LSTM's"),
        ("gEncoder.conv5.weight", torch.zeros(1), "unexpected keys gEncoder.conv5.weight"),
    ],
)
def test_a_bad_cpc_file_is_one_line(tmp_path, convert, key, value, error):
    torch.save({"weights": OriginalCPC().state_dict() | {key: value}}, tmp_path / "bad.pt")
    code, _, errors = convert(tmp_path / "bad.pt", "--output_dir", tmp_path / "out", kind="cpc_audio")
    assert code == 1 and error in errors and errors.count("\n") == 1
