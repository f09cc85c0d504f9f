"""What is measured of parts: the maps of each stage of an image encoder, patches of images, and the task of a method."""

import json
import math
from dataclasses import replace

import datasets
import pytest
import torch
from PIL import Image
from processes import launch
from test_evaluation import VIT, noisy_images, saved
from transformers import (
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from hf_ssl import (
    ExemplarConfig,
    ExemplarForPreTraining,
    MAEConfig,
    MAEForPreTraining,
    RotationConfig,
    RotationForPreTraining,
    SimCLRConfig,
    SimCLRForPreTraining,
)
from hf_ssl.data.images import image_processor
from hf_ssl.errors import InputError
from hf_ssl.evaluation import (
    ImageEncoder,
    checksum,
    evaluate_images,
    knn_predict,
    linear_probe,
    load_encoder,
    results_table,
)
from hf_ssl.evaluation.encoders.stages import _as_map, pooled_shapes, stage_encoder, stage_maps
from hf_ssl.evaluation.protocols import layer_probe
from hf_ssl.evaluation.protocols import linear_probe as probes
from hf_ssl.evaluation.protocols.patch_neighbours import (
    NEAREST,
    PER_IMAGE,
    QUERIES,
    choose_queries,
    cut_patches,
    gradient_energy,
    patch_neighbours,
)
from hf_ssl.evaluation.protocols.pretext import TaskEncoder
from hf_ssl.evaluation.results import scores

RESNET = {
    "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "downsample_in_first_stage": True,
}  # fmt: skip
SIDE = 12  # of the release's images: its maps are 12, 6 and 3 pixels wide
SWIN = {"image_size": 28, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7}


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    monkeypatch.setattr(probes, "MIN_STEPS", 20)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """What a run of SimCLR leaves, with the weights that the method draws from seed 3."""
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(3)
    model = SimCLRForPreTraining(SimCLRConfig(backbone_config={"model_type": "ssl_resnet", **RESNET}))
    model.export_encoder().save_pretrained(folder)
    model.save_pretrained(folder / "pretraining")
    image_processor(SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = saved(ViTModel(ViTConfig(**VIT)), tmp_path_factory.mktemp("vit"))
    image_processor(28).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", 90), ("test", 45)):
        noisy_images(rows, seed=len(split)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


# stages


def test_maps_are_pooled_to_about_one_width():
    resnet50 = [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    # 9216, 9216, 8192, 9216 and 8192 numbers
    assert [shape[1] for shape in pooled_shapes(resnet50)] == [12, 6, 4, 3, 2]
    assert pooled_shapes([(768, 14, 14)] * 13) == [(768, 3, 3)] * 13
    # small maps: what the smallest has; a closer grid may be a little larger, not much
    assert pooled_shapes([(16, 28, 28), (32, 14, 14), (64, 7, 7), (128, 4, 4)])[2:] == [(64, 6, 6), (128, 4, 4)]
    assert pooled_shapes([(100, 9, 5), (600, 1, 1)], width=300) == [(100, 1, 1), (600, 1, 1)]
    # a map that is not square is averaged to a square all the same
    assert pooled_shapes([(24, 20, 30), (96, 5, 7)]) == [(24, 12, 12), (96, 5, 5)]


def slow_mean(grid, sides):
    """(C, H, W) averaged to (C, *sides), a window at a time."""
    windows = [
        [(math.floor(i * size / side), math.ceil((i + 1) * size / side)) for i in range(side)]
        for size, side in zip(grid.shape[1:], sides, strict=True)
    ]
    rows = [torch.stack([grid[:, a:b, c:d].mean((1, 2)) for c, d in windows[1]], 1) for a, b in windows[0]]
    return torch.stack(rows, 1)


def resnet_maps(model, pixels):
    maps = [model.embedder(pixels)]
    for stage in model.encoder.stages:
        maps.append(stage(maps[-1]))
    return maps


def vit_maps(model, pixels):
    hidden = [model.embeddings(pixels)]
    for layer in model.layers:
        hidden.append(layer(hidden[-1]))
    side = model.config.image_size // model.config.patch_size
    return [
        torch.stack([tokens[:, 1 + row * side : 1 + (row + 1) * side] for row in range(side)], 1).movedim(3, 1)
        for tokens in hidden
    ]


def swin_maps(model, pixels):
    return model(pixels, output_hidden_states=True).reshaped_hidden_states


@pytest.mark.parametrize("family", ["ssl_resnet", "resnet", "vit", "swin"])
def test_features_of_each_stage_are_those_of_its_layers_run_by_hand(family, release, vit, tmp_path):
    made = {
        "ssl_resnet": lambda: release,
        "resnet": lambda: saved(ResNetModel(ResNetConfig(**RESNET)), tmp_path),
        "vit": lambda: vit,
        "swin": lambda: saved(SwinModel(SwinConfig(**SWIN)), tmp_path),
    }
    encoder = load_encoder(made[family]())
    by_hand = {"vit": vit_maps, "swin": swin_maps}.get(family, resnet_maps)
    staged = stage_encoder(encoder)
    pixels = encoder.preprocess([torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8) for _ in range(3)])
    with torch.no_grad():
        features, maps = staged(pixels), by_hand(encoder.model, pixels)
    assert len(maps) == len(staged.shapes) == 3 and features.shape == (3, sum(staged.widths))
    for part, grids, shape in zip(features.split(staged.widths, 1), maps, staged.shapes, strict=True):
        expected = torch.stack([slow_mean(grid, shape[1:]) for grid in grids])
        torch.testing.assert_close(part, expected.flatten(1), atol=1e-5, rtol=1e-4)
        assert part.std() > 0


def test_classes_registers_and_detections_are_no_patches():
    wide, pixels = {**VIT, "image_size": [28, 42]}, torch.randn(2, 3, 28, 42)
    models = [
        DeiTModel(DeiTConfig(**wide)),  # two tokens before
        YolosModel(YolosConfig(**wide, num_detection_tokens=5)),  # one before, five behind
    ]
    square = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, num_register_tokens=4))
    for model, seen, grid in [*((each, pixels, (4, 6)) for each in models), (square, pixels[..., :28], (4, 4))]:
        model.eval()
        encoder = ImageEncoder(model, image_processor(28), "pooler_output", 3, "any")
        with torch.no_grad():
            found = stage_maps(encoder, seen)
            patches = (
                model.embeddings.patch_embeddings(seen)
                + model.embeddings.position_embeddings[
                    :, (own := 2 if model is models[0] else 1) : own + grid[0] * grid[1]
                ]
            )  # (N, L, C)
        assert [each.shape for each in found] == [(2, 32, *grid)] * 3
        torch.testing.assert_close(found[0].flatten(2).transpose(1, 2), patches)


def test_of_a_dual_encoder_the_stages_are_those_of_its_image_tower():
    tower = {key: VIT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    text = {**tower, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**tower, "image_size": 28, "patch_size": 7}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        found = stage_maps(ImageEncoder(model, image_processor(28), "image features", 3, "any"), pixels)
        hidden = model.vision_model(pixels, output_hidden_states=True).hidden_states
    assert len(found) == len(hidden) == 3
    for grid, tokens in zip(found, hidden, strict=True):
        assert torch.equal(grid[:, :, 1, 2], tokens[:, 1 + 4 + 2])


def test_maps_whose_channels_come_last_and_merged_tokens_are_laid_out():
    config = ViTConfig(patch_size=4)
    last = torch.arange(2 * 6 * 6 * 5.0).view(2, 6, 6, 5)
    assert torch.equal(_as_map(last, 48, 48, config), last.permute(0, 3, 1, 2))
    first = torch.randn(2, 6, 6, 6)
    assert torch.equal(_as_map(first, 48, 48, config), first)
    wide = torch.randn(2, 4, 6, 5)  # of an image of 32 x 48, and of one of 48 x 40
    assert _as_map(wide, 32, 48, config).shape == (2, 5, 4, 6) and _as_map(wide, 48, 40, config) is wide
    tokens = torch.arange(1 + 6.0).view(1, 7, 1)  # 2 x 3 after merging, behind a class token
    assert _as_map(tokens, 32, 48, config)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match=r"shape \(2, 9\)"):
        _as_map(torch.ones(2, 9), 32, 32, config)


def test_layer_probe_writes_each_stage_beside_random_weights(release, dataset_folder, tmp_path):
    protocols = ["knn", "layer_probe"]
    results = evaluate_images(release, str(dataset_folder), protocols=protocols, seed=3, output_dir=tmp_path)
    found = results["results"]
    stages = [f"{name}_stage{stage}" for stage in range(3) for name in ("knn", "linear_probe")]
    assert set(found["pretrained"]) == {"knn", *stages} and set(found["raw_pixels"]) == {"knn"}
    assert found["random_initialisation"] == found["pretrained"]  # the release is that draw
    assert results["pictures"] == ["images/layers.png"]
    assert (tmp_path / "images/layers.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "eval_results.json").read_text()) == json.loads(json.dumps(results))
    assert results["dataset"]["train_rows"] == 90 and results["dataset"]["classes"] == 3

    # of a stage, from features that no encoder of stages has made
    encoder, parts = load_encoder(release), []
    for split in ("train", "test"):
        rows = datasets.load_dataset(str(dataset_folder), split=split).with_format("torch")
        pixels = encoder.preprocess(list(rows["image"]))
        with torch.no_grad():
            grids = resnet_maps(encoder.model, pixels)[1]
        parts += [
            torch.stack([slow_mean(grid, (4, 4)) for grid in grids]).flatten(1),
            torch.as_tensor(rows["label"][:]),
        ]
    assert results["metrics"]["knn_stage1"]["title"] == "stage 1 (8 x 4 x 4)"
    knn = (knn_predict(*parts[:3]) == parts[3]).float().mean().item()
    assert found["pretrained"]["knn_stage1"] == round(100 * knn, 2)
    probe = linear_probe(*parts, 3, seed=3, **layer_probe.PROBE).accuracy
    assert found["pretrained"]["linear_probe_stage1"] == pytest.approx(
        100 * probe, abs=2.3
    )  # a row, as sums are ordered

    tables = results_table(results).split("\n\n")
    assert tables[0].startswith("| | knn |\n") and "| Raw pixels | " in tables[0]
    assert tables[1] == "K-nearest-neighbour accuracy by stage:" and tables[3] == "Linear probe accuracy by stage:"
    assert tables[2].startswith("| | stage 0 (4 x 6 x 6) | stage 1 (8 x 4 x 4) | stage 2 (16 x 3 x 3) |\n")
    assert "Raw pixels" not in tables[2] and len(tables) == 5
    assert set(scores(results["metrics"])) == {"knn"}  # stages of one network are not those of another


def both(release, data):
    probes.MIN_STEPS = 20  # in processes of their own too
    results = evaluate_images(release, data, protocols=["layer_probe"], baselines=False)
    patches, _ = cut_patches([image.permute(2, 0, 1) for image in images(12)], 0)
    return results and results["results"], patch_neighbours(load_encoder(release), patches, [0, 9, 21])


def images(count, seed=0):
    """`count` (H, W, C) uint8 of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (20 + n % 3, 24, 3), generator=generator, dtype=torch.uint8) for n in range(count)]


def test_two_processes_give_the_numbers_of_one(release, dataset_folder):
    (two, near), other = launch(both, str(release), str(dataset_folder), processes=2)
    one, near_of_one = both(str(release), str(dataset_folder))
    assert two == one and near == near_of_one and other == (None, [])
    assert len(one["pretrained"]) == 6 and [len(found) for found in near] == [NEAREST] * 3


class Silent(torch.nn.Linear):
    """An encoder that tells its features alone."""

    config = ViTConfig(**VIT)

    def forward(self, pixel_values, **kwargs):
        return {"pooler_output": super().forward(pixel_values.flatten(1))}


def test_what_has_no_stages_and_other_bad_requests_are_said_in_one_sentence(release, dataset_folder, tmp_path):
    silent = replace(load_encoder(release), model=Silent(3 * SIDE**2, 8), name="org/silent")
    with pytest.raises(
        InputError, match=r"^'org/silent' does not tell the maps of its stages, [^.]*'vit' gives no hid"
    ):
        stage_encoder(silent)
    with pytest.raises(InputError, match="'patch_neighbours' draws a picture: give output_dir"):
        evaluate_images(release, protocols=["patch_neighbours"])
    with pytest.raises(InputError, match="is shown by patch_neighbours alone: name that among the protocols"):
        evaluate_images(release, protocols=["knn"], compare_with=release)
    how = {"protocols": ["patch_neighbours"], "output_dir": tmp_path / "out"}
    with pytest.raises(InputError, match="nowhere' is not a folder that exists"):
        evaluate_images(release, **how, compare_with=tmp_path / "nowhere")
    grey = saved(ViTModel(ViTConfig(**VIT, num_channels=1)), tmp_path / "grey")
    with pytest.raises(InputError, match="reads images of 1 channels: expected 3"):
        evaluate_images(release, **how, compare_with=grey)
    with pytest.raises(InputError, match="needs at least 2 images that can be decoded, found 1"):
        evaluate_images(release, str(dataset_folder), **how, max_samples=1)


# patches


def test_patches_are_cut_where_it_says_and_queries_are_textured_and_spread():
    pictures = [image.permute(2, 0, 1) for image in images(60)]
    for picture in pictures:
        picture[:, :, :12] = 128  # half of each is blank
    patches, boxes = cut_patches(pictures, 1)
    assert len(patches) == 60 * PER_IMAGE and len(set(boxes)) > 60
    for number, (patch, (top, left, side)) in enumerate(zip(patches, boxes, strict=True)):
        picture = pictures[number // PER_IMAGE]
        assert side == round(0.4 * picture.shape[1]) and patch.shape == (3, side, side)
        assert torch.equal(patch, picture[:, top : top + side, left : left + side])
    queries = choose_queries(patches, 1)
    assert len(queries) == QUERIES and queries == choose_queries(patches, 1) != choose_queries(patches, 2)
    assert [query // PER_IMAGE // 10 for query in queries] == list(range(QUERIES))  # one of each ten images
    middle = torch.tensor([gradient_energy(patch) for patch in patches]).median()
    assert all(gradient_energy(patches[query]) > middle for query in queries)


def test_gradient_energy_is_that_of_neighbouring_pixels():
    patch = torch.tensor([[[0, 3], [0, 7]]], dtype=torch.uint8)
    assert gradient_energy(patch) == (0 + 16) / 2 + (9 + 49) / 2
    assert gradient_energy(torch.ones(3, 1, 1)) == 0.0


def test_neighbours_are_the_most_alike_of_other_images_one_of_each(vit):
    encoder = load_encoder(vit)
    patches, _ = cut_patches([image.permute(2, 0, 1) for image in images(9)], 0)
    before = checksum(encoder.model)
    found = patch_neighbours(encoder, patches, [2, 30])
    assert checksum(encoder.model) == before
    with torch.no_grad():
        features = [encoder(encoder.preprocess([patch]))[0] for patch in patches]
    for query, near in zip([2, 30], found, strict=True):
        own = features[query]
        cosine = [float(own @ each / own.norm() / each.norm()) for each in features]
        best = {}  # of each other image
        for number in range(len(patches)):
            image = number // PER_IMAGE
            if image != query // PER_IMAGE and cosine[number] > cosine[best.get(image, number)] - (image not in best):
                best[image] = number
        assert near == sorted(best.values(), key=lambda number: -cosine[number])[:NEAREST]


def test_patch_neighbours_draws_encoders_side_by_side_without_labels(release, vit, tmp_path):
    widths = {}
    for kind, other in (("grey", None), ("colour", vit)):
        pixels = [image[..., 0] if kind == "grey" else image for image in images(7)]
        rows = datasets.Dataset.from_dict({"photo": [Image.fromarray(each.numpy()) for each in pixels]})
        rows.to_parquet(tmp_path / kind / "test.parquet")
        out = tmp_path / "out" / kind
        how = {"protocols": ["patch_neighbours"], "output_dir": out, "compare_with": other}
        results = evaluate_images(release, str(tmp_path / kind), **how)
        assert results["pictures"] == ["images/patch_neighbours.png"] and results["results"] == {}
        assert results["settings"]["patch_neighbours"]["similarity"] == "cosine of the features"
        with Image.open(out / "images/patch_neighbours.png") as picture:
            widths[kind] = picture.width
    assert widths["colour"] > 1.3 * widths["grey"]  # three encoders beside two


# the task


def left_by(folder, model, channels=3):
    model.export_encoder().save_pretrained(folder)
    model.save_pretrained(folder / "pretraining")
    image_processor(SIDE, channels).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_the_task_is_measured_on_test_images(channels, dataset_folder, tmp_path):
    """Loss and accuracy of all turns of all test images, one at a time."""
    torch.manual_seed(0)
    backbone = {"model_type": "ssl_resnet", **RESNET, "num_channels": channels}
    model = RotationForPreTraining(RotationConfig(backbone_config=backbone)).eval()
    folder = left_by(tmp_path / "release", model, channels)
    results = evaluate_images(folder, str(dataset_folder), protocols=["pretext"], output_dir=tmp_path / "out")
    test = datasets.load_dataset(
        "parquet", data_files=str(dataset_folder / "test-00000-of-00001.parquet"), split="train"
    )
    processor, losses, right = image_processor(SIDE, channels), [], []
    for row in test:
        picture = row["image"].convert("L" if channels == 1 else "RGB")
        pixels = processor(picture, return_tensors="pt").pixel_values[:, :channels]
        for label in range(4):
            with torch.no_grad():
                logits = model.head(model.embed(torch.rot90(pixels, label, (2, 3))))[0].double()
            losses.append(float(logits.logsumexp(0) - logits[label]))
            right.append(int(logits.argmax()) == label)
    found = results["results"]["pretrained"]
    assert found["pretext_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert found["pretext_accuracy"] == pytest.approx(100 * sum(right) / len(right), abs=1.0)
    assert found["pretext_chance"] == 25 and results["results"]["random_initialisation"]["pretext_chance"] == 25
    assert "The task on test images:\n\n| | loss | accuracy | chance |" in results_table(results)
    again = evaluate_images(folder, str(dataset_folder), protocols=["pretext"], baselines=False)
    assert again["results"] == {"pretrained": found}


def test_draws_of_the_task_do_not_depend_on_the_batch(dataset_folder, tmp_path, monkeypatch):
    """Of MAE: which patches are hidden."""
    torch.manual_seed(0)
    sizes = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 8}
    vit = {"model_type": "vit", **VIT, "image_size": SIDE, "patch_size": 4}
    folder = left_by(tmp_path, MAEForPreTraining(MAEConfig(backbone_config=vit, **sizes)))
    found = {}
    for size, seed in ((7, 0), (128, 0), (128, 1)):
        monkeypatch.setattr(TaskEncoder, "batch_size", size)
        results = evaluate_images(folder, str(dataset_folder), protocols=["pretext"], baselines=False, seed=seed)
        found[size, seed] = results["results"]["pretrained"]["pretext_loss"]
    assert found[7, 0] == pytest.approx(found[128, 0], abs=2e-4)
    assert found[128, 1] != pytest.approx(found[128, 0], abs=2e-4)


def exemplar_release(folder, loss):
    backbone = {"model_type": "ssl_resnet", **RESNET, "num_channels": 3}
    config = ExemplarConfig(backbone_config=backbone, num_samples=12, patch_size=8, head_hidden_size=12, loss=loss)
    return left_by(folder, ExemplarForPreTraining(config).eval())


def test_test_images_can_be_exemplars_of_triplets(dataset_folder, tmp_path):
    folder = exemplar_release(tmp_path, "triplet")
    found = evaluate_images(folder, str(dataset_folder), protocols=["pretext"], baselines=False)["results"]
    assert 0 < found["pretrained"]["pretext_chance"] < found["pretrained"]["pretext_accuracy"] <= 100


def test_tasks_that_want_more_than_new_images_are_refused_in_one_sentence(release, vit, tmp_path):
    with pytest.raises(InputError, match="pretext: the classes of '.*' are the rows it was trained on, which test"):
        evaluate_images(exemplar_release(tmp_path, "softmax"), protocols=["pretext"])
    with pytest.raises(
        InputError, match="compares pixel_values, pixel_values_2: expected a method that sees an image"
    ):
        evaluate_images(release, protocols=["pretext"])
    with pytest.raises(InputError, match="has no pretraining/config.json: pretext asks the whole model"):
        evaluate_images(vit, protocols=["pretext"])
