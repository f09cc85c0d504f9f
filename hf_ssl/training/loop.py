"""The one training loop: bare Accelerate, one function, from top to bottom."""

import inspect
import logging
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, broadcast, gather_object
from tqdm.auto import tqdm

from ..data.fingerprint import difference, rows_fingerprint
from ..data.loader import TrainLoader, without_augmentation
from ..data.loading import DataError
from ..errors import InputError
from ..methods._backbone import checkpoint_activations
from ..methods._base import SSLModel, SSLOutput
from ..methods._distributed import gather
from ..methods._random import seed_from
from .arguments import TrainingArguments
from .checkpoints import (
    is_sharded,
    load_checkpoint,
    save_checkpoint,
)
from .health import LEAST_STEPS, representation_health, warn_if_collapsed
from .optimizers import advance, build_optimizer, build_scheduler
from .records import WEIGHTS, describe_run
from .run_folder import claim_output_dir, claimed, record_run
from .signals import StopSignals
from .trackers import Tracking, tracker_names

logger = logging.getLogger(__name__)
REFERENCE_BATCH = 256  # learning rates are given for this many samples a step, as in the papers


@dataclass
class TrainingRun:
    """What training leaves: the model in one piece (on the main process), and one dict per log entry."""

    model: SSLModel
    history: list[dict]
    args: TrainingArguments
    is_main_process: bool


