"""Runs code in forks of a process that has plain torch and transformers imported, and in which hf_ssl cannot be.

A request is a line of JSON in stdin, its answer one in stdout (`run_plain` in processes.py).
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback

sys.modules["hf_ssl"] = None  # before anything else: no import of it can succeed
sys.path.pop(0)  # the folder of the tests

import huggingface_hub.constants  # noqa: E402
import torch  # noqa: E402
import transformers.dynamic_module_utils  # noqa: E402
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, pipeline  # noqa: E402, F401 (what most code asks for)

torch.set_num_threads(1)


def main():
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def answer(program, arguments, environment, timeout):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            run(program, arguments, environment, out, err)
        code = wait_for(child, timeout)
        out.seek(0), err.seek(0)
        return {"code": code, "stdout": out.read(), "stderr": err.read()}


def run(program, arguments, environment, out, err):
    """In the fork, which ends here."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.environ.clear()
        os.environ.update(environment)
        # these two have been read when the libraries were imported
        transformers.dynamic_module_utils.HF_MODULES_CACHE = environment["HF_MODULES_CACHE"]
        if "HF_HUB_CACHE" in environment:
            huggingface_hub.constants.HF_HUB_CACHE = environment["HF_HUB_CACHE"]
        sys.argv = ["-c", *arguments]
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait_for(child, timeout):
    """Its exit code, negative for a signal; it is killed after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


if __name__ == "__main__":
    main()
