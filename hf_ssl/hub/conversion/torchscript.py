"""The tensors of a TorchScript archive, which `torch.load` refuses and `torch.jit.load` would compile and run code of.

It is a zip file: data.pkl, the tree of modules, and data/<key>, the bytes of each storage. Of the pickle only tensors, numbers,
strings and their lists are built; each class of the archive becomes a `Node`, everything else is refused.
"""

import io
import pickle
import zipfile
from collections import OrderedDict

import torch

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class Node:
    """A module or whatever else the archive has a class for; its attributes are the content."""


def is_torchscript(path):
    """Whether the file is such an archive; False for what cannot be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path):
    """{name: tensor} of the parameters and buffers, as `state_dict` names them. Raises pickle.UnpicklingError if the archive
    holds more, and, if it is damaged, whatever the parser runs into."""
    with zipfile.ZipFile(path) as archive:
        [pickled] = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        root = _Unpickler(archive, pickled).load()
    return dict(_tensors(root))


def _tensors(node, prefix=""):
    for name, value in vars(node).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, Node):
            yield from _tensors(value, f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive, pickled):
        super().__init__(io.BytesIO(archive.read(pickled)))
        self.archive, self.folder = archive, pickled.partition("/")[0]

    def find_class(self, module, name):
        if module == "__torch__" or module.startswith("__torch__."):
            return Node
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):  # lists of one type
            return list
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, storage):
        _, dtype, key, *_ = storage
        content = self.archive.read(f"{self.folder}/data/{int(key)}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _rebuild(storage, offset, size, stride, *_):
    return storage.as_strided(size, stride, offset)  # refuses what does not lie within


__all__ = ["is_torchscript", "read_torchscript"]
