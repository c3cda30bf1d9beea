"""Products of matrices with sums as wide as wanted, of half operands where a GPU multiplies those.

A GPU multiplies bfloat16 some ten times as fast as float32 and can write float32 sums of it; torch
can ask it to on CUDA alone, and to add to such sums from torch 2.10 on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def operand_type(x: Tensor, wide: torch.dtype) -> torch.dtype:
    """The type in which x is multiplied: its own if that is half and on a GPU, else `wide`."""
    return x.dtype if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) else wide


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b, where a and b are of one type, `out`'s or half."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Add a @ b, where a and b are of one type, `out`'s or half."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def multiply_groups(a: Tensor, b: Tensor, out: Tensor, *, fresh: bool) -> None:
    """Write the products of a [G, M, N] and b [G, N, P] to out [G, M, P] where fresh, or add them.

    Types as in `multiply`. Where N is 0 they are zeros.
    """
    if a.dtype == out.dtype:
        out.baddbmm_(a, b, beta=0 if fresh else 1)
        return
    for left, right, into in zip(a, b, out, strict=True):
        (multiply if fresh else add_product)(left, right, into)
