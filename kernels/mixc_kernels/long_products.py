"""Inner products of a few very long vectors, accumulated in float64.

One float32 product of K vectors of a million numbers is off by 2e-5 to 3e-4 for small K, as BLAS
sums each in one go. Pieces of 8192 columns are short enough for float32, and as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 8192


def long_products(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T as float64[K, L], of a [K, P] and b [L, P], both float32 or both float64."""
    whole = a.shape[1] - a.shape[1] % _COLUMNS
    rest = (a[:, whole:] @ b[:, whole:].T).double()
    if not whole:
        return rest
    left, right = (x[:, :whole].view(len(x), -1, _COLUMNS).transpose(0, 1) for x in (a, b))
    return torch.bmm(left, right.transpose(1, 2)).double().sum(0) + rest


def long_squares(a: Tensor) -> Tensor:
    """The squared lengths of the rows of a [K, P], float64[K]: the diagonal of the above alone."""
    whole = a.shape[1] - a.shape[1] % _COLUMNS
    parts = [a[:, :whole].view(len(a), -1, _COLUMNS), a[:, None, whole:]]
    return (
        torch.cat([torch.linalg.vector_norm(x, dim=2) for x in parts], 1).double().square().sum(1)
    )


def long_products_reference(a: Tensor, b: Tensor) -> Tensor:
    """The same in float64 throughout: for tests."""
    return a.double() @ b.double().T
