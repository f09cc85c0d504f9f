"""A run on the device that is killed and taken up again: bit by bit the run that was not, with torch's deterministic kernels.

Without them (torch's default) atomic additions of a GPU make any two runs differ by rounding, killed or not.
"""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from methods.tester import TINY_VIT
from safetensors.torch import load_file

from hf_ssl import MAEConfig, MAEForPreTraining, MoCoConfig, MoCoForPreTraining
from hf_ssl.data import VIEWS, ImageDecoder, RandomResizedCropAndFlip, Views, image_rows, load_split
from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.checkpoints import list_checkpoints
from hf_ssl.training.loop import train

STEPS, KILLED_AFTER = 40, 9
SMALL_RESNET = dict(model_type="ssl_resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
DROPPING_VIT = TINY_VIT | {"hidden_dropout_prob": 0.1}  # draws from the device's own generator


def moco():
    """Its stem has no max-pooling, whose backward has no deterministic kernel with channels last."""
    config = MoCoConfig(backbone_config=SMALL_RESNET, queue_size=40, projection_size=16, batch_norm_group_size=4)
    view = Views(32, [0.5], [0.5], VIEWS["moco_v2"])
    return MoCoForPreTraining(config), view, dict(optim="sgd", weight_decay=1e-4, learning_rate=1.0)


def mae():
    decoder = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = MAEConfig(backbone_config=DROPPING_VIT, **{f"decoder_{name}": value for name, value in decoder.items()})
    return MAEForPreTraining(config), RandomResizedCropAndFlip(16, [0.5], [0.5]), dict(learning_rate=0.05)


METHODS = {"moco": moco, "mae": mae}


def pretrain(name, folder, resume=None):
    """The history of one run; in a process of its own too."""
    torch.use_deterministic_algorithms(True)
    try:
        torch.manual_seed(3)
        model, view, settings = METHODS[name]()
        rows, column = image_rows(load_split(None, "train[:120]"))
        common = dict(max_steps=STEPS, per_device_train_batch_size=8, save_steps=1, logging_steps=5, seed=3)
        args = TrainingArguments(str(folder), resume_from_checkpoint=resume, warmup_steps=4, **common, **settings)
        return train(model, rows, ImageDecoder(column, 3, view), args).history
    finally:
        torch.use_deterministic_algorithms(False)


def kill_a_run(name, folder):
    """SIGKILL after a checkpoint; spawned, since a forked process cannot use the device."""
    process = multiprocessing.get_context("spawn").Process(target=pretrain, args=(name, folder))
    process.start()
    while process.is_alive() and not (Path(folder) / f"checkpoints/step_{KILLED_AFTER}").is_dir():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9, "the run ended by itself"


@pytest.mark.parametrize("name", METHODS)
def test_killed_run_goes_on_bitwise(name, precision, tmp_path):
    """Weights, buffers, momenta, the device's random numbers and, in fp16, the scale of the gradients."""
    if precision == "bf16":
        pytest.skip("has no state of its own: fp32 and fp16 tell all")
    whole = pretrain(name, tmp_path / "whole")
    kill_a_run(name, tmp_path / "killed")
    reached = [folder.name for folder in list_checkpoints(tmp_path / "killed")]
    assert f"step_{STEPS}" not in reached, "the kill came too late to test anything"
    assert pretrain(name, tmp_path / "killed", resume="auto") == whole
    one, other = (
        load_file(tmp_path / f"{run}/checkpoints/step_{STEPS}/model.safetensors") for run in ("whole", "killed")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
