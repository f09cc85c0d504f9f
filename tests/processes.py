"""Real processes for tests: fresh ones, killed at will (`launch`); one gloo pair that stays (`on_pair`); and code in a
process that has plain torch and transformers but no hf_ssl (`run_plain`). All start from servers that have the imports done.
"""

import gc
import json
import multiprocessing
import os
import pickle
import signal as signals
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

SIGNALS = {"kill": signals.SIGKILL, "terminate": signals.SIGTERM, "interrupt": signals.SIGINT}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_ssl.cli", "matplotlib.pyplot", "sklearn.linear_model", "sklearn.manifold"])


class Failed(Exception):
    """A process ended with an error; the message is its traceback or exit code."""


def launch(function, *arguments, processes=1, kill_when=None, signal="kill", timeout=120):
    """Run `function(*arguments)` in `processes` fresh processes and return their results, by rank.

    kill_when: asked until it says True; all are then sent `signal` (kill, terminate, or interrupt, as Ctrl-C does), and the
    result is the list of exit codes. Raises Failed if a process fails by itself, or takes longer than `timeout` seconds.
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
            if process.is_alive():
                os.kill(process.pid, SIGNALS[signal])
        for process in group:
            process.join(timeout)
        codes = [process.exitcode for process in group]
        for process in group:
            process.kill()  # what has not ended
        return codes
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
    _prepare(rank, processes, port)
    try:
        value, error = function(*arguments), None
    except Exception:
        value, error = None, traceback.format_exc()
    results.put((rank, value, error))


def _prepare(rank, processes, port):
    signals.signal(
        signals.SIGINT, signals.default_int_handler
    )  # which is ignored where the tests run in the background
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the workers of data loaders, as in any script on Linux


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- the pair ---------------------------------------------------------------------------------------------------------


def on_pair(function, *arguments, timeout=60):
    """Run `function(*arguments)` in both processes of a gloo group that stays for the next call: [result, result] by rank.

    The group is initialised; what a call leaves in module globals and generators, the next one finds. After a call that
    raises Failed, because a process failed or took longer than `timeout` seconds, the next one gets a new pair.
    """
    pair = _pair()
    try:
        return pair.call(function, arguments, timeout)
    except Failed:
        pair.kill()
        _pair.cache_clear()
        raise


class _Pair:
    def __init__(self):
        port = _free_port()
        self.connections, self.processes = [], []
        for rank in range(2):
            connection, other_end = CONTEXT.Pipe()
            # a daemon: the end of the tests is its end
            process = CONTEXT.Process(target=_serve, args=(other_end, rank, port), daemon=True)
            process.start()
            other_end.close()  # else the death of the process would not close the connection
            self.connections.append(connection)
            self.processes.append(process)

    def call(self, function, arguments, timeout):
        request = pickle.dumps((function, arguments))
        deadline = time.monotonic() + timeout
        results, waiting = {}, dict(zip(self.connections, range(2), strict=True))
        try:
            for connection in waiting:
                connection.send((sys.path, request))  # first what the functions are found by
            while waiting:
                ready = wait(list(waiting), max(0, deadline - time.monotonic()))
                if not ready:
                    raise Failed(f"process {min(waiting.values())}: no answer within {timeout} seconds")
                for connection in ready:
                    rank = waiting.pop(connection)
                    results[rank], error = connection.recv()
                    if error:  # the other one may wait for it for ever
                        raise Failed(f"process {rank}: {error}")
        except (EOFError, ConnectionError) as error:
            for process in self.processes:
                process.join(1)
            raise Failed(f"exit codes {[process.exitcode for process in self.processes]}") from error
        return [results[rank] for rank in range(2)]

    def kill(self):
        for process, connection in zip(self.processes, self.connections, strict=True):
            process.kill()
            process.join()
            connection.close()


_pair = cache(_Pair)


def _serve(connection, rank, port):
    _prepare(rank, 2, port)
    import torch

    torch.distributed.init_process_group("gloo")
    while True:
        try:
            path, request = connection.recv()
        except EOFError:  # the tests are over
            return
        try:
            sys.path[:] = path
            function, arguments = pickle.loads(request)
            answer = function(*arguments), None
        except Exception:
            answer = None, traceback.format_exc()
        connection.send(answer)
        function = arguments = answer = None
        gc.collect()  # DDP holds itself in a circle, and its hooks with it


# -- plain transformers -----------------------------------------------------------------------------------------------


def run_plain(program, *arguments, timeout=120, **environment):
    """Run Python code where torch and transformers are installed and hf_ssl is not, and return what it printed.

    arguments: its `sys.argv[1:]`. environment: variables besides those of this process. Each call has a folder of its own
    for code that comes with a model, so that nothing is found that an earlier call has brought. Raises Failed with what
    stood in stderr if the code fails, and after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="modules_") as modules:
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "environment": os.environ | {"HF_MODULES_CACHE": modules} | environment,
            "timeout": timeout,
        }
        server = _plain_server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    if not answer:
        raise Failed(f"the server of plain transformers ended with exit code {server.wait()}")
    answer = json.loads(answer)
    if answer["code"] != 0:
        raise Failed(f"exit code {answer['code']}\n{answer['stderr']}")
    return answer["stdout"]


@cache
def _plain_server():
    # its stderr stays that of the tests: what hinders its start is seen
    command = [sys.executable, str(Path(__file__).with_name("plain_server.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
