"""The loop: exact resume, however it was stopped; the same numbers on one process and two; clear ends."""

import json
import os
import random
import re
import resource
import shutil
import time
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from methods.test_bert import TINY_BERT
from methods.test_cpc_text import TINY as TINY_CPC_TEXT
from methods.tester import TINY_RESNET, TINY_VIT
from processes import Failed, launch
from safetensors import safe_open
from safetensors.torch import load_file

import hf_ssl
from hf_ssl import (
    AMDIMConfig,
    AMDIMForPreTraining,
    BERTConfig,
    BERTForPreTraining,
    BiGANConfig,
    BiGANForPreTraining,
    CMCConfig,
    CMCForPreTraining,
    ContextEncoderConfig,
    ContextEncoderForPreTraining,
    CPCTextConfig,
    CPCTextForPreTraining,
    DeepInfoMaxConfig,
    DeepInfoMaxForPreTraining,
    ExemplarConfig,
    ExemplarForPreTraining,
    InstanceDiscriminationConfig,
    InstanceDiscriminationForPreTraining,
    JigsawConfig,
    JigsawForPreTraining,
    MAEConfig,
    MAEForPreTraining,
    MoCoConfig,
    MoCoForPreTraining,
    NATConfig,
    NATForPreTraining,
    PIRLConfig,
    PIRLForPreTraining,
    RelativePositionConfig,
    RelativePositionForPreTraining,
    SimCLRConfig,
    SimCLRForPreTraining,
)
from hf_ssl.cli import text_data, text_documents, text_tokenizer
from hf_ssl.data import (
    VIEWS,
    DataError,
    ImageDecoder,
    RandomResizedCropAndFlip,
    TrainLoader,
    Views,
    image_rows,
    load_split,
)
from hf_ssl.errors import InputError
from hf_ssl.methods._base import SSLOutput
from hf_ssl.training.arguments import TokenArguments, TrainingArguments, TwoViewArguments
from hf_ssl.training.checkpoints import find_checkpoint, find_damage, kept_tokenizer, list_checkpoints
from hf_ssl.training.health import RepresentationCollapseWarning
from hf_ssl.training.loop import _check_broken, train

STEPS = 24
SAMPLES = Path(hf_ssl.__file__).parent / "data/samples/images"
TINY = dict(
    backbone_config=TINY_VIT | {"hidden_dropout_prob": 0.1}, decoder_hidden_size=16, decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2, decoder_intermediate_size=32,
)  # fmt: skip


