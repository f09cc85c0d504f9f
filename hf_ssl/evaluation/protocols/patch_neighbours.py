"""Which patches of other images an encoder finds alike: a picture, without labels and without numbers.

Doersch et al. 2015, https://arxiv.org/abs/1505.05192, figure 4 and section 4.1: patches, each resized to the encoder's input,
and their nearest neighbours by cosine, beside those of the network at random initialisation and of another one.
"""

from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import datasets
import torch

from ...data.images import image_rows
from ...errors import InputError
from ..encoders.images import ImageEncoder, PixelEncoder, spread_images
from ..features import extract, frozen
from ..pictures import save_patch_neighbours
from ..plots import draw_all
from ..processes import process_state
from ..results import ROWS
from .knn import nearest

IMAGES, PER_IMAGE = 500, 4  # that patches are cut from, and patches of each
SIDE = 0.4  # of the image's shorter side
QUERIES, NEAREST = 6, 5  # of the picture
TEXTURED = 4  # a query is one of the most textured 1 in 4 patches: a blank one is like any other blank one
SETTINGS = {
    "images": IMAGES,
    "patches_per_image": PER_IMAGE,
    "side": f"{SIDE:g} of the image's shorter side",
    "similarity": "cosine of the features",
    "neighbours": "one of an image at most, none of the query's",
    "queries": f"drawn from the 1 in {TEXTURED} with the most gradient energy",
}


@dataclass
class PatchEncoder(ImageEncoder):
    """An ImageEncoder whose rows are numbers of `patches`, uint8 (C, h, w) each."""

    patches: list = field(default_factory=list)

    def read(self, number):
        return self.patches[number]


@dataclass
class PatchNeighbours:
    """The protocol `patch_neighbours`, as run.py describes. compare_with: another encoder whose neighbours are shown."""

    compare_with: ImageEncoder | None = None
    METRICS, SETTINGS = {}, SETTINGS

    def run(self, encoders, source, output_dir):
        test, column = image_rows(source.drawn(source.test_rows()), *source.columns)
        source.found["image_column"] = column
        pretrained = encoders["pretrained"]
        images = list(spread_images(test, column, pretrained.channels, IMAGES).values())
        if len(images) < 2:
            raise InputError(f"patch_neighbours needs at least 2 images that can be decoded, found {len(images)}.")
        patches, boxes = cut_patches(images, source.seed)
        queries = choose_queries(patches, source.seed)
        groups = {}
        for row, encoder in self._compared(encoders).items():
            found = patch_neighbours(encoder, patches, queries, f"{row}, patches")
            groups[row] = [[patches[number] for number in numbers] for numbers in found]
        if process_state().is_main_process:
            cut = [(images[query // PER_IMAGE], boxes[query], patches[query]) for query in queries]
            draw_all(output_dir, {"patch_neighbours": lambda path: save_patch_neighbours(path, cut, groups)})
        return {}

    def _compared(self, encoders):
        """{title: encoder}."""
        shown = {ROWS[row]: each for row, each in encoders.items() if not isinstance(each, PixelEncoder)}
        if self.compare_with is None:
            return shown
        own, other = (Path(each.name.rstrip("/")).name for each in (encoders["pretrained"], self.compare_with))
        shown[own] = shown.pop(ROWS["pretrained"])
        return shown | {other if other != own else f"compared with {other}": self.compare_with}


def cut_patches(images, seed):
    """(patches, uint8 (C, s, s), PER_IMAGE of each image, one image after the other; (top, left, s) of each), from random
    places. images: uint8 (C, H, W), of any sizes."""
    generator = torch.Generator().manual_seed(seed)
    patches, boxes = [], []
    for image in images:
        height, width = image.shape[1:]
        side = max(1, round(SIDE * min(height, width)))
        for _ in range(PER_IMAGE):
            top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in (height, width))
            boxes.append((top, left, side))
            patches.append(image[:, top : top + side, left : left + side])
    return patches, boxes


def gradient_energy(patch):
    """The mean square of the differences of neighbouring pixels of a (C, h, w) patch."""
    pixels = patch.float()
    return sum(float(pixels.diff(dim=side).square().mean()) if pixels.shape[side] > 1 else 0.0 for side in (1, 2))


def choose_queries(patches, seed):
    """Numbers of at most QUERIES patches, spread over the images, drawn from the most textured of each span of them."""
    generator = torch.Generator().manual_seed(seed)
    images = len(patches) // PER_IMAGE
    energy = torch.tensor([gradient_energy(patch) for patch in patches])
    queries = []
    for span in torch.arange(len(patches)).view(images, PER_IMAGE).tensor_split(min(QUERIES, images)):
        numbers = span.flatten()
        best = numbers[energy[numbers].argsort(descending=True)[: max(1, len(numbers) // TEXTURED)]]
        queries.append(int(best[torch.randint(len(best), (), generator=generator)]))
    return queries


def patch_neighbours(encoder, patches, queries, description=None):
    """[numbers of the NEAREST patches] of each query, one of an image at most and none of its own; [] but on the main process.

    Called by all processes. Raises InputError if features are not finite."""
    known = {each.name: getattr(encoder, each.name) for each in fields(ImageEncoder)}
    rows = datasets.Dataset.from_dict({"patch": range(len(patches))})
    how = {"description": description, "labelled": False}
    with frozen(encoder.model.to(process_state().device)):
        found = extract(PatchEncoder(**known, patches=patches), rows, ("patch",), **how)
    if found.not_finite:  # each patch has its number
        raise InputError(f"'{encoder.name}' gives {found.not_finite} patches features that are not finite.")
    if not process_state().is_main_process:
        return []
    order = nearest(found.features, found.features[queries], len(patches))[1].tolist()  # (Q, P)
    return [list(islice(_one_of_each_image(own, query), NEAREST)) for own, query in zip(order, queries, strict=True)]


def _one_of_each_image(numbers, query):
    seen = {query // PER_IMAGE}
    for number in numbers:
        if (image := number // PER_IMAGE) not in seen:
            seen.add(image)
            yield number


__all__ = ["SETTINGS", "PatchNeighbours", "choose_queries", "cut_patches", "gradient_energy", "patch_neighbours"]
