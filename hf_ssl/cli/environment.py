"""The command `env`: versions, devices, precision and threads."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = (
    "hf_ssl",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "safetensors",
)
EXTRAS = ("soundfile", "numba", "faiss-cpu", "gradio", "torchcodec", "lightly", "open_clip_torch", "gensim")


def env_command(arguments):
    """Print versions, devices, precision and threads: what a bug report needs."""
    argparse.ArgumentParser(prog="hf-ssl env", description=env_command.__doc__).parse_args(arguments)
    print("\n".join(f"{name:16} {value}" for name, value in environment().items()))


def environment():
    found = {"platform": platform.platform(), "python": platform.python_version()}
    for name in (*LIBRARIES, *EXTRAS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        found["devices"] = "cpu"
    else:
        name_of = getattr(
            torch.get_device_module(accelerator), "get_device_name", lambda _: accelerator.type
        )  # MPS has none
        names = [name_of(i) for i in range(torch.accelerator.device_count())]
        found["devices"] = f"{len(names)} x {accelerator.type}: {', '.join(dict.fromkeys(names))}"
        runtimes = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
        found |= {name: number for name, number in runtimes.items() if number}
    found["threads"] = f"{torch.get_num_threads()} of torch"
    found["cpu"] = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    found["bfloat16"] = {True: "yes", False: "slow", None: "not known"}[_has_bfloat16(accelerator)]
    return found


def _has_bfloat16(accelerator):
    """Whether products in bfloat16 are made by hardware."""
    if accelerator is not None:
        return torch.cuda.is_bf16_supported(including_emulation=False) if accelerator.type == "cuda" else None
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # of x86; torch has no public name for it
    return supported() if supported else None