TINY_MOCO = dict(backbone_config=TINY_RESNET, queue_size=40, projection_size=16, momentum=0.9, batch_norm_group_size=4)
TINY_SIMCLR = dict(backbone_config=TINY_RESNET, projection_size=16, temperature=0.5)
TINY_JIGSAW = dict(
    backbone_config=TINY_RESNET, tile_size=4, channel_shift=1, permutations=20, tile_features_size=8, head_hidden_size=16
)  # fmt: skip
TINY_RELATIVE = dict(
    backbone_config=TINY_RESNET, patch_size=4, gap=0, jitter=1, smallest_size=2, head_hidden_size=16
)  # fmt: skip
TINY_INSTANCES = dict(backbone_config=TINY_RESNET, num_samples=120, projection_size=16, noise_samples=20)
TINY_NAT = dict(backbone_config=TINY_RESNET, num_samples=120, projection_size=16, exchange_period=2)
TINY_PIRL = TINY_INSTANCES | dict(tile_size=4)
TINY_HALVES = {f"{half}_config": TINY_RESNET | dict(num_channels=n) for half, n in (("first", 1), ("second", 2))}
TINY_CMC = TINY_INSTANCES | dict(
    backbone_config=dict(model_type="ssl_two_halves", conversion="gradients", **TINY_HALVES)
)
TINY_AMDIM = dict(
    backbone_config=TINY_RESNET, projection_size=16, coarse_stage=-1, fine_stage=-2, coarse_grid=2, fine_grid=3
)  # fmt: skip
TINY_HOLES = dict(
    backbone_config=TINY_RESNET, image_size=16, overlap=1, adversarial_weight=0.1, decoder_hidden_size=8,
    discriminator_hidden_size=8,
)  # fmt: skip
TINY_BIGAN = dict(
    backbone_config=TINY_RESNET, image_size=16, latent_size=6, generator_hidden_size=8, discriminator_hidden_size=8,
    joint_hidden_size=16,
)  # fmt: skip
TINY_INFOMAX = dict(backbone_config=TINY_RESNET, vector_size=8, head_hidden_size=16, critic_size=16)
TINY_EXEMPLAR = dict(backbone_config=TINY_RESNET, num_samples=120, patch_size=8, head_hidden_size=16)
CONFIGS = {
    MAEConfig: TINY, MoCoConfig: TINY_MOCO, SimCLRConfig: TINY_SIMCLR, JigsawConfig: TINY_JIGSAW,
    RelativePositionConfig: TINY_RELATIVE, ExemplarConfig: TINY_EXEMPLAR,
    InstanceDiscriminationConfig: TINY_INSTANCES, NATConfig: TINY_NAT, PIRLConfig: TINY_PIRL, CMCConfig: TINY_CMC,
    AMDIMConfig: TINY_AMDIM, DeepInfoMaxConfig: TINY_INFOMAX, ContextEncoderConfig: TINY_HOLES, BiGANConfig: TINY_BIGAN,
}  # fmt: skip
SGD = dict(optim="sgd", weight_decay=1e-4, learning_rate=1.0)
LARS = dict(optim="lars", weight_decay=1e-6, learning_rate=30.0)
CONTRASTIVE = {
    "moco": dict(model_class=MoCoForPreTraining, views="moco_v2", **SGD),
    "simclr": dict(model_class=SimCLRForPreTraining, views="simclr", **LARS),
}
PRETEXT = {
    "jigsaw": dict(model_class=JigsawForPreTraining, **SGD),
    "relative_position": dict(model_class=RelativePositionForPreTraining, **SGD),
    "exemplar": dict(model_class=ExemplarForPreTraining, **SGD),
    "instance_discrimination": dict(model_class=InstanceDiscriminationForPreTraining, **SGD),
    "nat": dict(model_class=NATForPreTraining, **SGD | dict(learning_rate=0.05)),
    "pirl": dict(model_class=PIRLForPreTraining, views="moco_v1", **SGD),
    "cmc": dict(model_class=CMCForPreTraining, **SGD),
    "amdim": dict(model_class=AMDIMForPreTraining, views="moco_v1"),
    "deep_infomax": dict(model_class=DeepInfoMaxForPreTraining),
    "context_encoder": dict(model_class=ContextEncoderForPreTraining, learning_rate=0.01),
    "bigan": dict(model_class=BiGANForPreTraining, learning_rate=0.01),
}


def pretrain(data, output_dir, model_class=MAEForPreTraining, config=None, **changes):
    """One run on `data`; returns its history."""
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=0.05,
        save_steps=1, logging_steps=5, shuffle_buffer_size=16, warmup_steps=4, seed=3,
    )  # fmt: skip
    args = TwoViewArguments(**settings | changes)
    rows, column = image_rows(load_split(args.dataset_name, streaming=args.streaming))
    if model_class.config_class in (MoCoConfig, SimCLRConfig, PIRLConfig, AMDIMConfig):
        view = Views(16, [0.5], [0.5], VIEWS[args.views])
    else:
        view = RandomResizedCropAndFlip(16, [0.5], [0.5])
    torch.manual_seed(args.seed)
    config = model_class.config_class(**CONFIGS[model_class.config_class] | (config or {}))
    return train(model_class(config), rows, ImageDecoder(column, 3, view), args).history


def weights(output_dir, step=STEPS):
    return load_file(Path(output_dir) / f"checkpoints/step_{step}/model.safetensors")


def same_weights(one, other, step=STEPS):
    one, other = weights(one, step), weights(other, step)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_killed_run_goes_on_bitwise(shards, tmp_path, streaming, workers, processes):
    """SIGKILL and SIGTERM at random moments; fresh processes each time; crosses epochs (120 rows, 24 steps x 8 or 16)."""
    options = dict(streaming=streaming, dataloader_num_workers=workers)
    [history, *_] = launch(_pretrain, shards, tmp_path / "whole", options, processes=processes)
    moments = random.Random(f"{streaming}{workers}{processes}")
    resume = options | {"resume_from_checkpoint": "auto"}
    for how, step in (("kill", 2), ("terminate", 8), ("kill", 15)):
        codes = launch(
            _pretrain, shards, tmp_path / "killed", resume, processes=processes, signal=how,
            kill_when=after_step(tmp_path / "killed", step + moments.randrange(5), moments.uniform(0, 0.05)),
        )  # fmt: skip
        assert all(code in ((-9,) if how == "kill" else (143, -15)) for code in codes), (
            codes
        )  # -15: before it was ready
        assert not (tmp_path / f"killed/checkpoints/step_{STEPS}").exists(), "the kill came too late to test anything"
    [resumed, *_] = launch(_pretrain, shards, tmp_path / "killed", resume, processes=processes)
    assert same_weights(tmp_path / "whole", tmp_path / "killed") and resumed == history


