"""convert_checkpoint.py clip on files of OpenAI's and open_clip's key layouts: logits that open_clip computed, its tokenizer."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from test_convert import load
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, AutoTokenizer, CLIPTokenizer

from hf_ssl.hub.conversion.torchscript import read_torchscript

MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "o f</w>", "t h", "th e</w>", "p h", "ph o", "t o</w>", "pho to</w>"]
VOCABULARY = 2 * 256 + len(MERGES) + 2
WIDTH, TEXT_WIDTH, SIDE, PATCH, LENGTH, PROJECTION = 128, 64, 2, 8, 10, 24
LOGITS = {  # of open_clip 3.3.0: CLIP(24, CLIPVisionCfg(2, 128, image_size=16, patch_size=8),
    # CLIPTextCfg(context_length=10, vocab_size=525, width=64, heads=1, layers=2), quick_gelu=...) with `original_weights()`
    "gelu": [[1.653347, 1.697487, 1.740889], [2.204652, 2.424841, 3.198319]],
    "quick_gelu": [[1.639943, 1.693875, 1.750563], [2.214617, 2.442439, 3.216362]],
}


def blocks(stack, width, depth=2):
    shapes = {}
    for i in range(depth):
        block = f"{stack}.resblocks.{i}"
        shapes |= {f"{block}.{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
    return shapes


def original_weights():
    """Random, under the names of both authors' files."""
    shapes = {"positional_embedding": (LENGTH, TEXT_WIDTH), "text_projection": (TEXT_WIDTH, PROJECTION)}
    shapes |= {"visual.class_embedding": (WIDTH,), "visual.positional_embedding": (SIDE**2 + 1, WIDTH)}
    shapes |= {"visual.proj": (WIDTH, PROJECTION), "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH)}
    norms = {"visual.ln_pre": WIDTH, "visual.ln_post": WIDTH, "ln_final": TEXT_WIDTH}
    shapes |= {f"{norm}.{kind}": (width,) for norm, width in norms.items() for kind in ("weight", "bias")}
    shapes |= blocks("visual.transformer", WIDTH) | blocks("transformer", TEXT_WIDTH)
    shapes |= {"token_embedding.weight": (VOCABULARY, TEXT_WIDTH)}
    generator = torch.Generator().manual_seed(0)
    weights = {"logit_scale": torch.tensor(2.5)}
    for key in sorted(shapes):
        fan_in = shapes[key][-1] if len(shapes[key]) > 1 else 4
        is_norm = key.endswith("weight") and len(shapes[key]) == 1
        weights[key] = torch.randn(shapes[key], generator=generator) / fan_in**0.5 + is_norm
    return weights


def inputs():
    """Two images, three texts that end at different places."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    texts = torch.randint(0, VOCABULARY - 2, (3, LENGTH), generator=generator)
    texts[:, 0] = VOCABULARY - 2
    for row, end in enumerate((3, 6, LENGTH - 1)):
        texts[row, end] = VOCABULARY - 1
        texts[row, end + 1 :] = 0
    return pixels, texts


@torch.no_grad()
def logits(folder):
    model = load(AutoModel, folder)
    assert type(model).__name__ == "CLIPModel" and model.dtype == torch.float32
    pixels, texts = inputs()
    return model(pixel_values=pixels, input_ids=texts).logits_per_image


def module_tree(weights):
    """A module whose parameters have these names, for torch.jit."""
    root = nn.Module()
    for key, value in weights.items():
        *path, last = key.split(".")
        node = root
        for name in path:
            if name not in node._modules:
                node.add_module(name, nn.Module())
            node = node._modules[name]
        if value.is_floating_point():
            node.register_parameter(last, nn.Parameter(value))
        else:
            node.register_buffer(last, value)
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in each of the authors' formats."""
    folder, weights = tmp_path_factory.mktemp("files"), original_weights()
    numbers = {
        "input_resolution": torch.tensor(16),
        "context_length": torch.tensor(LENGTH),
        "vocab_size": torch.tensor(525),
    }
    torch.save(weights | numbers, folder / "openai.pt")
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 3, "name": "tiny", "state_dict": wrapped, "optimizer": {"step": 1}}, folder / "epoch_3.pt")
    torch.save(weights, folder / "vit_t_8-quickgelu-laion.pt")
    own_tower = {
        key if key.startswith(("visual", "logit")) else f"text.{key}": value for key, value in weights.items()
    }
    save_file(own_tower, folder / "custom.safetensors")
    torch.jit.save(torch.jit.script(module_tree(weights | numbers)), folder / "archive.pt")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, "left out</w>", ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "name, flags, activation",
    [
        ("openai.pt", (), "quick_gelu"),
        ("archive.pt", (), "quick_gelu"),
        ("vit_t_8-quickgelu-laion.pt", (), "quick_gelu"),
        ("epoch_3.pt", (), "gelu"),
        ("custom.safetensors", (), "gelu"),
        ("epoch_3.pt", ("--activation", "quick_gelu"), "quick_gelu"),
    ],
)
def test_logits_are_open_clips(files, tmp_path, convert, name, flags, activation):
    release = tmp_path / "release"
    code, printed, errors = convert(files / name, "--output_dir", release, *flags, kind="clip")
    assert code == 0 and errors == "" and "so the release has none: give --tokenizer_name" in printed, errors
    assert (f"taken as {activation}" in printed) is not bool(flags)
    torch.testing.assert_close(logits(release), torch.tensor(LOGITS[activation]), atol=1e-4, rtol=0)
    assert not torch.allclose(torch.tensor(LOGITS["gelu"]), torch.tensor(LOGITS["quick_gelu"]), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("activation", LOGITS)
def test_recorded_logits_are_those_of_an_installed_open_clip(activation):
    model = pytest.importorskip("open_clip.model", reason="the numbers above are recorded")
    vision = model.CLIPVisionCfg(layers=2, width=WIDTH, image_size=SIDE * PATCH, patch_size=PATCH)
    text = model.CLIPTextCfg(context_length=LENGTH, vocab_size=VOCABULARY, width=TEXT_WIDTH, heads=1, layers=2)
    clip = model.CLIP(PROJECTION, vision, text, quick_gelu=activation == "quick_gelu").eval()
    clip.load_state_dict(original_weights())
    images, texts, scale = clip(*inputs())
    torch.testing.assert_close(scale * images @ texts.T, torch.tensor(LOGITS[activation]), atol=1e-5, rtol=0)


def test_a_whole_release_has_processor_tokenizer_and_card(files, tmp_path, convert):
    flags = ["--vocabulary", files / "merges.txt", "--output_dir", tmp_path / "release"]
    code, printed, errors = convert(files / "openai.pt", *flags, kind="clip")
    assert code == 0 and errors == "" and "tokenizer" not in printed
    processor = AutoProcessor.from_pretrained(tmp_path / "release")
    tokens = processor.tokenizer(["Photo of the  CAT", "dot"], truncation=True)["input_ids"]
    pieces = [processor.tokenizer.convert_ids_to_tokens(row) for row in tokens]
    assert pieces[0] == ["<|startoftext|>", "photo</w>", "of</w>", "the</w>", "cat</w>", "<|endoftext|>"]
    assert pieces[1] == ["<|startoftext|>", "do", "t</w>", "<|endoftext|>"]
    # the first numbers are the bytes in the original's order
    assert tokens[1] == [VOCABULARY - 2, 512 + 2, 256 + ord("t") - ord("!"), VOCABULARY - 1]
    assert processor.tokenizer.model_max_length == LENGTH
    images = processor.image_processor
    assert images.size.shortest_edge == images.crop_size.height == 16 and images.resample == 3
    assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    card = (tmp_path / "release/README.md").read_text()
    for words in ("pipeline_tag: zero-shot-image-classification", "openai.pt", "quick_gelu", "2 heads", "of 8 px"):
        assert words in card
    assert str(files) not in card and "{{" not in card and "\n\n\n" not in card

    # the tokenizer of another release
    again = ["--tokenizer_name", tmp_path / "release", "--output_dir", tmp_path / "again"]
    assert convert(files / "epoch_3.pt", *again, kind="clip")[0] == 0
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "again")("photo").input_ids == processor.tokenizer("photo").input_ids
    )


