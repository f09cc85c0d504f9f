"""Runs side by side: what is one row, what is not comparable, the table and the plot, and training by name at one budget."""

import json
import shutil

import pytest
import torch
from PIL import Image
from test_scripts import ROOT, pictures, release, run  # noqa: F401, two of them fixtures

from hf_ssl.cli.information import recorded
from hf_ssl.errors import InputError
from hf_ssl.evaluation import plots
from hf_ssl.evaluation.comparison import compare, comparison_page, recorded_runs, references, released_runs
from hf_ssl.evaluation.conditions import differences
from hf_ssl.methods import METHODS

PRETRAINED = {"knn": 70.0, "linear_probe": 80.0}


def altered(release, folder, seed=0, steps=None, numbers=None, arguments=None, **dataset):  # noqa: F811
    """A copy of the files of a release that says otherwise."""
    folder.mkdir(parents=True)
    for name in ("run.json", "eval_results.json"):
        shutil.copy(release[0] / name, folder)
    run_file, results_file = folder / "run.json", folder / "eval_results.json"
    found, results = json.loads(run_file.read_text()), json.loads(results_file.read_text())
    found["arguments"] |= {"seed": seed} | (arguments or {})
    found["facts"]["steps"] = steps or found["facts"]["max_steps"]
    results["dataset"] |= dataset
    results["settings"]["seed"] = seed
    results["results"]["pretrained"] = numbers or PRETRAINED
    run_file.write_text(json.dumps(found)), results_file.write_text(json.dumps(results))
    return folder


def test_seeds_are_a_row_and_what_is_not_comparable_has_a_table_of_its_own(release, tmp_path):  # noqa: F811
    runs = tmp_path / "runs"
    altered(release, runs / "0", 0)
    altered(release, runs / "1", 1, numbers={"knn": 74.0, "linear_probe": 81.0}, steps=20)
    altered(release, runs / "2", 0, numbers={"knn": 60.0, "linear_probe": 90.0}, arguments={"mask_ratio": 0.5})
    altered(release, runs / "3", 0, numbers={"knn": 99.0}, test_rows=7)
    (runs / "a.log").write_text("no run")
    out = tmp_path / "out"
    code, printed, err = run("compare.py", *sorted(runs.iterdir()), "--output_dir", out)
    assert code == 0 and "Left out: " in err and "a.log' is no evaluated run: it has no run.json" in err, err
    first, second = printed.split("Not comparable with the first table: mae: test rows 7, there 100.")
    assert "| **mae, mask_ratio 0.5** | 60.0 | 90.0 | 0 |" in first
    assert "72.0 (70.0 to 74.0) | 80.5 (80.0 to 81.0) | 0, 1 |" in first
    assert first.index("mask_ratio") < first.index("72.0"), "the better probe stands above"
    assert "has not ended: 20 of 30 steps" in first and "| **mae** | 99.0 |" in second
    assert first.count("| Raw pixels |") == first.count("| Random initialisation |") == 1
    page, kept = (out / "comparison.md").read_text(), json.loads((out / "comparison.json").read_text())
    assert page.endswith(printed) and "![images](comparison_images.png)" in page
    assert kept == compare([each for number in range(4) for each in released_runs(runs / str(number))])
    with Image.open(out / "comparison_images.png") as picture:
        assert picture.width == 1350 and json.loads(picture.text["Description"]) == kept


def test_what_only_one_of_two_evaluations_ran_does_not_part_them():
    one = {"dataset": {"name": None, "passages": 32}, "settings": {"seed": 0, "knn": {"k": 200}}}
    other = {"dataset": {"name": None, "passages": 32}, "settings": {"seed": 1, "linear_probe": {"epochs": 90}}}
    assert not differences(one, other)
    other["settings"]["knn"], other["dataset"]["passages"] = {"k": 20}, 64
    assert differences(one, other) == [("passages", 32, 64), ("knn's k", 200, 20)]


