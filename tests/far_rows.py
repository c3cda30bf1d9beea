"""Rows so far apart that 32 bits do not count to the last: as in a matrix of 2**31 numbers."""

import mmap

import numpy as np
import pytest
import torch


def far_rows(values):
    """The same numbers, [n, d], n at least 3. Between rows lies memory that nobody touches."""
    rows, columns = values.shape
    stride = -(-(1 << 31) // (rows - 1)) + 64
    size = ((rows - 1) * stride + columns) * values.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        pytest.skip(f"the system does not give {size >> 30} GiB of addresses")
    flat = torch.from_numpy(np.frombuffer(memory, np.uint8)).view(values.dtype)
    apart = flat.as_strided(values.shape, (stride, 1))
    apart.copy_(values)
    assert (rows - 1) * apart.stride(0) > 1 << 31
    return apart