@pytest.mark.parametrize(
    "method, processes, streaming",
    [
        ("moco", 1, False),
        ("moco", 2, False),
        ("simclr", 1, False),
        ("simclr", 2, False),
        ("relative_position", 2, True),
        ("instance_discrimination", 2, False),
        ("nat", 2, False),
        ("context_encoder", 1, True),
        ("bigan", 2, False),
        # what these keep, and draw in a step, is kept and drawn by the parts of those above
        pytest.param("jigsaw", 1, False, marks=pytest.mark.slow),
        pytest.param("exemplar", 2, False, marks=pytest.mark.slow),
        pytest.param("pirl", 1, False, marks=pytest.mark.slow),
        pytest.param("cmc", 1, False, marks=pytest.mark.slow),
        pytest.param("amdim", 1, False, marks=pytest.mark.slow),
        pytest.param("deep_infomax", 1, False, marks=pytest.mark.slow),
    ],
)
def test_killed_run_of_other_methods_goes_on_bitwise(shards, tmp_path, method, processes, streaming):
    """Key encoder, queue, banks and their normalisers, batch statistics and momenta too, and what is drawn in a step."""
    options = (CONTRASTIVE | PRETEXT)[method] | dict(streaming=streaming)
    [history, *_] = launch(_pretrain, shards, tmp_path / "whole", options, processes=processes)
    resume = options | {"resume_from_checkpoint": "auto"}
    moment = after_step(tmp_path / "killed", 9, 0.02)
    codes = launch(_pretrain, shards, tmp_path / "killed", resume, processes=processes, kill_when=moment)
    assert set(codes) == {-9} and not (tmp_path / f"killed/checkpoints/step_{STEPS}").exists()
    [resumed, *_] = launch(_pretrain, shards, tmp_path / "killed", resume, processes=processes)
    assert same_weights(tmp_path / "whole", tmp_path / "killed") and resumed == history


@pytest.mark.parametrize("streaming, processes", [(False, 1), (True, 2)], ids=["rows", "stream of two processes"])
def test_killed_text_run_goes_on_bitwise(documents, tmp_path, streaming, processes):
    """Documents become rows of tokens on the way; the vocabulary is that of the run's beginning."""
    options = dict(streaming=streaming, dataloader_num_workers=int(streaming))
    [history, *_] = launch(_pretrain_text, documents, tmp_path / "whole", options, processes=processes)
    resume = options | {"resume_from_checkpoint": "auto"}
    moment = after_step(tmp_path / "killed", 9, 0.02)
    codes = launch(_pretrain_text, documents, tmp_path / "killed", resume, processes=processes, kill_when=moment)
    assert set(codes) == {-9} and not (tmp_path / f"killed/checkpoints/step_{STEPS}").exists()
    resume["vocab_size"] = 200  # would be another vocabulary, if it were learnt again
    [resumed, *_] = launch(_pretrain_text, documents, tmp_path / "killed", resume, processes=processes)
    assert same_weights(tmp_path / "whole", tmp_path / "killed") and resumed == history


def _pretrain_text(data, output_dir, options):
    settings = dict(
        output_dir=str(output_dir), dataset_name=str(data), max_steps=STEPS, per_device_train_batch_size=8, save_steps=1,
        logging_steps=5, shuffle_buffer_size=16, seed=3, train_tokenizer=True, vocab_size=300, max_seq_length=24,
    )  # fmt: skip
    args = TokenArguments(**settings | options)
    config = BERTConfig(backbone_config=TINY_BERT | {"hidden_dropout_prob": 0.1}, mask_token_id=4)
    rows, column = text_documents(args)
    tokenizer = text_tokenizer(config, args, rows, column)
    rows, decoder = text_data(config, args, rows, column, tokenizer)
    torch.manual_seed(args.seed)
    return train(BERTForPreTraining(config), rows, decoder, args, tokenizer).history


def after_step(output_dir, step, seconds):
    """A condition: the checkpoint of this step or a later one has been there for so long."""
    newest = lambda: max((int(path.name.removeprefix("step_")) for path in list_checkpoints(output_dir)), default=-1)  # noqa: E731
    return seconds_after(lambda: newest() >= step, seconds)


def _pretrain(data, output_dir, options):
    return pretrain(data, output_dir, **options)


