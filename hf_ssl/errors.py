"""What a user can get wrong, said in one sentence; scripts print it without a traceback and exit with 1."""

import os
import signal
import sys

import torch


class InputError(ValueError):
    """Names the argument, column or file, what was found, and what was expected."""


def run_script(main):
    """Run a script's `main`; what ends it from outside, and an InputError, are one line on stderr. Exit code: 1, after
    Ctrl-C 130."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    try:
        main()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            print("Stopped by Ctrl-C.", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except (InputError, MemoryError, RuntimeError) as error:
        if (sentence := _sentence(error)) is None:
            raise
        rank = f"[process {os.environ['RANK']}] " if several else ""
        print(f"{rank}error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
        sys.exit(1)


def _sentence(error):
    """What happened and what to do; None for an error that only its traceback explains."""
    text = str(error)
    if isinstance(error, InputError):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        asked = next((line.strip() for line in text.splitlines() if "allocate" in line), "an allocation failed")
        return (
            f"There is not enough memory ({asked.rstrip('.')}): lower per_device_train_batch_size, with more "
            "gradient_accumulation_steps, or set --activation_checkpointing; the last checkpoint is whole."
        )
    if text.startswith("DataLoader worker"):  # by torch, of a process that died
        return (
            f"A process that reads the data was ended from outside ({text.splitlines()[0].rstrip('. ')}), as it is when memory "
            "runs out: lower dataloader_num_workers or per_device_train_batch_size; the last checkpoint is whole."
        )
    if isinstance(error, getattr(torch.distributed, "DistError", ())) or "gloo/transport" in text:
        return "The connection to another process was lost: see what that process says, or whether it was killed."
    return None