def train(model: SSLModel, data, decoder, args: TrainingArguments, tokenizer=None, on_save=None) -> TrainingRun:
    """Train `model`, from scratch or from a checkpoint.

    data: a `datasets.Dataset` or `IterableDataset`. decoder: what turns its rows to batches (`hf_ssl.data.loader`), its
    `view` what turns those to `forward`'s arguments on the device. tokenizer: of text, kept beside the checkpoints.
    on_save: called on the main process with the run so far after each checkpoint but the last (`hf_ssl.hub.push_save`).
    A model's `before_epoch` is called before the first step that takes a row of an epoch, with the number of that epoch:
    where batches span the border of two, the last rows of the one come after it. A step that begins several epochs calls
    it for the last. A run that is taken up calls it if it stops right before such a step, and not in the middle.
    SIGTERM and Ctrl-C save a checkpoint and end the program with exit code 143 or 130.
    """
    if args.cpu_threads:
        torch.set_num_threads(args.cpu_threads)
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=tracker_names(args.report_to) or None,
        project_dir=output_dir / "logs",
        # queues and batch statistics are kept alike by the methods; DDP would overwrite them by the first process's
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    total_batch = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    max_steps = _count_steps(args, data, total_batch)
    learning_rate = args.learning_rate * total_batch / REFERENCE_BATCH
    _check_rows(accelerator, model, data)
    try:
        model.check_batch(args.per_device_train_batch_size, accelerator.num_processes)
        if args.activation_checkpointing:
            checkpoint_activations(model)
    except ValueError as error:
        raise InputError(str(error)) from error
    checkpoint, run, facts = begin_run(accelerator, model, data, args, max_steps)
    fingerprint = rows_fingerprint(data) if accelerator.is_main_process and hasattr(data, "__len__") else None

    choose_kernels(model, accelerator)
    optimizer = build_optimizer(model, learning_rate, args, fused=not is_sharded(accelerator))
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    core = accelerator.unwrap_model(model)
    for buffer in core.buffers():  # the weights have been sent by `prepare`
        broadcast(buffer)
    stepped = _plain_optimizer(accelerator, optimizer)
    # not prepared: Accelerate would step it once per process
    scheduler = build_scheduler(stepped, args, max_steps)
    loader = TrainLoader(
        data, decoder, args.per_device_train_batch_size, args.seed, args.dataloader_num_workers,
        args.shuffle_buffer_size, accelerator.process_index, accelerator.num_processes, core.uses_sample_indices,
    )  # fmt: skip

    step, history, seconds, changed = 0, [], 0.0, None
    sums, summed = {}, 0  # of the loss and the method's metrics, over the forward passes since the last log entry
    if checkpoint is not None:
        state, loader_state = load_checkpoint(accelerator, model, optimizer, checkpoint)
        loader.load_state_dict(loader_state)
        advance(scheduler, state["step"])
        accelerator.step = 0  # of gradient accumulation; checkpoints are written between steps
        step, history, seconds = state["step"], state["history"], state["seconds"]
        if accelerator.num_processes == state["processes"]:
            own = state["sums"][accelerator.process_index]
            sums = {name: torch.tensor(value, device=accelerator.device) for name, value in own.items()}
            summed = state["summed"]
        if fingerprint and state.get("data"):
            changed = difference(state["data"], fingerprint)
    if accelerator.is_main_process:
        record_run(output_dir, run, checkpoint)
    started = time.perf_counter() - seconds
    tracking = Tracking(accelerator, run, facts, step)

    def save():
        # a float32 survives JSON exactly
        gathered = gather_object([{name: value.tolist() for name, value in sums.items()}])
        if not all(math.isfinite(each.get("loss", 0.0)) for each in gathered):
            raise _not_finite(step)
        state = {"history": history, "sums": gathered, "summed": summed, "data": fingerprint}
        state["seconds"] = time.perf_counter() - started
        save_checkpoint(
            accelerator,
            model,
            optimizer,
            output_dir,
            step,
            state,
            loader.state_dict(),
            args.save_total_limit,
            tokenizer,
        )
        whole = whole_model() if on_save is not None and step < max_steps else None
        if accelerator.is_main_process:
            reached = {"steps": step, "max_steps": max_steps, "samples_seen": loader.rows_seen}
            record_run(output_dir, run | {"facts": facts | reached | {"seconds": round(state["seconds"], 1)}})
            if whole is not None:
                on_save(TrainingRun(whole, history, args, True))

    def whole_model():
        """The model in one piece, on the main process."""
        if not is_sharded(accelerator):
            return core
        weights, whole = accelerator.get_state_dict(model), type(core)(core.config)
        if accelerator.is_main_process:
            whole.load_state_dict(weights)
        return whole

    # closing: an abandoned stream may abort the interpreter at exit
    with tracking, claimed(output_dir), StopSignals(accelerator) as signals, closing(iter(loader)) as batches:
        _log_plan(
            accelerator, args, model, loader.epoch_length, total_batch, learning_rate, max_steps, step, checkpoint
        )
        if changed:
            logger.warning("The data have changed since the checkpoint was written: %s.", changed)
        progress = tqdm(
            total=max_steps, initial=step, desc="training", disable=not accelerator.is_main_process, dynamic_ncols=True
        )
        clock, timed_from = time.perf_counter(), step
        while step < max_steps:
            if hasattr(core, "before_epoch") and (epoch := loader.epoch_begun_by(total_batch)) is not None:
                _begin_epoch(accelerator, core, loader, epoch, args.seed, stepped)
            for micro_step in range(args.gradient_accumulation_steps):
                batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in next(batches).items()}
                indices = {"sample_indices": batch.pop("sample_indices")} if core.uses_sample_indices else {}
                batch = decoder.view(**batch) | indices
                # all randomness inside the step follows from (seed, step, process): there is no generator state to save
                _seed(accelerator.device, seed_from(args.seed, step, micro_step, accelerator.process_index))
                with accelerator.accumulate(model):
                    output = model(**batch)
                    accelerator.backward(output.loss)
                    if accelerator.sync_gradients:
                        if args.max_grad_norm:
                            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                        stepped.step()
                        stepped.zero_grad()
                metrics = {"loss": output.loss} | (output.metrics or {})
                sums = {name: sums.get(name, 0) + value.detach() for name, value in metrics.items()}
                summed += 1
            scheduler.step()
            step += 1
            core.after_step(step / max_steps)
            progress.update()

            stop = signals.agreed(step)
            if step % args.logging_steps == 0 or step == max_steps:
                own = {name: value.tolist() for name, value in sums.items()}
                gathered = gather_object([(own, loader.broken, loader.reasons.get("broken"))])
                means = _means([item[0] for item in gathered], summed)
                loss = means.pop("loss")
                if not math.isfinite(loss):
                    raise _not_finite(step)
                sums, summed = {}, 0
                reasons = [item[2] for item in gathered if item[2]]
                _check_broken(sum(item[1] for item in gathered), loader.rows_seen, args, reasons)
                health = representation_health(_of_all_processes(output))
                entry = {
                    "step": step,
                    "epoch": loader.epoch,
                    "loss": loss,
                    "learning_rate": scheduler.get_last_lr()[0],
                }
                entry |= means | health
                history.append(entry)
                speed = (step - timed_from) * total_batch / (time.perf_counter() - clock)
                clock, timed_from = time.perf_counter(), step
                progress.set_postfix({"loss": f"{loss:.4f}", "samples/s": f"{speed:.0f}"})
                tracking.log({k: v for k, v in entry.items() if k != "step"} | {"samples_per_second": speed}, step)
                if health and step >= max(LEAST_STEPS, 0.1 * max_steps) and accelerator.is_main_process:
                    warn_if_collapsed(health, step)
            if stop or step == max_steps or (args.save_steps and step % args.save_steps == 0):
                save()
            if stop and step < max_steps:
                progress.close()
                accelerator.state.destroy_process_group()  # trackers are closed on the way out
                signals.end_program(step)

        progress.close()
        gathered = gather_object([({"broken": loader.broken, "unfit": loader.unfit}, loader.reasons)])
        for kind in ("broken", "unfit"):
            number = sum(counts[kind] for counts, _ in gathered)
            if number and accelerator.is_main_process:
                reasons = [
                    last[kind] for _, last in gathered if kind in last
                ]  # of what a checkpoint has counted: none
                because = f", the last because: {reasons[0]}" if reasons else ""
                logger.warning("%d %s rows were skipped among %d%s.", number, kind, loader.rows_seen + number, because)
    core = whole_model()
    return TrainingRun(core.eval(), history, args, accelerator.is_main_process)


