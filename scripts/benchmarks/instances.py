"""The ablations of instance discrimination: which softmax, how many draws of noise, how large an embedding."""

from pathlib import Path

from .runs import check_flags, finish, print_table, read_results

SOFTMAX = dict(loss="softmax", projection_size=128)
RUNS = {  # sections 4.1 and 4.3 of the paper
    "softmax over all rows": SOFTMAX,
    "parametric softmax": dict(loss="parametric", projection_size=128),
    **{
        f"NCE, m = {draws}": dict(loss="nce", noise_samples=draws, projection_size=128) for draws in (4096, 512, 10, 1)
    },
    **{f"embedding of {size}": SOFTMAX | dict(projection_size=size) for size in (32, 64, 256)},
}
OWN_FLAGS = ("--config_overrides", "--output_dir")


def compare(output_dir, flags):
    """flags: of pretrain_instance_discrimination.py, for all runs. Runs that have ended in `output_dir` are not made
    again."""
    check_flags(flags, OWN_FLAGS)
    rows = {}
    for row, settings in RUNS.items():
        folder = Path(output_dir) / row.replace(",", "").replace(" = ", "").replace(" ", "_").lower()
        finish("instance_discrimination", folder, settings, flags)
        results = read_results(folder)
        rows[row] = results["pretrained"]
    rows |= {"random weights": results["random_initialisation"], "raw pixels": results["raw_pixels"]}
    print_table("instance discrimination", {"kNN": "knn", "linear probe": "linear_probe"}, rows)