@pytest.mark.slow
def test_twenty_kills(shards, tmp_path):
    """Contract C2 at length: SIGKILL at 20 random moments of one run, nothing lost."""
    options = dict(max_steps=STEPS * 20, resume_from_checkpoint="auto")
    launch(_pretrain, shards, tmp_path / "whole", options)
    moments = random.Random(0)
    for kill in range(20):
        moment = after_step(tmp_path / "killed", STEPS * kill + moments.randrange(STEPS), moments.uniform(0, 0.05))
        [code] = launch(_pretrain, shards, tmp_path / "killed", options, kill_when=moment)
        assert code == -9
    launch(_pretrain, shards, tmp_path / "killed", options)
    assert same_weights(tmp_path / "whole", tmp_path / "killed", STEPS * 20)


def test_two_processes_train_as_one(shards, tmp_path):
    """The whole run, views and masks included: 2 processes x 4 give the losses and weights of 1 x 8, to rounding."""
    config = {"model_class": _WithoutDropout, "save_steps": STEPS}
    one = launch(_pretrain, shards, tmp_path / "one", config | {"per_device_train_batch_size": 8})[0]
    two = launch(_pretrain, shards, tmp_path / "two", config | {"per_device_train_batch_size": 4}, processes=2)[0]
    accumulated = launch(
        _pretrain,
        shards,
        tmp_path / "three",
        config | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    )[0]
    for other, name in ((two, "two"), (accumulated, "three")):
        assert [e["loss"] for e in other] == pytest.approx([e["loss"] for e in one], rel=1e-5)
        for key, value in weights(tmp_path / "one").items():
            if "k_proj.bias" in key or key.endswith(
                "key.bias"
            ):  # its true gradient is 0, and AdamW scales up the rounding
                continue
            torch.testing.assert_close(weights(tmp_path / name)[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", CONTRASTIVE)
def test_two_processes_train_a_contrastive_model_as_one(shards, tmp_path, method):
    """Negatives, queue, batch statistics, views and shuffling included; to rounding, which batch norm amplifies."""
    options = CONTRASTIVE[method] | {"max_steps": 8, "save_steps": 8, "logging_steps": 1}
    one = launch(_pretrain, shards, tmp_path / "one", options | {"per_device_train_batch_size": 16})[0]
    two = launch(_pretrain, shards, tmp_path / "two", options, processes=2)[0]
    assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in one], rel=1e-4)
    for name in ("feature_std", "effective_rank", "projection_std", "alignment", "uniformity"):  # of the whole batch
        assert [e[name] for e in two] == pytest.approx([e[name] for e in one], rel=1e-3), name
    for key, value in weights(tmp_path / "one", 8).items():
        torch.testing.assert_close(weights(tmp_path / "two", 8)[key], value, rtol=1e-3, atol=1e-3)


class _WithoutDropout(MAEForPreTraining):
    def __init__(self, config):
        config.backbone_config.hidden_dropout_prob = 0.0  # dropout masks are drawn per process
        super().__init__(config)


def test_rows_go_on_with_other_numbers_of_processes_and_batches(shards, tmp_path):
    """From 1 x 8 to 2 x 12, at the position in the epoch (which rows come is tested with the loader)."""
    launch(_pretrain, shards, tmp_path / "run", dict(max_steps=6))
    options = dict(per_device_train_batch_size=12, max_steps=9, resume_from_checkpoint="auto")
    launch(_pretrain, shards, tmp_path / "run", options, processes=2)
    state = json.loads((tmp_path / "run/checkpoints/step_9/loader_1.json").read_text())
    assert state["rows_seen"] == 6 * 8 + 3 * 24


def test_what_is_no_checkpoint_is_refused_with_the_nearest_one(shards, tmp_path):
    (tmp_path / "run/checkpoints/step_2").mkdir(parents=True)
    for folder in (tmp_path / "run", tmp_path / "run/checkpoints"):
        with pytest.raises(InputError, match=r"is no checkpoint: expected one such as .*checkpoints/step_2\."):
            find_checkpoint(tmp_path / "run", str(folder))
    for folder in ("", str(tmp_path / "none")):
        with pytest.raises(InputError, match="is not a folder: expected auto or a checkpoint"):
            kept_tokenizer(tmp_path / "run", folder)
    with pytest.raises(InputError, match="The checkpoint / is damaged: its manifest.json is missing"):
        pretrain(shards, tmp_path / "new", resume_from_checkpoint="/")


def test_accumulation_may_change_at_a_resume(shards, tmp_path):
    """1 x 8, taken up as 4 x 2 accumulated twice: steps still end where batches do."""
    common = {"model_class": _WithoutDropout}
    launch(_pretrain, shards, tmp_path / "run", common | {"max_steps": 7, "lr_scheduler_type": "constant"})
    launch(_pretrain, shards, tmp_path / "other", common | {"lr_scheduler_type": "constant"})
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "auto"}
    resumed = launch(_pretrain, shards, tmp_path / "run", common | options | {"lr_scheduler_type": "constant"})[0]
    expected = json.loads((tmp_path / f"other/checkpoints/step_{STEPS}/state.json").read_text())["history"]
    assert [e["loss"] for e in resumed if e["step"] > 10] == pytest.approx(
        [e["loss"] for e in expected if e["step"] > 10], rel=1e-4
    )