def begin_run(accelerator, model, data, args, max_steps, unit="samples"):
    """Take the output folder; (the checkpoint to go on from or None, what `record_run` writes, the facts of the run on the main
    process). unit: what the run reads and counts."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision not in ("no", "bf16"):
        raise InputError(
            f"mixed_precision '{accelerator.mixed_precision}' cannot be had on a CPU, which would train in float32: expected no "
            "or bf16."
        )
    checkpoint, run = claim_output_dir(accelerator, Path(args.output_dir), model.config, args, max_steps)
    if not accelerator.is_main_process:
        return checkpoint, run, {}
    parameters = sum(p.numel() for p in model.parameters())
    begun_from = [getattr(args, name, None) for name in WEIGHTS]
    return checkpoint, run, describe_run(accelerator, args.dataset_name, data, parameters, unit, begun_from)


def _check_rows(accelerator, model, data):
    """Refuse data, and ways to train, that a method which knows all rows cannot go with."""
    name, num_samples = type(model).__name__, getattr(model.config, "num_samples", None)
    once_an_epoch = hasattr(model, "before_epoch")
    if (model.uses_sample_indices or num_samples is not None or once_an_epoch) and not hasattr(data, "__len__"):
        raise InputError(f"{name} knows each row by its number, which a stream does not have: leave out --streaming.")
    if num_samples is not None and num_samples != len(data):
        raise InputError(
            f"{name} was built for num_samples={num_samples}, but the data have {len(data)} rows: build it with as many."
        )
    if once_an_epoch and is_sharded(accelerator):
        raise InputError(
            f"{name} works on all rows once an epoch, for which each process needs all weights: found "
            f"{accelerator.distributed_type.value}, expected plain processes."
        )


def _begin_epoch(accelerator, model, loader, epoch, seed, optimizer):
    """Call a method's `before_epoch` in eval mode, without gradient; all processes then have the first one's buffers, and of
    parameters that were drawn anew the first one's values and an optimizer that knows nothing of the old ones."""
    _seed(accelerator.device, seed_from(seed, epoch, -1))  # for what it draws: alike in all processes
    model.eval()
    try:
        with torch.no_grad():
            drawn = model.before_epoch(epoch, lambda: _features_of_all_rows(accelerator, model, loader, epoch)) or ()
    except ValueError as error:  # of data that do not fit the method
        raise InputError(str(error)) from error
    model.train()
    for tensor in (*model.buffers(), *(parameter.data for parameter in drawn)):
        broadcast(tensor)
    for parameter in drawn:
        for value in optimizer.state.get(parameter, {}).values():
            value.zero_()  # momenta, and Adam's count of steps: then all is as in a new optimizer


def _features_of_all_rows(accelerator, model, loader, epoch):
    """(num_rows, D) float32 of all rows in their order, on every process: `embed` of them without augmentation."""
    decoder = without_augmentation(loader.decoder)
    wanted, features = inspect.signature(model.embed).parameters, []
    for batch in loader.in_row_order(decoder, epoch):
        batch = decoder.view(**{k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items()})
        with accelerator.autocast():
            features.append(model.embed(**{name: batch[name] for name in wanted if name in batch}).float())
    return gather(torch.cat(features))[: len(loader.data)]


