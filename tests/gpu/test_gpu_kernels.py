"""What is computed another way on a device than on a CPU: losses in chunks, and the views, which a CPU makes in turns."""

import pytest
import torch
import torch.nn.functional as F
from test_gpu_methods import nothing_waits

from hf_ssl.data import TWO_VIEWS, RandomResizedCropAndFlip, RandomSquareCrop, TwoViews
from hf_ssl.methods._contrastive import CHUNK, SHARPEST, queue_cross_entropy

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIEWS = {name: lambda name=name: TwoViews(96, MEAN, STD, **TWO_VIEWS[name]) for name in TWO_VIEWS}
VIEWS |= {
    "solarized": lambda: TwoViews(96, MEAN, STD, **TWO_VIEWS["simclr"], solarize_probability=0.5),
    "mae": lambda: RandomResizedCropAndFlip(96, MEAN, STD),
    "clip": lambda: RandomSquareCrop(96, MEAN, STD, scale=(0.5, 1.0)),
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


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_the_cpus(device, name):
    """Of the same images and draws, to a thousandth of a pixel's standard deviation."""
    view, count = VIEWS[name](), 32
    images = (
        F.interpolate(torch.rand(count, 3, 12, 14), (120, 140), mode="bicubic").clamp(0, 1).mul(255).byte()[:, None]
    )
    seeds = torch.arange(count) + 7
    boxes = view.boxes(seeds, torch.full((count,), 120), torch.full((count,), 140))
    expected = view(images, seeds, boxes)
    found = view(*(x.to(device) for x in (images, seeds, boxes)))
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value.cpu(), expected[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", VIEWS)
def test_making_views_never_waits_for_the_device(device, name):
    if device.type == "cpu":
        pytest.skip("a CPU augments the chosen rows alone")
    view, count = VIEWS[name](), 8
    seeds = torch.arange(count)
    images = torch.randint(256, (count, 1, 3, 120, 140), dtype=torch.uint8)
    arguments = [x.to(device) for x in (images, seeds, view.boxes(seeds, seeds * 0 + 120, seeds * 0 + 140))]
    view(*arguments)  # the constants are moved once
    with nothing_waits(device):
        view(*arguments)