def test_older_checkpoints_can_be_gone_back_to(shards, tmp_path, caplog):
    """What lies beyond is kept; copies and files between the checkpoints are nobody's."""
    pretrain(shards, tmp_path, max_steps=6, save_total_limit=9)
    folder = tmp_path / "checkpoints"
    (folder / "step_5").rename(folder / "step_5_backup")
    (folder / "step_3").rename(tmp_path / "elsewhere")
    (folder / "step_3").write_text("a note")
    pretrain(shards, tmp_path, max_steps=4, resume_from_checkpoint=str(folder / "step_2"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_4", "step_3"]
    assert (
        "Going on from step 2; what is beyond is kept in" in caplog.text and "aside_1: step_6, step_4." in caplog.text
    )
    assert find_damage(folder / "aside_1/step_6") is None and find_damage(folder / "step_5_backup") is None
    assert (folder / "aside_2/step_3").read_text() == "a note"


def test_a_run_goes_on_with_the_settings_that_it_is_given(shards, tmp_path):
    """Every value of the optimizer, and a schedule from the new highest rate: those of a run that had them from the start."""
    schedule = dict(lr_scheduler_type="cosine", warmup_steps=4, save_steps=3, max_steps=6)
    pretrain(shards, tmp_path / "run", **schedule)
    new = schedule | dict(learning_rate=0.2, weight_decay=0.3, adam_beta2=0.9, adam_epsilon=1e-6, logging_steps=1)
    new |= dict(per_device_train_batch_size=16, max_steps=12)
    entries = pretrain(shards, tmp_path / "run", **new, resume_from_checkpoint="auto")
    expected = pretrain(shards, tmp_path / "new", **new)
    rates = {entry["step"]: entry["learning_rate"] for entry in expected}
    assert [entry["learning_rate"] for entry in entries if entry["step"] > 6] == [rates[step] for step in range(7, 13)]
    groups = [_groups(tmp_path / run / "checkpoints/step_12") for run in ("run", "new")]
    assert groups[0] == groups[1] and groups[0][0]["weight_decay"] == 0.3
    assert groups[0] != _groups(tmp_path / "run/checkpoints/step_9") != groups[0]


def _groups(checkpoint):
    with safe_open(checkpoint / "optimizer.safetensors", "pt") as file:
        return json.loads(file.metadata()["optimizer"])["param_groups"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optim": "sgd"}, "has optim=adamw, this command sgd"),
        ({"max_steps": 1}, "is of step 2, and this run would end at step 1: raise --max_steps"),
        ({"streaming": True, "dataloader_num_workers": 1}, "has streaming=False, this command True"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_refused_before_anything_is_written(shards, tmp_path, changes, message):
    pretrain(shards, tmp_path, max_steps=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with pytest.raises(InputError, match=message):
        pretrain(shards, tmp_path, **{"max_steps": 4, "resume_from_checkpoint": "auto"} | changes)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}'])
def test_a_broken_record_of_a_run_is_one_sentence(shards, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json is broken .*: put back a copy, or remove it"):
        pretrain(shards, tmp_path, resume_from_checkpoint="auto")


def test_a_second_start_beside_a_running_one_is_refused(shards, tmp_path):
    """Until the first one has ended (or is dead: see the kills)."""
    options = dict(max_steps=3, resume_from_checkpoint="auto")
    second = []

    class StartedTwice(MAEForPreTraining):
        def after_step(self, progress):
            if progress == 0.5:
                with pytest.raises(Failed, match="is in use by a run that has not ended .process") as refused:
                    launch(_pretrain, shards, tmp_path, options)
                second.append(refused)

    pretrain(shards, tmp_path, model_class=StartedTwice, max_steps=2)
    assert second and find_damage(tmp_path / "checkpoints/step_2") is None
    launch(_pretrain, shards, tmp_path, options)


def test_data_that_has_grown_is_not_taken_for_the_same(shards, tmp_path):
    pretrain(shards, tmp_path / "run", max_steps=2)
    rows = load_split(str(shards), "train[:100]")
    with pytest.raises(DataError, match="The data has 100 rows, but had 120"):
        loader = TrainLoader(rows, None, 8, 3)
        loader.load_state_dict(json.loads((tmp_path / "run/checkpoints/step_2/loader_0.json").read_text()))


@pytest.mark.parametrize("streaming", [False, True])
def test_data_of_the_same_name_and_size_are_not_taken_for_the_same(shards, tmp_path, caplog, streaming):
    """Another first row: rows go on with a warning, a stream, whose position means nothing then, does not."""
    data, options = tmp_path / "data", dict(streaming=streaming, shuffle_buffer_size=200)
    shutil.copytree(shards, data)
    pretrain(data, tmp_path / "run", max_steps=2, **options)
    pretrain(data, tmp_path / "run", max_steps=3, resume_from_checkpoint="auto", **options)
    assert "have changed" not in caplog.text
    for path in sorted(data.iterdir()):
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
        rows.select([*range(1, len(rows)), 0]).to_parquet(path)
    options |= dict(max_steps=4, resume_from_checkpoint="auto")
    if streaming:
        with pytest.raises(DataError, match="changed since the checkpoint was written: row 0 of shard . is another"):
            pretrain(data, tmp_path / "run", **options)
    else:
        pretrain(data, tmp_path / "run", **options)
        assert "rows that were compared are others, such as row 0" in caplog.text


def test_the_tokenizer_is_part_of_each_checkpoint(documents, tmp_path):
    """Two of its entries swapped, or one file too many: the checkpoint before it is taken, and none is not made up for."""
    options = dict(max_steps=2)
    _pretrain_text(documents, tmp_path, options)
    newest, other = list_checkpoints(tmp_path)
    assert find_damage(newest) is None
    file = newest / "tokenizer/tokenizer.json"
    file.write_text(
        file.read_text().replace('"[CLS]": 2', '"[CLS]": 3', 1).replace('"[SEP]": 3', '"[SEP]": 2', 1) + " "
    )
    assert "tokenizer/tokenizer.json has" in find_damage(newest)
    assert kept_tokenizer(tmp_path, "auto") == other / "tokenizer"
    (other / "tokenizer/added_tokens.json").write_text("{}")
    assert "is no part of it" in find_damage(other)
    with pytest.raises(InputError, match="The tokenizer in the checkpoint .*step_2 is missing or damaged"):
        _pretrain_text(documents, tmp_path, options | {"resume_from_checkpoint": "auto"})


def test_a_stream_says_that_it_cannot_go_on_with_other_workers(shards, tmp_path):
    pretrain(shards, tmp_path, streaming=True, max_steps=2)
    with pytest.raises(DataError, match="another number of workers: the checkpoint has 1, this run 2"):
        pretrain(
            shards, tmp_path, streaming=True, max_steps=4, dataloader_num_workers=2, resume_from_checkpoint="auto"
        )


def seconds_after(condition, seconds):
    since = []

    def holds():
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return holds


def test_checkpoints_rotate(shards, tmp_path):
    pretrain(shards, tmp_path, max_steps=5, save_total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_5", "step_4"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(shards, tmp_path, caplog, damage):
    pretrain(shards, tmp_path / "whole", max_steps=6)
    pretrain(shards, tmp_path / "run", max_steps=6)
    newest = tmp_path / "run/checkpoints/step_6"
    content = bytearray((newest / "model.safetensors").read_bytes())
    if damage == "cut":
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
    else:
        (newest / ("optimizer.safetensors" if damage == "missing" else "manifest.json")).unlink()
    assert find_checkpoint(tmp_path / "run", "auto").name == "step_5"
    assert str(newest) in caplog.text and "damaged" in caplog.text
    pretrain(shards, tmp_path / "run", max_steps=6, resume_from_checkpoint="auto")
    assert same_weights(tmp_path / "whole", tmp_path / "run", 6)
    with pytest.raises(InputError, match="is damaged"):
        (newest / "manifest.json").write_text("{")
        find_checkpoint(tmp_path / "run", str(newest))


def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(shards, tmp_path):
    pretrain(shards, tmp_path, max_steps=2)
    with pytest.raises(Failed, match="CheckpointError: The checkpoint of step 3 could not be written to .*: .*"):
        launch(_pretrain_on_a_full_disk, shards, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_2", "step_1"]
    assert find_damage(list_checkpoints(tmp_path)[0]) is None and not list((tmp_path / "checkpoints").glob(".*"))


def _pretrain_on_a_full_disk(data, output_dir):
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # no file can grow beyond 30 kB, as on a full disk
    pretrain(data, output_dir, max_steps=4, resume_from_checkpoint="auto")


def test_an_output_folder_in_use_is_refused(shards, tmp_path):
    pretrain(shards, tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match="holds another run.*--resume_from_checkpoint auto"):
        pretrain(shards, tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match="has seed=3, this command 4"):
        pretrain(shards, tmp_path / "run", max_steps=2, seed=4, resume_from_checkpoint="auto")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        pretrain(shards, tmp_path / "mine", max_steps=1)


def test_a_batch_larger_than_the_data_is_remarked_on(tmp_path, caplog):
    caplog.set_level("WARNING", logger="hf_ssl")
    _broken_rows(tmp_path / "few", 6, every=100)
    pretrain(tmp_path / "few", tmp_path / "run", max_steps=1, per_device_train_batch_size=4)
    assert "larger than the data" not in caplog.text
    pretrain(tmp_path / "few", tmp_path / "run2", max_steps=1, per_device_train_batch_size=8)
    assert "The total batch is larger than the data, 6 rows" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_are_skipped_and_counted(tmp_path, caplog, streaming):
    """1% of the rows broken: the run goes on and reports how many; every second row broken: it ends and says so."""
    caplog.set_level("WARNING", logger="hf_ssl")
    _broken_rows(tmp_path / "few", 200, every=100)
    pretrain(tmp_path / "few", tmp_path / "run", streaming=streaming, max_steps=25)  # one epoch: two broken rows
    skipped = int(re.search(r"(\d+) broken rows were skipped among", caplog.text)[1])
    assert skipped in (1, 2, 3)  # a stream begins the next epoch
    _broken_rows(tmp_path / "many", 200, every=2)
    with pytest.raises(DataError, match="more than max_broken_fraction=0.05"):
        pretrain(tmp_path / "many", tmp_path / "run2", streaming=streaming)
    _broken_rows(tmp_path / "all", 200, every=1)
    with pytest.raises(DataError, match="could not be decoded, the last because: cannot identify image file"):
        pretrain(tmp_path / "all", tmp_path / "run3", streaming=streaming)


def test_the_limit_of_broken_rows_is_a_part_of_all_rows():
    for limit in (0.7, 1.0):
        _check_broken(61, 39, TrainingArguments(max_broken_fraction=limit))
    with pytest.raises(DataError, match="61 of 100 rows could not be decoded, more than max_broken_fraction=0.6"):
        _check_broken(61, 39, TrainingArguments(max_broken_fraction=0.6))
    _check_broken(10, 39, TrainingArguments(max_broken_fraction=0.01))
    with pytest.raises(DataError, match="1 of 40 rows could not be decoded, .*: .*limit. The last one: no picture."):
        _check_broken(1, 39, TrainingArguments(max_broken_fraction=0.0), ["no picture"])
    with pytest.raises(InputError, match=r"max_broken_fraction must lie in \[0, 1\], found 1.5"):
        TrainingArguments(max_broken_fraction=1.5)


def _broken_rows(folder, count, every):
    good = load_split(split="train[:1]").cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    rows = [{"bytes": b"not a picture" if i % every == every - 1 else good, "path": None} for i in range(count)]
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(folder / "train-00000-of-00001.parquet")


def test_a_loss_that_is_not_finite_stops_the_run(shards, tmp_path):
    with pytest.raises(InputError, match="The loss is not finite at step 5"):
        pretrain(shards, tmp_path, learning_rate=1e9, warmup_steps=0, save_steps=0)
    assert not list_checkpoints(tmp_path)


def test_collapse_is_warned_of_by_name(shards, tmp_path):
    with pytest.warns(RepresentationCollapseWarning, match="likely causes"):
        pretrain(shards, tmp_path, model_class=_Constant, max_steps=50, save_steps=0)


def test_a_run_of_a_few_steps_is_not_said_to_collapse(shards, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepresentationCollapseWarning)
        pretrain(shards, tmp_path, model_class=_Constant, save_steps=0)


@pytest.mark.parametrize("remedy", ["--micro_batch_size instead", "more processes, or a larger batch,"])
def test_accumulated_passes_are_not_one_batch(shards, tmp_path, caplog, remedy):
    """Said once, of a loss that compares the samples of a batch, and of no other."""

    class Model(SimCLRForPreTraining):
        if "micro" in remedy:
            micro_batch_size = 0

    options = dict(max_steps=1, gradient_accumulation_steps=2)
    pretrain(shards, tmp_path / "mae", **options)
    assert "compared" not in caplog.text
    pretrain(shards, tmp_path / "simclr", **options, **CONTRASTIVE["simclr"] | {"model_class": Model})
    assert (
        caplog.text.count(f"only the 8 samples of one forward pass are compared with each other; with {remedy}") == 1
    )


@pytest.mark.parametrize("broken", [{"momentum": 0.0}, {}], ids=["momentum", "none"])
def test_collapse_of_a_contrastive_model_is_warned_of(tmp_path, broken):
    """A key encoder that follows at once: queries and keys become all alike."""
    options = CONTRASTIVE["moco"] | {"save_steps": 0, "logging_steps": 10}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = pretrain(SAMPLES, tmp_path, config=broken, max_steps=100, per_device_train_batch_size=16, **options)
    assert any(issubclass(w.category, RepresentationCollapseWarning) for w in caught) == bool(broken), history
    assert {"projection_std", "alignment", "uniformity"} <= history[-1].keys()


class _Constant(MAEForPreTraining):
    """Broken on purpose: every image gets the same features."""

    def forward(self, pixel_values, sample_seeds=None, **kwargs):
        output = super().forward(pixel_values, sample_seeds)
        return SSLOutput(loss=output.loss, features=output.features * 1e-4 + 1.0)


def test_bfloat16_learns_with_the_attention_that_is_fast_in_it(shards, tmp_path):
    exact = launch(_pretrain, shards, tmp_path / "fp32", dict(save_steps=0))[0]
    rounded = launch(_pretrain_bf16, shards, tmp_path / "bf16")[0]
    assert rounded[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.02) and rounded != exact
    assert rounded[-1]["loss"] < rounded[0]["loss"]
    assert weights(tmp_path / "bf16")["decoder.mask_token"].dtype == torch.float32


def _pretrain_bf16(data, output_dir):
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # what `accelerate launch --mixed_precision bf16` sets
    return pretrain(data, output_dir, model_class=_ChecksAttention, save_steps=0)


class _ChecksAttention(MAEForPreTraining):
    def forward(self, pixel_values, sample_seeds=None, **kwargs):
        assert self.vit.config._attn_implementation == self.decoder.config._attn_implementation == "eager"
        return super().forward(pixel_values, sample_seeds)


def test_tensorboard_gets_the_log(shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = pretrain(shards, tmp_path, report_to="tensorboard", max_steps=10)
    [folder] = {path.parent for path in tmp_path.glob("logs/hf_ssl/events*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([entry["loss"] for entry in history])
    assert {"learning_rate", "feature_std", "effective_rank", "samples_per_second"} <= set(events.Tags()["scalars"])


def test_trainer_of_transformers_trains_our_models(tmp_path):
    from transformers import Trainer
    from transformers import TrainingArguments as TrainerArguments

    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig(**TINY))
    images = [
        {"pixel_values": torch.linspace(0, k, 256).sin().reshape(1, 16, 16).expand(3, 16, 16)} for k in range(1, 65)
    ]
    arguments = TrainerArguments(
        str(tmp_path), max_steps=300, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=50, save_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=images)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "name, value",
    [
        ("lr_scheduler_type", "cosin"),
        ("lr_scheduler_type", "cosine,step"),
        ("optim", "adamw,sgd"),
        ("views", "moco_v3"),
        ("image_size", 0),
        ("momentum", 1.0),
        ("blur_probability", 2.0),
        ("report_to", "tensorbord"),
        ("max_steps", 0),
        ("logging_steps", 0),
        ("learning_rate", -1.0),
        ("per_device_train_batch_size", 0),
        ("per_device_train_batch_size", 10**8),
        ("weight_decay", float("nan")),
        ("num_train_epochs", float("inf")),
        ("min_crop_scale", float("nan")),
        ("seed", 2**64),
        ("seed", -1),
    ],
)
def test_impossible_arguments_are_named(name, value):
    with pytest.raises(InputError, match=name):
        TwoViewArguments(**{name: value})


def test_a_stream_of_unknown_length_wants_max_steps(tmp_path):
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"image": None}]))
    arguments = TrainingArguments(output_dir=str(tmp_path), streaming=True)
    with pytest.raises(InputError, match="--max_steps"):
        train(MAEForPreTraining(MAEConfig(**TINY)), stream, None, arguments)


def test_activations_computed_twice_make_the_same_run(shards, tmp_path):
    options = dict(model_class=MoCoForPreTraining, views="moco_v2", max_steps=3, **SGD)
    history = pretrain(shards, tmp_path / "kept", **options)
    assert pretrain(shards, tmp_path / "twice", activation_checkpointing=True, **options) == history
    assert same_weights(tmp_path / "kept", tmp_path / "twice", step=3)


def test_a_network_without_blocks_says_so():
    model = CPCTextForPreTraining(CPCTextConfig(backbone_config=TINY_CPC_TEXT, context_size=12))
    arguments = TrainingArguments(activation_checkpointing=True, max_steps=1)
    with pytest.raises(
        InputError, match="activation_checkpointing: CPCTextForPreTraining with a backbone .*has no blocks"
    ):
        train(model, [], None, arguments)
