"""What a lens gives away to relative position: colours that shift with the place in the image, and what dropping them does."""

import json
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from PIL import Image

from hf_ssl.data import decode_image, load_split
from hf_ssl.training.checkpoints import list_checkpoints

from .runs import check_flags, finish, print_table, read_results

SHRUNK = 6 / 7  # green, around the middle: by two pixels at the border of 28
RUNS = {  # row -> whether the lens shifts colours, and what is done about it
    "no shift, colours kept": (False, "keep"),
    "shift, colours kept": (True, "keep"),
    "shift, colours dropped": (True, "drop"),
}
OWN_FLAGS = ("--config_overrides", "--output_dir", "--dataset_name")


def aberrated(image):
    """uint8 (3, H, W) as a lens would have it that shrinks green towards the middle."""
    height, width = image.shape[-2:]
    theta = torch.tensor([[1 / SHRUNK, 0, 0], [0, 1 / SHRUNK, 0]])[None]
    grid = F.affine_grid(theta, (1, 1, height, width), align_corners=False)
    green = F.grid_sample(image[None, 1:2].float(), grid, padding_mode="border", align_corners=False)
    return torch.stack([image[0], green[0, 0].round().byte(), image[2]])


def write_images(folder):
    """The embedded images in colour, each with that aberration, in Hub layout."""
    for split in ("train", "test"):
        rows = load_split(split=split)
        columns = {"image": [], "label": rows["label"][:]}
        for row in rows.select_columns("image"):
            image = aberrated(decode_image(row["image"], 3))
            columns["image"].append(Image.fromarray(image.permute(1, 2, 0).numpy()))
        features = datasets.Features({"image": datasets.Image(), "label": rows.features["label"]})
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def compare(output_dir, flags):
    """flags: of pretrain_relative_position.py, for all runs. Runs that have ended in `output_dir` are not made again."""
    check_flags(flags, OWN_FLAGS)
    output_dir, rows = Path(output_dir), {}
    images = output_dir / "images"
    if not (images / "test-00000-of-00001.parquet").is_file():
        write_images(images)
    for row, (shifted, colour) in RUNS.items():
        folder = output_dir / row.replace(", ", "-").replace(" ", "_")
        data = ["--dataset_name", str(images)] if shifted else []
        finish("relative_position", folder, {"colour": colour}, [*data, *flags])
        last = json.loads((list_checkpoints(folder)[0] / "state.json").read_text())["history"][-1]
        results = read_results(folder)
        rows[row] = results["pretrained"] | {"right": 100 * last["accuracy"]}
    rows["random weights, of the last data"] = results["random_initialisation"]
    print_table("lens, measure", {"right in training": "right", "kNN": "knn", "linear probe": "linear_probe"}, rows)
