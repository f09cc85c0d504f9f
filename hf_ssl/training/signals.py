"""SIGTERM and Ctrl-C: the step in hand is finished, a checkpoint is written, and all processes end at the same step."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)
INTERVAL = 2.0  # seconds between two agreements of several processes
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class StopSignals:
    """Remembers that a signal of NAMES has come. Ctrl-C once more, INTERVAL seconds later or more, ends the program at once:
    a launcher passes on what the terminal has sent to all."""

    def __init__(self, accelerator):
        self.processes, self.received, self.received_at = accelerator.num_processes, 0, 0.0
        self.speaks = accelerator.is_main_process
        self.agreed_step, self.agreed_at, self.next_step = None, 0.0, 0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            for number in NAMES:
                if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell that started this behind it
                    self.before[number] = signal.signal(number, self)
        return self

    def __call__(self, number, frame):
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self.received_at > INTERVAL:
            for child in multiprocessing.active_children():  # which may read what does not answer
                child.kill()
            os._exit(128 + number)
        if not self.received:
            self.received, self.received_at = number, now
            if self.speaks:  # past logging and the progress bar, whose locks the program may hold
                again = "; once more ends the program at once" if number == signal.SIGINT else ""
                os.write(2, f"\n{NAMES[number]}: finishing this step and saving a checkpoint{again}.\n".encode())

    def agreed(self, step):
        """Whether the run stops after this step. Several processes look at the same steps, INTERVAL seconds or so apart: one
        exchange, and nothing in the steps between."""
        if self.processes == 1:
            return bool(self.received)
        if step < self.next_step:
            return False
        now = time.monotonic()
        gathered = gather_object([(self.received, now - self.agreed_at)])
        self.received = max(number for number, _ in gathered)
        if self.agreed_step is not None:
            taken, seconds = step - self.agreed_step, max(seconds for _, seconds in gathered)
            # the first steps may be slow or, on a GPU, seem fast
            self.next_step = step + max(1, min(2 * taken, int(taken * INTERVAL / max(seconds, 1e-6))))
        self.agreed_step, self.agreed_at = step, now
        return bool(self.received)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def end_program(self, step):
        """The exit that a shell expects after the signal."""
        logger.warning(
            "Stopped by %s at step %d; go on with --resume_from_checkpoint auto.", NAMES[self.received], step
        )
        sys.exit(128 + self.received)
