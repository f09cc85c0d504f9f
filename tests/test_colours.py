"""Colours in other coordinates and as classes, maps of stages read between their cells, and data that must have colours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods.test_colorization import slow_lab

from hf_ssl.cli.images import check_colours
from hf_ssl.data import ImageDecoder, RandomResizedCropAndFlip, image_rows, load_split
from hf_ssl.errors import InputError
from hf_ssl.methods._colour_bins import annealed_mean, gamut_bins, rebalancing_weights, share_out
from hf_ssl.methods._colour_spaces import lab_to_rgb, rgb_to_grey, rgb_to_lab
from hf_ssl.methods._stages import StageHead, pixel_places, read_grid, read_places
from hf_ssl.training.records import public_place


def as_images(colours):
    """M colours as an image of one row."""
    return torch.tensor(colours, dtype=torch.float64).T[None, :, None]


class TestLab:
    def test_equals_a_slow_formula_and_comes_back(self):
        colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        colours[:3] = torch.tensor([[0, 0, 0], [1, 1, 1], [0.01, 0.03, 0.02]])
        lab = rgb_to_lab(as_images(colours.tolist()))
        expected = [slow_lab(colour) for colour in colours.tolist()]
        np.testing.assert_allclose(lab[0, :, 0].T, expected, atol=1e-9)
        np.testing.assert_allclose(lab_to_rgb(lab)[0, :, 0].T, colours, atol=2e-6)
        np.testing.assert_allclose(lab_to_rgb(lab.float())[0, :, 0].T, colours, atol=1e-5)

    def test_equals_scikit_image(self):
        """Recorded from rgb2lab and lab2rgb of scikit-image 0.26."""
        rgb = [
            (255, 0, 0),
            (0, 255, 0),
            (0, 0, 255),
            (255, 255, 255),
            (128, 128, 128),
            (200, 120, 40),
            (12, 3, 90),
            (5, 6, 7),
        ]
        recorded = [
            (53.24059, 80.09231, 67.20275), (87.7351, -86.18303, 83.1797), (32.29567, 79.18559, -107.8573),
            (100.0, -0.00245, 0.00465), (53.58501, -0.00147, 0.00279), (57.91229, 25.29522, 54.08278),
            (7.95961, 35.42555, -48.11607), (1.60652, -0.12256, -0.47036),
        ]  # fmt: skip
        lab = rgb_to_lab(as_images(rgb) / 255)[0, :, 0].T
        np.testing.assert_allclose(lab, recorded, atol=1e-4)
        others = [(50.0, 120, 80), (50, -120, -120), (30, 20, -40), (90, -10, 60), (5, 2, -3)]
        recorded = [
            (1.0, 0.0, 0.0), (0.0, 0.65382, 1.0), (0.2352, 0.24766, 0.52313), (0.95504, 0.89833, 0.4213),
            (0.07079, 0.06244, 0.08448),
        ]  # fmt: skip
        np.testing.assert_allclose(lab_to_rgb(as_images(others))[0, :, 0].T, recorded, atol=1e-3)

    def test_colours_that_srgb_lacks_are_clipped(self):
        rgb = lab_to_rgb(as_images([[50.0, 120, 80], [50, -120, -120], [0, 0, 100], [100, 0, 0]]))
        assert rgb.min() >= 0 and rgb.max() <= 1
        assert rgb[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.05)
        assert rgb[0, :, 0, 3].tolist() == pytest.approx([1, 1, 1], abs=1e-5)


class TestBins:
    def test_their_squares_hold_all_colours(self):
        bins = gamut_bins()
        assert bins.shape == (309, 2) and (bins % 10 == 0).all() and len(torch.unique(bins, dim=0)) == 309
        known = {tuple(each) for each in bins.tolist()}
        rgb = torch.randint(256, (1, 3, 1, 20_000), generator=torch.Generator().manual_seed(0)).double() / 255
        squares = torch.unique((rgb_to_lab(rgb)[0, 1:, 0] / 10).floor(), dim=1) * 10
        corners = {(a + i, b + j) for a, b in squares.T.tolist() for i in (0, 10) for j in (0, 10)}
        assert corners <= known and len(corners) > 290

    def test_shares_equal_a_slow_formula(self):
        bins = gamut_bins()
        colours = 60 * torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
        indices, shares = share_out(colours, bins, 5, 5.0)
        for i in range(4):
            for j in range(5):
                apart = [float(np.hypot(*(colours[i, j].double() - each).tolist())) for each in bins]
                nearest = sorted(range(309), key=lambda number: apart[number])[:5]
                assert indices[i, j].tolist() == nearest
                smallest = min(apart)
                parts = [np.exp(-(apart[number] ** 2 - smallest**2) / 50) for number in nearest]
                np.testing.assert_allclose(shares[i, j], np.array(parts) / sum(parts), atol=1e-5)

    def test_weights_are_even_without_a_prior_and_one_in_the_mean(self):
        bins, counts = gamut_bins().float(), torch.arange(309) ** 2
        torch.testing.assert_close(rebalancing_weights(counts, bins, 5, 5.0, uniform=1.0), torch.ones(309))
        weights = rebalancing_weights(counts, bins, 1, 5.0, uniform=0.5)  # not smoothed
        frequency = counts / counts.sum()
        expected = 1 / (0.5 * frequency + 0.5 / 309)
        torch.testing.assert_close(weights, expected / (expected * frequency).sum())
        assert (weights * frequency).sum().item() == pytest.approx(1, abs=1e-6)

    def test_annealed_mean_lies_between_mean_and_mode(self):
        bins = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
        logits = torch.tensor([0.25, 0.75]).log()
        assert annealed_mean(logits, bins, 1.0).tolist() == pytest.approx([7.5, 0])
        assert annealed_mean(logits, bins, 0.01).tolist() == pytest.approx([10, 0])
        p = np.exp(np.log([0.25, 0.75]) / 0.38)
        assert annealed_mean(logits, bins, 0.38).tolist() == pytest.approx([10 * p[1] / p.sum(), 0], abs=1e-5)


class TestStages:
    def test_grids_and_places_are_read_as_torch_reads_them(self):
        values = torch.randn(2, 3, 5, 4)
        last = values.movedim(1, -1)
        rows, columns = (pixel_places(torch.arange(side), side) for side in (12, 16))
        expected = F.interpolate(values, (12, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(read_grid(last, rows, columns).movedim(-1, 1), expected)
        places = torch.rand(2, 7, 2)  # down, across
        at = 2 * places.flip(-1)[:, None] - 1
        expected = F.grid_sample(values, at, padding_mode="border", align_corners=False)[:, :, 0]
        found = read_places(last, places[..., 0], places[..., 1])
        torch.testing.assert_close(found.mT, expected)

    def test_head_is_a_network_on_hypercolumns(self):
        """Whether a map is multiplied before or after it is read."""
        maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 2, 2)]
        head = StageHead([3, 5], 6, 4)
        rows, columns = (pixel_places(torch.arange(side), side) for side in (3, 4))
        columns_of_all = torch.cat([F.interpolate(each, (3, 4), mode="bilinear") for each in maps], dim=1).movedim(
            1, -1
        )
        weights = torch.cat([stage.weight for stage in head.stages], dim=1)
        hidden = (columns_of_all @ weights.T + head.stages[0].bias).relu()
        torch.testing.assert_close(head(maps, rows, columns), head.output(hidden))
        sparse = head(maps, rows.expand(2, 3), columns[:3].expand(2, 3))
        torch.testing.assert_close(sparse, head(maps, rows, columns)[:, range(3), range(3)])


def test_embedded_samples_have_names():
    assert len(load_split("hf_ssl/samples/emoji", "test")) == 236
    assert public_place("hf_ssl/samples/emoji") == {"name": "hf_ssl/samples/emoji", "local": False}
    with pytest.raises(InputError, match="dataset_name 'hf_ssl/samples/none' was not found"):
        load_split("hf_ssl/samples/none")


def test_grey_images_are_refused_where_colours_are_the_task():
    view = RandomResizedCropAndFlip(16, [0.0] * 3, [1.0] * 3, (0.5, 1.0))
    rows, column = image_rows(load_split(None, "test"))
    with pytest.raises(
        InputError, match="^image_column 'image' holds grey images, all 64 that were looked at: expected colours"
    ):
        check_colours(rows, ImageDecoder(column, 3, view))
    rows, column = image_rows(load_split("hf_ssl/samples/emoji", "test"))
    check_colours(rows, ImageDecoder(column, 3, view))


def test_grey_is_that_of_pil():
    rgb = torch.rand(2, 3, 4, 5)
    expected = (0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2])[:, None]
    torch.testing.assert_close(rgb_to_grey(rgb), expected)
    assert rgb_to_grey(torch.ones(1, 3, 1, 1)).item() == pytest.approx(1)
