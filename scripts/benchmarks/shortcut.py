"""What a lens gives away to relative position: colours that shift with the place in the image, and what dropping them does."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from PIL import Image

from hf_ssl.data import decode_image, load_split
from hf_ssl.errors import InputError
from hf_ssl.hub.transfer import EVAL_RESULTS
from hf_ssl.training.checkpoints import list_checkpoints

PRETRAIN = Path(__file__).parents[1] / "pretrain_relative_position.py"
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
    for flag in flags:
        if (name := flag.partition("=")[0]) in OWN_FLAGS:
            raise InputError(f"flags must not set {name}, found '{flag}': the runs have their own.")
    output_dir, rows = Path(output_dir), {}
    images = output_dir / "images"
    if not (images / "test-00000-of-00001.parquet").is_file():
        write_images(images)
    for row, (shifted, colour) in RUNS.items():
        folder = output_dir / row.replace(", ", "-").replace(" ", "_")
        if not (folder / EVAL_RESULTS).is_file():
            command = [sys.executable, str(PRETRAIN), "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
            command += [
                "--config_overrides",
                f"colour={colour}",
                *(["--dataset_name", str(images)] if shifted else []),
            ]
            if code := subprocess.run([*command, *flags]).returncode:
                raise InputError(
                    f"The run in '{folder}' ended with code {code}, for the reason above; another start goes on with it."
                )
        last = json.loads((list_checkpoints(folder)[0] / "state.json").read_text())["history"][-1]
        found = json.loads((folder / EVAL_RESULTS).read_text())["results"]
        rows[row] = [100 * last["accuracy"], *(found["pretrained"][name] for name in ("knn", "linear_probe"))]
        random = [found["random_initialisation"][name] for name in ("knn", "linear_probe")]
    print("\n| lens, measure | right in training | kNN | linear probe |\n|---|---:|---:|---:|")
    for row, (accuracy, knn, probe) in rows.items():
        print(f"| {row} | {accuracy:.1f} | {knn:.1f} | {probe:.1f} |")
    print(f"| random weights, of the last data | | {random[0]:.1f} | {random[1]:.1f} |")
