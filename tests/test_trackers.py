"""The log of a run in a tracker: settings, curves and warnings, one run however often it is taken up, and nothing private."""

import importlib
import json
import logging
import sqlite3
import warnings

import pytest
from accelerate.tracking import get_available_trackers
from test_training import _Constant, pretrain

from hf_ssl.errors import InputError
from hf_ssl.hub.card import _measured
from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.health import RepresentationCollapseWarning
from hf_ssl.training.records import without_places

SECRET = "hf_" + "a1B2" * 8
COLLAPSING = dict(model_class=_Constant, max_steps=50, logging_steps=50, save_steps=0)


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = {path.parent for path in folder.glob("logs/hf_ssl/events*")}
    return EventAccumulator(str(folder)).Reload()


def texts_of(events):
    [tag] = events.Tags()["tensors"]
    return tag, [tensor.tensor_proto.string_val[0].decode() for tensor in events.Tensors(tag)]


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """trackio with a database of its own: {table: rows as dicts}."""
    pytest.importorskip("trackio")
    utils, storage = (importlib.import_module(f"trackio.{name}") for name in ("utils", "sqlite_storage"))
    for module in (utils, storage):  # read from the environment when it is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")

    def plain(row):  # JSON is stored as bytes
        return {key: row[key].decode() if isinstance(row[key], bytes) else row[key] for key in row.keys()}

    def read():
        [path] = (tmp_path / "trackio").glob("hf_ssl*.db")
        with sqlite3.connect(path) as database:
            database.row_factory = sqlite3.Row
            tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
            return {table: [plain(row) for row in database.execute(f"select * from {table}")] for table in tables}

    return read


def test_tensorboard_gets_one_curve_of_a_run_that_is_taken_up(shards, tmp_path):
    options = dict(report_to="tensorboard", logging_steps=2, save_steps=4)
    pretrain(shards, tmp_path, max_steps=6, **options)
    (tmp_path / "checkpoints/step_6").rename(tmp_path / "step_6")  # as if it had been killed after step 4
    history = pretrain(shards, tmp_path, max_steps=8, resume_from_checkpoint="auto", **options)
    losses = events_of(tmp_path).Scalars("loss")
    assert [each.step for each in losses] == [2, 4, 6, 8]
    assert [each.value for each in losses] == pytest.approx([entry["loss"] for entry in history])


def test_tensorboard_gets_warnings_as_text(shards, tmp_path):
    with pytest.warns(RepresentationCollapseWarning):
        pretrain(shards, tmp_path, report_to="tensorboard", **COLLAPSING)
    tag, [text] = texts_of(events_of(tmp_path))
    assert tag.startswith("warnings/RepresentationCollapseWarning") and "has collapsed at step 50" in text


def test_what_ends_a_run_reaches_the_tracker_and_nothing_stays_behind(shards, tmp_path):
    show, handlers = warnings.showwarning, list(logging.getLogger("hf_ssl").handlers)
    with pytest.raises(InputError, match="not finite"):
        pretrain(shards, tmp_path, report_to="tensorboard", learning_rate=1e9, warmup_steps=0, save_steps=0)
    tag, texts = texts_of(events_of(tmp_path))
    assert tag.startswith("warnings/InputError") and "not finite" in texts[-1]
    assert warnings.showwarning is show and logging.getLogger("hf_ssl").handlers == handlers


def test_trackio_gets_settings_curves_and_alerts(shards, tmp_path, trackio, capfd):
    with pytest.warns(RepresentationCollapseWarning):
        history = pretrain(
            shards, tmp_path / "run", report_to="trackio", hub_model_id=f"org/{SECRET}", push_to_hub=True, **COLLAPSING
        )
    tables = trackio()
    [row] = [row for row in tables["metrics"] if "loss" in row["metrics"]]
    assert row["step"] == 50 and json.loads(row["metrics"])["loss"] == pytest.approx(history[0]["loss"])
    [alert] = tables["alerts"]
    assert alert["title"] == "RepresentationCollapseWarning" and alert["step"] == 50 and alert["level"] == "warn"
    assert "has collapsed at step 50" in alert["text"] and "TRACKIO WARN" not in capfd.readouterr().out
    [settings] = [json.loads(row["config"]) for row in tables["configs"]]
    assert settings["learning_rate"] == 0.05 and settings["dataset_name"] == shards.name
    assert SECRET not in json.dumps(tables) and str(tmp_path) not in json.dumps(tables)


def test_trackio_goes_on_in_the_same_run(shards, tmp_path, trackio):
    options = dict(report_to="trackio", logging_steps=2, save_steps=4)
    pretrain(shards, tmp_path / "run", max_steps=4, **options)
    pretrain(shards, tmp_path / "run", max_steps=8, resume_from_checkpoint="auto", **options)
    rows = trackio()["metrics"]
    assert len({row["run_name"] for row in rows}) == 1 and [row["step"] for row in rows] == [2, 4, 6, 8]
    facts = json.loads((tmp_path / "run/run.json").read_text())["facts"]
    assert facts["tracking"]["run"] == rows[0]["run_name"]
    assert _measured(facts)["log in trackio"] == f"`trackio show --project hf_ssl`, run {rows[0]['run_name']}"


def test_the_card_links_to_a_space():
    facts = {"run": "mae-1f", "pages": {"trackio": "https://huggingface.co/spaces/org/log"}}
    known = dict(hardware={"name": "CPU"}, processes=1, seconds=1, unit="samples", parameters=1, samples_seen=1)
    shown = _measured(known | dict(precision="fp32", versions={}, tracking=facts))
    assert shown["log in trackio"] == "[mae-1f](https://huggingface.co/spaces/org/log)"


def test_a_tracker_that_is_not_installed_is_one_sentence():
    missing = {"wandb", "aim", "mlflow", "swanlab"} - {tracker.value for tracker in get_available_trackers()}
    for name in missing:
        with pytest.raises(InputError, match=f"the tracker {name} is not installed: pip install {name}"):
            TrainingArguments(report_to=f"tensorboard,{name}")
    assert missing


@pytest.mark.parametrize(
    "text, left",
    [
        ("kept in /home/me/run/checkpoints/step_4: 2", "kept in step_4: 2"),
        ("'/data/me/a b.png' is broken", "'a b.png' is broken"),
        ("see ~/secret/file, and https://example.com/a/b", "see file, and https://example.com/a/b"),
        ("org/name and runs/mine, 3/4", "org/name and runs/mine, 3/4"),
    ],
)
def test_places_of_files_are_left_out(text, left):
    assert without_places(text) == left
