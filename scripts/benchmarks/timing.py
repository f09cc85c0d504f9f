"""Fair turns on a busy machine, on a CPU or a device, memory of a fresh process, and how both are printed."""

import contextlib
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

SPAWN = multiprocessing.get_context("spawn")
BLOCK = 31 * 2**18  # numbers, 31 MiB: just below what glibc never keeps
STEPS = 2  # whose memory counts: gradients and momenta come with the first
IN_A_ROW = (
    10  # calls on a device between two looks at the clock: the host prepares one while the device computes another
)


def device():
    """Where Accelerate puts a model, in spawned processes too: --device decides it by ACCELERATE_USE_CPU."""
    return PartialState().device


def place():
    """What gave a number, for the titles."""
    if device().type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.get_device_module(device()).get_device_name()


def synchronize():
    if device().type != "cpu":
        torch.accelerator.synchronize()


def interleave(variants, rounds):
    """{name: seconds of each round} of {name: function that returns its seconds}, after one round of warm-up."""
    seconds = {name: [] for name in variants}
    for _ in tqdm(range(rounds + 1), desc="rounds, the first to warm up", unit="round"):
        for name, run in variants.items():
            seconds[name].append(run())
    return {name: own[1:] for name, own in seconds.items()}


def timed(function, *arguments):
    """Seconds of a call; on a device the mean of some in a row."""
    calls = 1 if device().type == "cpu" else IN_A_ROW
    return elapsed(partial(function, *arguments), calls) / calls


def elapsed(function, calls):
    synchronize()
    start = perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return perf_counter() - start


def interleave_processes(loops, rounds, window):
    """`interleave` of endless loops with workers, {name: (generator function, *arguments)}, `window` items at a time.

    A loop and its workers are a group of processes, which is stopped out of its turn, so that no worker works ahead.
    """
    turns = {}
    try:
        for name, loop in loops.items():
            turn, far_end = SPAWN.Pipe()
            start_method = multiprocessing.get_start_method()  # of the workers, which a spawned process would spawn
            how = far_end, window, torch.get_num_threads(), start_method
            process = SPAWN.Process(target=_serve, args=(*how, *loop))
            turns[name] = turn, process
            process.start()
            far_end.close()
            turn.recv()  # its workers have started
            os.killpg(process.pid, signal.SIGSTOP)
        return interleave({name: partial(_window, *turn) for name, turn in turns.items()}, rounds)
    finally:
        for _, process in turns.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _serve(turn, window, threads, start_method, loop, *arguments):
    os.setsid()
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(threads)
    # freed at once, as in any training: glibc then keeps smaller blocks instead of mapping them anew
    torch.zeros(BLOCK)
    items = loop(*arguments)
    next(items)
    turn.send("ready")
    while turn.recv():
        turn.send(elapsed(partial(next, items), window))


def _window(turn, process):
    os.killpg(process.pid, signal.SIGCONT)
    turn.send("go")
    seconds = turn.recv()
    os.killpg(process.pid, signal.SIGSTOP)
    return seconds


def peak_memory(build, *arguments):
    """MiB that the steps of `build(*arguments)`, a function, take above what is held before them: of a device by its
    tensors, else by a fresh process, on Linux only."""
    end, far_end = SPAWN.Pipe()
    process = SPAWN.Process(target=_measure, args=(far_end, torch.get_num_threads(), build, *arguments))
    process.start()
    far_end.close()
    growth = end.recv()
    process.join()
    return growth


def _measure(end, threads, build, *arguments):
    torch.set_num_threads(threads)
    step = build(*arguments)
    if device().type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    else:
        torch.get_device_module(device()).reset_peak_memory_stats()
        before = torch.get_device_module(device()).memory_allocated() / 2**20
    for _ in range(STEPS):
        step()
    if device().type == "cpu":
        peak = _resident("VmHWM")
    else:
        peak = torch.get_device_module(device()).max_memory_allocated() / 2**20
    end.send(peak - before)


def _resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def print_speed(title, seconds, references):
    """A line a variant: how many times as fast as each of the `references`, {column's title: name of a variant}."""
    print(f"\n{title}")
    width = max(map(len, seconds)) + 2
    print(f"{'times as fast as':{width}s}" + "".join(f"{column:>22s}  (minima)" for column in references))
    for name, own in seconds.items():
        ratios = [
            (median(seconds[other]) / median(own), min(seconds[other]) / min(own)) for other in references.values()
        ]
        cells = "".join(f"{ratio:21.2f}x {f'({least:.2f}x)':>9s}" for ratio, least in ratios)
        print(f"{name:{width}s}{cells}   ({1e3 * median(own):.0f} ms here and now)")


def verdict(what, value, demand, most=False, unit="x"):
    met = value <= demand if most else value >= demand
    print(
        f"{'met   ' if met else 'MISSED'} {what}: {value:.2f}{unit}, demanded at {'most' if most else 'least'} {demand}{unit}"
    )
