"""However a run ends, it ends within seconds, says why in one line, and leaves what it has reached."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
from processes import Failed, launch
from test_training import TINY, _pretrain, pretrain, seconds_after

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.data import ImageDecoder, RandomResizedCropAndFlip, image_rows, load_split
from hf_ssl.errors import InputError, run_script
from hf_ssl.training import TrainingArguments, train
from hf_ssl.training.checkpoints import find_damage, list_checkpoints


class _EndsInStep3(MAEForPreTraining):
    """Of process 0, as `reason` says."""

    reason = None
    passes = 0

    def forward(self, pixel_values, sample_seeds=None, **kwargs):
        self.passes += 1
        if self.passes == 3 and os.environ.get("RANK", "0") == "0":
            if self.reason == "memory":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            if self.reason == "worker":
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return super().forward(pixel_values, sample_seeds)


def _write_stderr_aside(output_dir):
    """Into a file of each process."""
    os.dup2(os.open(f"{output_dir}_{os.environ.get('RANK', 0)}.txt", os.O_CREAT | os.O_WRONLY), 2)


def _end_in_step_3(shards, output_dir, reason):
    """Through `run_script`."""
    _write_stderr_aside(output_dir)
    _EndsInStep3.reason = reason
    options = dict(model_class=_EndsInStep3, dataloader_num_workers=2, max_steps=500, save_steps=0)
    run_script(lambda: pretrain(shards, output_dir, **options))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "reason, sentence",
    [
        ("memory", "There is not enough memory (*you tried to allocate 9 bytes): lower per_device_train_batch_size"),
        ("worker", "A process that reads the data was ended from outside (DataLoader worker *"),
    ],
)
def test_a_run_whose_memory_is_short_ends_in_a_sentence(shards, tmp_path, reason, sentence, processes):
    """In a step, or of a loader worker, which the system then kills; the other process follows."""
    with pytest.raises(Failed, match="exit codes"):
        launch(_end_in_step_3, shards, tmp_path / "run", reason, processes=processes, timeout=30)
    text = (tmp_path / "run_0.txt").read_text()
    assert all(part in text for part in sentence.split("*")) and "Traceback" not in text, text
    if processes == 2:
        other = (tmp_path / "run_1.txt").read_text()
        assert "[process 1] error: The connection to another process was lost" in other and "Traceback" not in other


class _NeverReads(ImageDecoder):
    def decode(self, row):
        time.sleep(1000)


def _read_what_does_not_answer(shards, output_dir, signals):
    """A worker that waits for ever, as on a disk in the network. signals: what this process gets, after how many seconds."""
    for number, seconds in signals:
        threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
    signal.signal(signal.SIGUSR1, _make_a_mistake)
    rows, column = image_rows(load_split(str(shards)))
    decoder = _NeverReads(column, 3, RandomResizedCropAndFlip(16, [0.5], [0.5]))
    args = TrainingArguments(output_dir=str(output_dir), max_steps=9, dataloader_num_workers=1)
    run_script(lambda: train(MAEForPreTraining(MAEConfig(**TINY)), rows, decoder, args))


def _make_a_mistake(*_):
    raise InputError("a mistake")


@pytest.mark.parametrize(
    "signals, code",
    [([(signal.SIGUSR1, 2)], r"\[1\]"), ([(signal.SIGINT, 2), (signal.SIGINT, 4.5)], r"\[130\]")],
    ids=["an error", "Ctrl-C twice"],
)
def test_a_worker_that_hangs_does_not_keep_the_run(shards, tmp_path, signals, code):
    """Workers ignore SIGTERM, by which Python would end them before it waits for them."""
    with pytest.raises(Failed, match=code):
        launch(_read_what_does_not_answer, shards, tmp_path, signals, timeout=30)


def _pretrain_aside(shards, output_dir, options):
    _write_stderr_aside(output_dir)
    return _pretrain(shards, output_dir, options)


@pytest.mark.parametrize("number, code", [("terminate", 143), ("interrupt", 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_and_says_so(shards, tmp_path, processes, number, code):
    """Although nothing is logged or saved before; all processes stop at one step."""
    options = dict(max_steps=100_000, save_steps=0, logging_steps=100_000, dataloader_num_workers=1)
    runs, signalled = seconds_after((tmp_path / "run.json").exists, 1), []

    def moment():
        signalled.extend([time.monotonic()] if runs() else [])
        return bool(signalled)

    codes = launch(
        _pretrain_aside, shards, tmp_path, options, processes=processes, kill_when=moment, signal=number, timeout=60
    )
    assert codes == [code] * processes and time.monotonic() - signalled[0] < 30
    said = [(tmp_path.parent / f"{tmp_path.name}_{rank}.txt").read_text() for rank in range(processes)]
    assert ["finishing this step and saving a checkpoint" in text for text in said] == [True, False][:processes]
    [checkpoint] = list_checkpoints(tmp_path)
    assert find_damage(checkpoint) is None and json.loads((checkpoint / "state.json").read_text())["step"] > 0
