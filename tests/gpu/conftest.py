"""Tests that want a GPU: marked `gpu`, skipped where there is none.

GPU_TESTS_DEVICE=cpu runs the same functions on the CPU, without what only a GPU can do: that tries the tests themselves.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic mode asks of cuBLAS
sys.path.insert(0, str(HERE.parent / "methods"))  # the testers, which bring tiny configs and batches

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

DEVICE = os.environ.get("GPU_TESTS_DEVICE") or ("cuda" if torch.cuda.is_available() else None)


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE is None:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session")
def device():
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch, device):
    """Accelerate takes the device, which all other tests forbid it; float32 products are not rounded to TF32."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(device.type == "cpu").lower())
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["no", "bf16", "fp16"], ids=["fp32", "bf16", "fp16"])
def precision(request, monkeypatch, device):
    """As Accelerate names it; chosen for the Accelerators of this test and of its child processes."""
    if request.param == "fp16" and device.type == "cpu":
        pytest.skip("Accelerate's fp16 wants a GPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    return request.param