def test_the_vocabulary_is_open_clips(tmp_path):
    reference = pytest.importorskip("open_clip.tokenizer", reason="comes with the extra [benchmark]")
    from hf_ssl.hub.conversion.clip import read_vocabulary

    texts = [
        "a photo of a cat.",
        "Dog's dinner, 12 o'clock: café",
        "!",
        "  Two   spaces &c. 日本",
        "pneumonoultramicroscopic",
    ]
    own = read_vocabulary(reference.default_bpe())(texts, padding="max_length", truncation=True, return_tensors="pt")
    expected = reference.SimpleTokenizer()(texts)  # pads by zeros
    assert torch.equal(own["input_ids"] * own["attention_mask"], expected)


def test_training_can_go_on(files, tmp_path, convert):
    assert convert(files / "openai.pt", "--output_dir", tmp_path / "release", kind="clip")[0] == 0
    whole = load(AutoModelForPreTraining, tmp_path / "release", subfolder="pretraining")
    pixels, texts = inputs()
    with torch.no_grad():
        output = whole(pixel_values=pixels, input_ids=texts[:2])
    torch.testing.assert_close(output.logits, torch.tensor(LOGITS["quick_gelu"])[:, :2], atol=1e-4, rtol=0)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_an_archive_runs_no_code(tmp_path, convert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", pickle.dumps(()))
        archive.writestr("evil/data.pkl", pickle.dumps(Evil()))
    code, _, errors = convert("evil.pt", "--output_dir", "release", kind="clip")
    assert code == 1 and errors.count("\n") == 1 and "evil.pt holds more than tensors" in errors and "mkdir" in errors
    assert os.listdir() == ["evil.pt"]


def test_tensors_of_an_archive_keep_type_and_strides(tmp_path):
    weights = {"a.0.weight": torch.randn(2, 3).half(), "a.1.b": torch.randn(4, 5).T, "c": torch.tensor(3)}
    torch.jit.save(torch.jit.script(module_tree(weights)), tmp_path / "archive.pt")
    found = read_torchscript(tmp_path / "archive.pt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) and found[key].dtype == weights[key].dtype for key in weights)


def changed(*without, **extra):
    weights = {key: value for key, value in original_weights().items() if key not in without}
    return weights | {key.replace("__", "."): value for key, value in extra.items()}


BAD = {
    "ResNet tower": (lambda: {"visual.layer1.0.conv1.weight": torch.ones(1)}, "holds no ViT of CLIP"),
    "SigLIP": (lambda: changed(logit_bias=torch.ones(1)), "has the unexpected keys logit_bias:"),
    "missing": (lambda: changed("visual.ln_pre.bias"), "lacks the keys visual.ln_pre.bias:"),
    "no text": (lambda: changed("text_projection"), "lacks the key text_projection"),
    "not square": (
        lambda: changed(visual__positional_embedding=torch.ones(4, WIDTH)),
        "3 patches of 8 x 8: expected squares",
    ),
    "other shape": (lambda: changed(ln_final__bias=torch.ones(3)), "ln_final.bias has shape (3,), expected (64,)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(tmp_path, convert, case):
    content, expected = BAD[case]
    torch.save(content(), tmp_path / "bad.pth")
    code, printed, errors = convert(tmp_path / "bad.pth", "--output_dir", tmp_path / "release", kind="clip")
    assert code == 1 and printed == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert expected in errors and "bad.pth" in errors and os.listdir(tmp_path) == ["bad.pth"]


def test_bad_flags_are_one_line(files, tmp_path, convert):
    CLIPTokenizer().save_pretrained(tmp_path / "other")
    (tmp_path / "short.txt").write_text("#version\na b\n")
    for flags, expected in (
        (
            ["--vision_num_attention_heads", 5],
            "must divide the vision tower's width 128: give --vision_num_attention_heads",
        ),
        (["--tokenizer_name", tmp_path / "other"], "expected 525, of which the last does"),
        (["--tokenizer_name", tmp_path / "none"], "is not a folder or Hub id of a tokenizer"),
        (["--vocabulary", tmp_path / "short.txt"], "does not give 525 entries"),
        (["--vocabulary", tmp_path / "none.gz"], "could not be read"),
    ):
        code, _, errors = convert(files / "openai.pt", "--output_dir", tmp_path / "release", *flags, kind="clip")
        assert code == 1 and errors.count("\n") == 1 and expected in errors, errors
    assert not (tmp_path / "release").exists()