def _count_steps(args, data, total_batch):
    if args.max_steps > 0:
        return args.max_steps
    if hasattr(data, "__len__"):
        rows = len(data)
    else:
        splits = data.info.splits or {}
        rows = splits[args.train_split].num_examples if args.train_split in splits else None
    if not rows:
        raise InputError(
            "The stream does not say how many rows it has: give --max_steps instead of --num_train_epochs."
        )
    return max(1, math.ceil(args.num_train_epochs * rows / total_batch))


def _of_all_processes(output):
    """What the health of the representation is measured on, of the whole batch."""
    names = ("features", "projections", "projections_2")
    return SSLOutput(**{name: gather(output[name].detach()) for name in names if output.get(name) is not None})


def _means(gathered, passes):
    """{name: mean over processes and forward passes} of each process's sums; `name_1`, `name_2` ... of a vector's."""
    means = {}
    for name in gathered[0]:
        mean = torch.tensor([sums[name] for sums in gathered], dtype=torch.float64).mean(0) / passes
        if mean.ndim == 0:
            means[name] = mean.item()
        else:
            means |= {f"{name}_{i}": value for i, value in enumerate(mean.tolist(), 1)}
    return means


def choose_kernels(model, accelerator):
    """What is fastest on this device: convolutions with the channels of a pixel side by side, everywhere; on CPUs in
    bfloat16 attention as two matrix products, since the fused one's backward takes four times as long."""
    if not is_sharded(accelerator):  # which wants plain strides
        model.to(memory_format=torch.channels_last)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        model.set_attn_implementation("eager")


def _plain_optimizer(accelerator, optimizer):
    """The optimizer without Accelerate's wrapper, which looks for a package on disk twice a step; kept where it has work:
    gradient scaling, and the strategies that step by themselves."""
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    wrapped = accelerator.scaler is not None or accelerator.distributed_type not in plain
    return optimizer if wrapped else optimizer.optimizer


def _seed(device, seed):
    """torch.manual_seed asks every kind of device that torch knows, which takes longer than the rest of the loop."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _not_finite(step):
    return InputError(
        f"The loss is not finite at step {step}: lower the learning rate, lengthen the warm-up or set --max_grad_norm 1; the "
        "last checkpoint is from before."
    )


def _check_broken(broken, rows_seen, args, reasons=()):
    limit = args.max_broken_fraction
    if broken > (limit and max(10, limit * (rows_seen + broken))):  # of few rows, one broken one is no fraction
        raise DataError(
            f"{broken} of {rows_seen + broken} rows could not be decoded, more than max_broken_fraction="
            f"{args.max_broken_fraction}: repair the data or raise the limit."
            + (f" The last one: {reasons[0]}." if reasons else "")
        )


def _log_plan(accelerator, args, model, rows, total_batch, learning_rate, max_steps, step, checkpoint):
    if not accelerator.is_main_process:
        return
    size, processes = sum(p.numel() for p in model.parameters()) / 1e6, accelerator.num_processes
    name, precision = type(accelerator.unwrap_model(model)).__name__, accelerator.mixed_precision.replace("no", "fp32")
    logger.info("%s: %.1f M parameters on %s x %d, %s", name, size, accelerator.device.type, processes, precision)
    logger.info(
        "total batch %d = %d x %d processes x %d accumulated; learning rate %.3g = %.3g x %d / %d; %d steps",
        total_batch, args.per_device_train_batch_size, processes, args.gradient_accumulation_steps,
        learning_rate, args.learning_rate, total_batch, REFERENCE_BATCH, max_steps,
    )  # fmt: skip
    if rows is not None and total_batch > rows:
        logger.warning("The total batch is larger than the data, %d rows: each batch has rows more than once.", rows)
    if args.gradient_accumulation_steps > 1 and accelerator.unwrap_model(model).compares_samples:
        has_micro_batches = hasattr(accelerator.unwrap_model(model), "micro_batch_size")
        logger.warning(
            "gradient_accumulation_steps=%d: the learning rate is that of the total batch, but only the %d samples of one "
            "forward pass are compared with each other; with %s all of them are.",
            args.gradient_accumulation_steps, total_batch // args.gradient_accumulation_steps,
            "--micro_batch_size instead" if has_micro_batches else "more processes, or a larger batch,",
        )  # fmt: skip
    for part, factor in accelerator.unwrap_model(model).learning_rate_factors.items():
        logger.info("learning rate of %s: x %g", part, factor)
    if checkpoint is not None:
        logger.info("going on from %s at step %d", checkpoint, step)
