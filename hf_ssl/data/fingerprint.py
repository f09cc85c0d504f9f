"""What tells data from other data of the same name, cheaply: a run that is taken up must read what it has begun on."""

import hashlib
from pathlib import Path

import numpy as np

SAMPLES = 16  # rows, spread evenly from the first to the last
PLACES = ("path", "__url__")  # columns and fields of which only the last part counts: folders may be moved


def row_digest(row):
    """A digest of one row, as it is stored. Of a file that lies elsewhere, its name and size."""
    digest = hashlib.sha256()
    _add(digest, row)
    return digest.hexdigest()[:16]


def rows_fingerprint(data):
    """The number of rows, their columns, and the digests of SAMPLES of them by number. data: a `datasets.Dataset`, or rows that
    are made of one and have it as `files`, whose columns and rows are compared then."""
    count, data = len(data), getattr(data, "files", data)
    numbers = sorted({round(number) for number in np.linspace(0, len(data) - 1, SAMPLES)})
    stored = data.with_format("arrow")[numbers].to_pylist()  # nothing is decoded
    digests = {str(number): row_digest(row) for number, row in zip(numbers, stored, strict=True)}
    return {"rows": count, "columns": sorted(data.column_names), "digests": digests}


def difference(old, new):
    """In which of two fingerprints' parts they differ, in words, or None."""
    if old["columns"] != new["columns"]:
        return f"the columns were {old['columns']} and are {new['columns']}"
    changed = [number for number, digest in new["digests"].items() if old["digests"].get(number, digest) != digest]
    if changed:
        return f"{len(changed)} of {len(new['digests'])} rows that were compared are others, such as row {changed[0]}"
    return None


def _add(digest, value, place=False):
    if isinstance(value, dict):
        if value.get("path") and value.get("bytes", b"") is None:
            path = Path(value["path"])
            value = value | {"bytes": path.stat().st_size if path.is_file() else None}
        for name, item in value.items():
            digest.update(f"{name}:".encode())
            _add(digest, item, name in PLACES)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif hasattr(value, "tobytes"):  # a picture
        digest.update(f"{getattr(value, 'size', '')}".encode() + value.tobytes())
    else:
        digest.update((value.rsplit("/", 1)[-1] if place and isinstance(value, str) else str(value)).encode())
