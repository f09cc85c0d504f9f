"""What is computed another way on a device than on a CPU: losses in chunks, and the views, which a CPU makes in turns."""

import pytest
import torch
import torch.nn.functional as F
from test_gpu_methods import nothing_waits

from hf_ssl.data import VIEWS, RandomResizedCropAndFlip, RandomSquareCrop, Views
from hf_ssl.methods._contrastive import CHUNK, SHARPEST, queue_cross_entropy

NORMALIZE = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MADE = {name: Views(96, *NORMALIZE, recipes) for name, recipes in VIEWS.items()}
MADE |= {
    "with local crops": Views(96, *NORMALIZE, VIEWS["simclr"], local_size=48, local_recipes=VIEWS["byol"]),
    "mae": RandomResizedCropAndFlip(96, *NORMALIZE),
    "clip": RandomSquareCrop(96, *NORMALIZE, scale=(0.5, 1.0)),
}


@pytest.mark.parametrize("temperature", [0.2, SHARPEST / 2], ids=["in chunks", "all logits"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_queue_loss_and_gradient_are_the_cpus(device, dtype, tolerance, temperature):
    queries, keys, queue = (F.normalize(torch.randn(rows, 128), dim=1) for rows in (64, 64, 4 * CHUNK + 7))

    def loss_and_gradient(place, dtype):
        own, *others = (x.to(place) for x in (queries, keys, queue))
        own.requires_grad_()
        with torch.autocast(place.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            with nothing_waits(place):
                loss = queue_cross_entropy(own, *others, temperature)
                loss.backward()
        return loss.detach().cpu(), own.grad.cpu()

    loss, gradient = loss_and_gradient(device, dtype)
    expected, wanted = loss_and_gradient(torch.device("cpu"), torch.float32)
    assert (loss - expected).abs() <= tolerance * expected.abs()
    assert (gradient - wanted).norm() <= tolerance * wanted.norm()


def decoded(view, count=32, height=120, width=140):
    """What the view takes of one batch: smooth images, their seeds and crops."""
    images = F.interpolate(torch.rand(count, 3, height // 10, width // 10), (height, width), mode="bicubic")
    seeds = torch.arange(count) + 7
    boxes = view.boxes(seeds, torch.full((count,), height), torch.full((count,), width))
    boxes = boxes.split([len(crops) for crops in view.crops.values()], dim=1)
    batch = {"images": images.clamp(0, 1).mul(255).byte()[:, None], "sample_seeds": seeds}
    return batch | {f"{prefix}boxes": own for prefix, own in zip(view.crops, boxes, strict=True)}


def moved(batch, device):
    return {name: value.to(device) for name, value in batch.items()}


@pytest.mark.parametrize("name", MADE)
def test_views_are_the_cpus(device, name):
    """Of the same images and draws, to a thousandth of a pixel's standard deviation."""
    batch = decoded(MADE[name])
    expected, found = MADE[name](**batch), MADE[name](**moved(batch, device))
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value.cpu(), expected[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MADE)
def test_making_views_never_waits_for_the_device(device, name):
    if device.type == "cpu":
        pytest.skip("a CPU augments the chosen rows alone")
    batch = moved(decoded(MADE[name], count=8), device)
    MADE[name](**batch)  # the constants are moved once
    with nothing_waits(device):
        MADE[name](**batch)
