"""numpy arrays as Arrow columns, and back, without copies.

pyarrow's own conversions would do; but where pandas is installed, they take a second to load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NAMES = {"float": "float32"}  # what numpy calls a type that Arrow names otherwise


def column(values: NDArray[Any]) -> pa.Array:
    """The values as an Arrow array without nulls."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def strings(values: Sequence[str]) -> pa.LargeStringArray:
    """Texts as an Arrow array."""
    raw = [value.encode() for value in values]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(one) for one in raw])])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(b"".join(raw))]
    return pa.Array.from_buffers(pa.large_string(), len(raw), buffers)


def view(array: pa.Array) -> NDArray[Any]:
    """A validated array of numbers as numpy sees it. Raises ValueError if it holds nulls."""
    if array.null_count:
        raise ValueError("a column holds nulls")
    kind = np.dtype(_NAMES.get(str(array.type), str(array.type)))
    values = array.buffers()[1]
    if values is None or not len(array):
        return np.empty(0, kind)
    return np.frombuffer(values, kind, len(array), array.offset * kind.itemsize)


def map_numbers(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The first `count` numbers of a file, mapped, flat.

    Unlike `np.memmap` it keeps no file open: there may be more files than a process may open. Nor
    is the file read ahead, as it is by pyarrow where all of it is asked for.
    """
    if not count:
        return np.empty(0, dtype)
    with pa.memory_map(str(path)) as file:
        first = file.read_buffer(1)
        if file.size() < count * dtype.itemsize:
            raise ValueError(f"{path} holds less than {count} numbers")
    return np.frombuffer(pa.foreign_buffer(first.address, count * dtype.itemsize, first), dtype)
