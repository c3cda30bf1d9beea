"""Cross-entropy of a linear layer, chunk by chunk of the rows: for GPUs.

The BLAS multiplies, at its full speed, and one kernel between two products turns a chunk of logits
into losses and gradients. What the losses are: `linear_ce_torch`. Chunks are as large as a budget
of bytes allows, whatever the vocabulary and the width.

Where weights of tokens are known before, one pass does it all (three products). Else gradients
take a second, from logits that were kept (three) or are computed again (four).

Logits are float32 also of bfloat16 inputs: rounded to bfloat16 they would move a loss by more than
what separates two models. The gradient by them goes into its products in the inputs' type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mixc_kernels.half_products import add_product, multiply, operand_type
from mixc_kernels.linear_ce_torch import (
    Sums,
    Terms,
    absorb_,
    begin_sums,
    differentiate_,
    exact,
    losses_of,
    read_targets,
    scale_of,
)

_ALIGN = 64  # columns that rows of a buffer are padded to, so that each begins aligned

RunRows = Callable[
    [Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Terms], None
]


class Rows(NamedTuple):
    """Losses, largest logits, sums of exponentials, [N] each; gradients and logits, if asked for.

    What was not asked for is an empty tensor.
    """

    loss: Tensor
    top: Tensor
    total: Tensor
    by_hidden: Tensor
    by_weight: Tensor
    logits: Tensor


def run_rows_reference(
    logits: Tensor,
    gradient: Tensor | None,
    target: Tensor,
    scale: Tensor | None,
    loss: Tensor | None,
    top: Tensor,
    total: Tensor,
    terms: Terms,
) -> None:
    """What is between the products, in place: logits [R, V], all else [R].

    With `loss`, it and `top` and `total` are written; else these two are read. With `gradient`
    [R, V], which may be the logits, the gradient of sum(scale * loss) by them is written there,
    with zeros in columns beyond the vocabulary. Logits stay as they are unless it is they.
    """
    targets, z = read_targets(target, terms), logits[:, : terms.n_vocab]
    if loss is not None:
        sums = begin_sums(logits)
        absorb_(z.clone(), 0, sums, targets, terms)
        loss.copy_(losses_of(sums, targets, terms))
        top.copy_(sums.top)
        total.copy_(sums.total)
    if gradient is not None:
        assert scale is not None
        d = z.clone()
        weights = scale_of(scale, targets)
        differentiate_(d, 0, Sums(top, total, top, top), weights, targets, terms)
        gradient[:, : terms.n_vocab] = d
        gradient[:, terms.n_vocab :] = 0


def row_losses(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: Tensor | None,
    terms: Terms,
    budget: int,
    *,
    by_hidden: bool = False,
    by_weight: bool = False,
    keep: bool = False,
) -> Rows:
    """Losses of hidden [N, D], weight [V, D], and, if asked for, gradients of sum(scale * loss).

    `keep` gives all logits too, [N, V padded]. The gradient by weight is float32, or float64.
    """
    x, w = _operands(hidden, weight)
    sums = _gradients(x, w, by_hidden, by_weight)
    loss = torch.empty(len(x), dtype=exact(x.dtype), device=x.device)
    top, total = torch.empty_like(loss), torch.empty_like(loss)
    kept = buffer(len(x) if keep else 0, w, exact(x.dtype))
    kept[:, len(w) :] = 0
    run, gradient = _run_rows(x), by_hidden or by_weight
    for part, z, d in _chunks(x, w, budget, kept if keep else None, gradient=gradient):
        multiply(x[part], w.T, z[:, : len(w)])
        some = None if scale is None else scale[part]
        run(z, d, target[part], some, loss[part], top[part], total[part], terms)
        _accumulate(part, d, x, w, *sums)
    return Rows(loss, top, total, *sums, kept)


def row_gradients(
    scale: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    rows: Rows,
    terms: Terms,
    budget: int,
    *,
    by_hidden: bool,
    by_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(scale * loss) by hidden and weight, after `row_losses`; scale [N].

    Logits are those that it kept, which stay as they are, or are computed again.
    """
    x, w = _operands(hidden, weight)
    sums = _gradients(x, w, by_hidden, by_weight)
    kept = rows.logits if rows.logits.numel() else None
    run = _run_rows(x)
    for part, z, d in _chunks(x, w, budget, kept, gradient=True):
        if kept is None:
            multiply(x[part], w.T, z[:, : len(w)])
        run(z, d, target[part], scale[part], None, rows.top[part], rows.total[part], terms)
        _accumulate(part, d, x, w, *sums)
    return sums


def _run_rows(x: Tensor) -> RunRows:
    if x.is_cuda and x.dtype != torch.float64:
        from mixc_kernels.linear_ce_triton import run_rows

        return run_rows
    return run_rows_reference


def _operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type that the BLAS multiplies: half as hidden on a GPU, float32 or float64."""
    dtype = operand_type(hidden, exact(hidden.dtype))
    return hidden.to(dtype), weight.to(dtype)


def _gradients(x: Tensor, w: Tensor, by_hidden: bool, by_weight: bool) -> tuple[Tensor, Tensor]:
    """What gradients go to: rows of the first are written once, the second is a sum of chunks."""
    return (
        torch.empty(x.shape if by_hidden else 0, dtype=x.dtype, device=x.device),
        torch.zeros(w.shape if by_weight else 0, dtype=exact(x.dtype), device=x.device),
    )


def buffer(rows: int, w: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for rows of logits, [rows, V padded]: whole vectors can be read and written."""
    width = -(-len(w) // _ALIGN) * _ALIGN
    return torch.empty((rows, width), dtype=dtype, device=w.device)


def _chunks(
    x: Tensor, w: Tensor, budget: int, kept: Tensor | None, *, gradient: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """(rows, their logits, room for the gradient by these) of equal chunks within the budget.

    The gradient takes the place of logits that nobody keeps, where their types are one.
    """
    dtype = exact(x.dtype)
    in_place = kept is None and x.dtype == dtype
    apart = gradient and not in_place
    each = buffer(0, w, dtype).shape[1]
    each *= (kept is None) * dtype.itemsize + apart * x.dtype.itemsize
    most = max(1, budget // max(1, each))
    rows = -(-len(x) // max(1, -(-len(x) // most)))
    logits = buffer(rows, w, dtype) if kept is None else kept
    room = buffer(rows, w, x.dtype) if apart else logits
    for first in range(0, len(x), max(1, rows)):
        part = slice(first, min(first + rows, len(x)))
        count = part.stop - first
        z = logits[:count] if kept is None else kept[part]
        yield part, z, room[:count] if gradient else None


def _accumulate(
    part: slice, d: Tensor | None, x: Tensor, w: Tensor, by_hidden: Tensor, by_weight: Tensor
) -> None:
    """From the gradient by logits of a chunk to those by hidden and weight, where wanted."""
    if d is None:
        return
    d = d[:, : len(w)]
    if by_hidden.numel():
        torch.mm(d, w, out=by_hidden[part])
    if by_weight.numel():
        add_product(d.T, x[part], by_weight)
