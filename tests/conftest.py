"""Settings for all tests: no network but a Hub of our own, one thread (the tests run several processes on two cores)."""

import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    HUB_PORT = probe.getsockname()[1]
HOME = tempfile.TemporaryDirectory(prefix="hf_ssl_tests_")  # nobody's token, nobody's cache
os.environ.pop("HF_TOKEN", None)
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}",  # read when the libraries are imported, here and in child processes
    "HF_HOME": HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
sys.path.insert(0, str(Path(__file__).parent))  # tests import their helpers, here and in child processes, by name

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from hub_server import HubServer  # noqa: E402

ROOT = Path(__file__).parents[1]
pytest.register_assert_rewrite("methods.tester")  # its assertions tell what they found


@pytest.fixture(autouse=True, scope="session")
def quiet():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True, scope="session")
def local_hub():
    """What answers instead of huggingface.co to everything that the tests start."""
    with HubServer(HUB_PORT) as server:
        yield server


@pytest.fixture
def hub(local_hub):
    """The local Hub, empty."""
    local_hub.clear()
    yield local_hub
    local_hub.clear()


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Data sets are prepared in a folder of this session, so nothing is found that another run has left."""
    datasets.config.HF_DATASETS_CACHE = os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of three parquet shards of unequal length, 120 of the embedded images with an `id`."""
    rows = datasets.load_dataset(str(ROOT / "hf_ssl/data/samples/images"), split="train[:120]")
    rows = rows.cast_column("image", datasets.Image(decode=False)).add_column("id", list(range(120)))
    folder = tmp_path_factory.mktemp("shards")
    for number, (start, stop) in enumerate(((0, 31), (31, 90), (90, 120))):
        part = rows.select(range(start, stop)).cast_column("image", datasets.Image())
        part.to_parquet(folder / f"train-{number:05d}-of-00003.parquet", batch_size=8)
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A folder of two parquet shards of unequal length, 40 of the embedded documents, and 20 to validate on."""
    sample = ROOT / "hf_ssl/data/samples/text"
    short = datasets.load_dataset(str(sample), split="train").filter(lambda row: len(row["text"]) < 2000)
    folder = tmp_path_factory.mktemp("documents")
    for name, start, stop in (
        ("train-00000-of-00002", 0, 15),
        ("train-00001-of-00002", 15, 40),
        ("validation", 40, 60),
    ):
        short.select(range(start, stop)).to_parquet(folder / f"{name}.parquet", batch_size=4)
    return folder


@pytest.fixture
def convert(monkeypatch, capsys):
    """convert_checkpoint.py within this process: (exit code, what it printed, its errors)."""
    from hf_ssl.errors import run_script  # not before the settings above

    path = ROOT / "scripts/convert_checkpoint.py"
    specification = importlib.util.spec_from_file_location("convert_checkpoint", path)
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "convert_checkpoint", script)
    specification.loader.exec_module(script)

    def run(*arguments, kind="mae"):
        monkeypatch.setattr(sys, "argv", [str(path), kind, *map(str, arguments)])
        try:
            run_script(script.main)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
