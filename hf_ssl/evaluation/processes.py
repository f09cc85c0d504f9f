"""The processes that evaluate together."""

from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

PATIENCE = timedelta(hours=6)  # of processes that wait while the main one classifies frames, or trains with labels


def process_state():
    """Rank, number of processes and device. Accelerator reads ACCELERATE_USE_CPU, a bare PartialState() does not: it
    would take each process of a launch on CPUs for the only one."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


__all__ = ["process_state"]
