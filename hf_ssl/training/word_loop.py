"""The loop of word2vec: no batches and no optimizer, but blocks of text that several processes work on at once.

They share the two tables in memory and do not wait for each other (Hogwild, Niu et al. 2011). Those of a launch have parts
of the text; each has helpers, `cpu_threads` less one, for parts of its blocks. Helpers are processes too, since Python
threads would wait for each other between any two of the small products. Where one process works alone, a run is repeatable
bit by bit, and one that was killed goes on as if it had not been; else the order of the updates is the machine's.
"""

import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from ..errors import InputError
from ..methods._random import seed_from
from .checkpoints import load_checkpoint, save_checkpoint
from .health import representation_health, warn_if_collapsed
from .loop import TrainingRun, begin_run
from .run_folder import claimed, record_run
from .signals import StopSignals
from .trackers import Tracking, tracker_names
from .word_updates import choose_updates

logger = logging.getLogger(__name__)
BLOCK_WORDS = 100_000  # of all processes together, between two looks at the clock
LEAST_RATE = 1e-4  # times the first rate: word2vec.c
SAMPLE = 512  # words whose loss is logged


@torch.no_grad()
def train_words(model, corpus, args, on_save=None) -> TrainingRun:
    """Train a Word2VecForPreTraining on a `hf_ssl.data.words.Corpus`, from scratch or from a checkpoint.

    A step is a block of about 100,000 words. on_save: as `hf_ssl.training.train` takes it. SIGTERM and Ctrl-C save a
    checkpoint and end the program with exit code 143 or 130.
    """
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(log_with=tracker_names(args.report_to) or None, project_dir=output_dir / "logs")
    processes, process = accelerator.num_processes, accelerator.process_index
    on_cpu = accelerator.device.type == "cpu"
    threads = args.cpu_threads or max(1, (os.cpu_count() or 1) // processes)
    if not on_cpu or sys.platform != "linux":  # helpers are forked
        threads = 1
    # of an epoch, or of what is read of it
    blocks = max(1, round(corpus.total / BLOCK_WORDS), math.ceil(1 / args.num_train_epochs))
    if corpus.length < blocks:
        raise InputError(
            f"Process {process} has {corpus.length} of the {corpus.total:,} words: start fewer processes."
        )
    max_steps = max(1, math.ceil(blocks * args.num_train_epochs))
    model = accelerator.prepare_model(model.eval(), evaluation_mode=True)  # on its device
    if processes * threads > 1:
        _share_tables(model, accelerator)
    updates = choose_updates(model)
    checkpoint, run, facts = begin_run(accelerator, model, corpus.rows, args, max_steps, unit="words")
    if facts and on_cpu:
        facts["hardware"]["threads"] = threads  # not torch's

    step, history, seconds, position = 0, [], 0.0, None
    if checkpoint is not None:
        state, position = load_checkpoint(accelerator, model, None, checkpoint)
        step, history, seconds = state["step"], state["history"], state["seconds"]
        if processes != state["processes"]:
            raise InputError(f"The checkpoint is of {state['processes']} processes, this run has {processes}.")
        if state["text"] != corpus.digest:
            raise InputError(
                "The text has changed since this run began: its words, or how often they occur, are others."
            )
    started = time.perf_counter() - seconds
    if accelerator.is_main_process:
        record_run(output_dir, run, checkpoint)
        sizes = f"{corpus.total:,}", f"{len(corpus.words):,}", f"{corpus.unknown:,}"
        logger.info("%s words of text; vocabulary %s, %s words were rarer and are left out", *sizes)
        logger.info("%d blocks in all, on %d processes x %d threads", max_steps, processes, threads)
    tracking = Tracking(accelerator, run, facts, step)

    def save():
        state = {"history": history, "seconds": time.perf_counter() - started, "text": corpus.digest}
        accelerator.wait_for_everyone()  # nobody writes to the tables while they are saved
        save_checkpoint(accelerator, model, None, output_dir, step, state, position, args.save_total_limit)
        if accelerator.is_main_process:
            reached = {"steps": step, "max_steps": max_steps, "samples_seen": round(step * corpus.total / blocks)}
            record_run(output_dir, run | {"facts": facts | reached | {"seconds": round(state["seconds"], 1)}})
            if on_save is not None and step < max_steps:
                on_save(TrainingRun(model, history, args, True))
        accelerator.wait_for_everyone()

    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are small: the parts of a block run side by side instead
    progress = tqdm(
        total=max_steps, initial=step, desc="training", unit="block", disable=not accelerator.is_main_process
    )
    accelerator.wait_for_everyone()
    stream = corpus.blocks(blocks, step // blocks, step % blocks, position)
    clock, timed_from = time.perf_counter(), step
    helpers = _helpers(updates, threads - 1)
    with tracking, claimed(output_dir), StopSignals(accelerator) as signals, helpers as update:
        while step < max_steps:
            epoch, _, ids, position = next(stream)
            ids = ids.to(accelerator.device)
            first_rate, last_rate = (
                args.learning_rate * max(LEAST_RATE, 1 - done / max_steps) for done in (step, step + 1)
            )
            seeds = [seed_from(args.seed, step, process, thread) for thread in range(threads)]
            update(ids, first_rate, last_rate, seeds)
            step += 1
            progress.update()

            stop = signals.agreed(step)
            if step % args.logging_steps == 0 or step == max_steps:
                output = model(**_sample(model.config, ids, seed_from(args.seed, step)))
                loss = sum(gather_object([output.loss.item()])) / processes
                if not math.isfinite(loss):
                    raise InputError(f"The loss is not finite at step {step}: lower the learning rate.")
                health = representation_health(output)
                entry = {"step": step, "epoch": epoch, "loss": loss, "learning_rate": last_rate} | health
                history.append(entry)
                speed = (step - timed_from) * corpus.total / blocks / (time.perf_counter() - clock)
                clock, timed_from = time.perf_counter(), step
                progress.set_postfix({"loss": f"{loss:.4f}", "words/s": f"{speed:,.0f}"})
                tracking.log({k: v for k, v in entry.items() if k != "step"} | {"words_per_second": speed}, step)
                if health and step >= 0.1 * max_steps and accelerator.is_main_process:
                    warn_if_collapsed(health, step)
            if stop or step == max_steps or (args.save_steps and step % args.save_steps == 0):
                save()
            if stop and step < max_steps:
                progress.close()
                accelerator.state.destroy_process_group()
                signals.end_program(step)

    progress.close()
    torch.set_num_threads(torch_threads)
    return TrainingRun(model, history, args, accelerator.is_main_process)


@contextmanager
def _helpers(updates, count):
    """A function of (ids, first_rate, last_rate, seeds) that trains on as many parts of a block at once as there are seeds:
    this process on the first, `count` forked ones on the others."""
    context, ends = multiprocessing.get_context("fork" if count else None), []
    for _ in range(count):
        end, far_end = context.Pipe()
        context.Process(target=_help, args=(updates, far_end, os.getpid())).start()
        far_end.close()
        ends.append(end)

    def update(ids, first_rate, last_rate, seeds):
        own, *others = ids.tensor_split(len(seeds))
        for end, part, seed in zip(ends, others, seeds[1:], strict=True):
            end.send((part.numpy(), first_rate, last_rate, seed))
        updates(own, first_rate, last_rate, seeds[0])
        try:
            for end in ends:
                end.recv()
        except (EOFError, ConnectionError) as error:
            raise InputError(
                "A helper process was ended from outside, as it is when memory runs out: lower cpu_threads; the last "
                "checkpoint is whole."
            ) from error

    try:
        yield update
    finally:
        for end in ends:
            with suppress(ConnectionError):  # of one that has ended
                end.send(None)


def _help(updates, end, parent):
    for number in (signal.SIGTERM, signal.SIGINT):  # this process's parent says when it is over
        signal.signal(number, signal.SIG_IGN)
    while True:
        while not end.poll(1):
            if os.getppid() != parent:  # killed: nobody will say anything
                return
        work = end.recv()
        if work is None:
            return
        ids, *how = work
        updates(torch.from_numpy(ids), *how)
        end.send(True)


def _share_tables(model, accelerator):
    """Put both tables where all processes of this machine see them: a file without a name, mapped by each."""
    processes = accelerator.num_processes
    if int(os.environ.get("LOCAL_WORLD_SIZE", processes)) != processes:
        raise InputError("The processes of word2vec share their tables in memory: start all of them on one machine.")
    if accelerator.device.type != "cpu":
        raise InputError("The processes of word2vec share their tables in memory: on a GPU start only one.")
    for table in (model.words.embeddings.weight, model.output_embeddings.weight):
        path = [None]
        if accelerator.is_main_process:
            memory, size = Path("/dev/shm"), table.numel() * table.element_size()
            fits = memory.is_dir() and shutil.disk_usage(memory).free > 2 * size  # it is small in many containers
            handle, path[0] = tempfile.mkstemp(prefix="hf_ssl_", dir=memory if fits else None)
            os.truncate(handle, size)
            os.close(handle)
        broadcast_object_list(path)
        shared = torch.from_file(path[0], shared=True, size=table.numel(), dtype=table.dtype).view_as(table)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.unlink(path[0])
            shared.copy_(table)
        table.data = shared
    accelerator.wait_for_everyone()


def _sample(config, ids, seed):
    """A batch of `Word2VecForPreTraining.forward`: some words of a block, subsampling aside, and those around them."""
    lines = (ids == 0).cumsum(0)
    words, lines = ids[ids != 0], lines[ids != 0]
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randint(len(words), (min(SAMPLE, len(words)),), generator=generator).to(ids.device)
    reach = torch.cat([torch.arange(-config.window, 0), torch.arange(1, config.window + 1)]).to(ids.device)
    around = middle[:, None] + reach  # (N, C)
    place = around.clamp(0, len(words) - 1)
    beside = (around == place) & (lines[place] == lines[middle, None])
    seeds = torch.arange(len(middle), device=ids.device) + seed
    return {"input_ids": torch.where(beside, words[place], 0), "labels": words[middle], "sample_seeds": seeds}


__all__ = ["train_words"]
