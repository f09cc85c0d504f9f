"""What a user can get wrong, said in one sentence; scripts print it without a traceback and exit with 1."""

import os
import sys

import torch


class InputError(ValueError):
    """Names the argument, column or file, what was found, and what was expected."""


def run_script(main):
    """Run a script's `main`; an InputError ends it with one line on stderr and exit code 1."""
    try:
        main()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except InputError as error:
        rank = f"[process {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"{rank}error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
