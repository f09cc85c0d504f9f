"""Real processes for tests: alone or as a gloo group, killed at will, started from a server that has the imports done."""

import multiprocessing
import os
import socket
import time
import traceback

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_ssl.training", "hf_ssl.data", "hf_ssl.hub", "hf_ssl.evaluation"])


class Failed(Exception):
    """A process ended with an error; the message is its traceback or exit code."""


def launch(function, *arguments, processes=1, kill_when=None, signal="kill", timeout=120):
    """Run `function(*arguments)` in `processes` fresh processes and return their results, by rank.

    kill_when: asked until it says True; all are then killed (SIGKILL, or SIGTERM with signal="terminate"), and the result
    is the list of exit codes. Raises Failed if a process fails by itself, or takes longer than `timeout` seconds.
    """
    port = _free_port()
    results = CONTEXT.SimpleQueue()
    group = [
        CONTEXT.Process(target=_run, args=(results, function, arguments, rank, processes, port))
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    if kill_when is not None:
        while not kill_when() and any(process.is_alive() for process in group):
            time.sleep(0.002)
        for process in group:
            getattr(process, signal)()
        for process in group:
            process.join()
        return [process.exitcode for process in group]
    found, errors, deadline = {}, [], time.monotonic() + timeout
    while (alive := any(process.is_alive() for process in group)) or not results.empty():
        if not results.empty():  # drained while they run: a full pipe would block them
            rank, value, error = results.get()
            errors += [f"process {rank}: {error}"] if error else []
            found[rank] = value
        else:
            time.sleep(0.01)
        if alive and (errors or time.monotonic() > deadline):  # the others would wait for the failed one for ever
            for process in group:
                process.kill()
    codes = [process.exitcode for process in group]
    if errors or any(codes) or len(found) < processes:
        raise Failed("\n".join(errors) or f"exit codes {codes}")
    return [found[rank] for rank in range(processes)]


def _run(results, function, arguments, rank, processes, port):
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the workers of data loaders, as in any script on Linux
    try:
        value, error = function(*arguments), None
    except Exception:
        value, error = None, traceback.format_exc()
    results.put((rank, value, error))


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
