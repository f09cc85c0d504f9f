"""The processes that read ahead: they outlive signals to the whole process group, but not the process they work for."""

import signal
from multiprocessing.connection import wait
from multiprocessing.util import Finalize

import torch
from torch.utils.data import DataLoader


def read_ahead(source, sampler, count):
    """The samples of `source`, each a whole batch, so that a worker sees its rows together; read by `count` workers."""
    items = iter(
        DataLoader(
            source, None, sampler=sampler, num_workers=count, pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
        )
    )  # fmt: skip
    workers = items._workers if count else []
    Finalize(None, _end_workers, [workers], exitpriority=0)
    try:
        yield from items
    except (EOFError, OSError) as error:  # from the connection to a worker that has been killed, or in a worker
        if workers and wait([worker.sentinel for worker in workers], timeout=1):
            raise RuntimeError("DataLoader worker exited unexpectedly") from error  # as torch says it
        raise


def _outlive_signals(worker):
    """SIGTERM or Ctrl-C to the whole process group leave the batches of the last step and the checkpoint to the main
    process, which ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_workers(workers):
    """Called when this process ends, however it does: Python would send its workers SIGTERM, and wait for them for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which torch raises an error for a worker that is killed
    for worker in workers:
        worker.kill()