def test_the_picture_of_the_readme_shows_the_recorded_runs():
    """It is what `python scripts/update_readme.py` draws."""
    names = [name for name, model in METHODS.items() if recorded(name) and not model.learns_from_labels]
    runs = [each for name in names for each in recorded_runs(name, recorded(name))]
    images = [each for each in compare(runs) if each["modality"] == "images"]
    with Image.open(ROOT / "model_cards/images/comparison_images.png") as picture:
        assert json.loads(picture.text["Description"]) == images, "stale: run python scripts/update_readme.py"


def test_recorded_methods_of_every_modality_are_compared(tmp_path):
    runs = [each for name in METHODS for each in recorded_runs(name, recorded(name))]
    comparisons = compare(runs)
    assert {each["modality"] for each in comparisons} == {"images", "text", "speech", "pairs"}
    rows = [(each["modality"], method["method"]) for each in comparisons for method in each["methods"]]
    assert sorted(method for _, method in rows) == sorted(METHODS)
    images = comparisons[0]
    [mae] = [each for each in images["methods"] if each["method"] == "mae"]
    probes = [each["results"]["pretrained"]["linear_probe"] for each in recorded("mae")["runs"]]
    assert mae["results"]["pretrained"]["linear_probe"] == probes and mae["seeds"] == [0, 1, 2]
    raw = [labels for row, labels, _ in references(images) if row == "raw_pixels"]
    assert {"simclr", "exemplar"} in map(set, raw) and len(raw) == 2, "these read pixels that are not normalised"
    alike, apart = (
        comparison_page(comparisons).split("\n## Text")[1].split("\n## ")[0].split("bert: passages 32, there 64")
    )
    assert "**word2vec**" in alike and "**cpc_text**" in alike and "**bert**" not in alike and "**bert**" in apart
    for modality in ("images", "text", "speech", "pairs"):
        own = [each for each in comparisons if each["modality"] == modality]
        plots.save_comparison(tmp_path / f"{modality}.png", own)
        with Image.open(tmp_path / f"{modality}.png") as picture:
            assert picture.width == 1350


def test_named_methods_are_trained_at_one_budget_and_once(pictures, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    command = ["rotation", "--max_steps", 2, "--dataset_name", pictures, "--output_dir", out]
    quick = ["--eval_protocols", "knn"]
    code, printed, err = run("compare.py", *command, *quick)
    folder = out / "runs/rotation-2"
    assert code == 0 and "| **rotation** |" in printed and "100 test rows" in printed, err
    made = (folder / "model.safetensors").stat().st_mtime_ns
    code, again, err = run("compare.py", *command, *quick)
    assert code == 0 and again == printed and "rotation is there already" in err, err
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    code, _, err = run("compare.py", *command)
    assert code == 1 and "holds a run with other flags" in err and "choose another output_dir" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "runs: 'nothing' is no folder, and no method: expected some of amdim"),
        (["mae", "--seed", "1"], "--seed is a flag of the training: give --max_steps"),
        (["tests", "--max_steps", "2"], "max_steps trains methods: expected some of amdim"),
        ([str(ROOT / "tests")], "runs: no evaluated run was found"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(tmp_path, arguments, sentence):
    code, _, err = run("compare.py", *arguments, "--output_dir", tmp_path / "out")
    assert code == 1 and sentence in err.splitlines()[-1] and not (tmp_path / "out").exists(), err


def test_a_run_of_an_unknown_method_is_named(release, tmp_path):  # noqa: F811
    folder = altered(release, tmp_path / "run")
    found = json.loads((folder / "run.json").read_text())
    found["config"]["model_type"] = "ssl_none"
    (folder / "run.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="is a run of 'none': expected one of"):
        released_runs(folder)


def test_labels_of_a_map_cover_no_other(tmp_path):
    places = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)).numpy()
    figure, axis = plots.pyplot().subplots(figsize=(4, 3))
    axis.scatter(*places.T)
    plots._label(axis, places, [f"word {i}" for i in range(80)])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert 20 < len(boxes) < 80
    assert not any(box.count_overlaps(boxes[:i] + boxes[i + 1 :]) for i, box in enumerate(boxes))
    plots.pyplot().close(figure)
