"""The row kernel of `linear_ce_rows`, in Triton: from a row of logits to its loss and gradient.

One program a row, which it reads once for the loss and once more for the gradient; this may
take the place of the logits. Logits are
read in any float type and upcast; what is computed is float32. The first pass is the online
softmax of M. Milakov and N. Gimelshein, arXiv:1805.02867.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixc_kernels.linear_ce_torch import Terms

_BLOCK = 2048  # columns at a time; of more Triton 3.6 spills registers
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}  # both said: defaults differ by version


@triton.jit
def _cap(x: tl.tensor, softcap: tl.tensor) -> tl.tensor:
    """tanh(x / softcap)."""
    return 2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0


@triton.jit
def _sums(
    logits: tl.tensor,
    softcap: tl.tensor,
    COLUMNS: tl.constexpr,
    N_VOCAB: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Of a row: the largest logit, sum exp(z - largest), sum(largest - z)."""
    top = float("-inf")
    total = 0.0
    spread = 0.0
    for first in range(0, N_VOCAB, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < N_VOCAB
        x = tl.load(logits + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        if SOFTCAP:
            x = _cap(x, softcap) * softcap
        x = tl.where(inside, x, float("-inf"))
        more = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - more) + tl.sum(tl.exp(x - more), 0)
        if first > 0:
            spread += first * (more - top)
        spread += tl.sum(tl.where(inside, more - x, 0.0), 0)
        top = more
    return top, total, spread


@triton.jit(do_not_specialize=["ignore_index"])
def _row(
    logits_ptr: tl.tensor,
    gradient_ptr: tl.tensor,
    target_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    top_ptr: tl.tensor,
    total_ptr: tl.tensor,
    logits_stride: tl.tensor,
    gradient_stride: tl.tensor,
    ignore_index: tl.tensor,
    softcap: tl.tensor,
    z_loss: tl.tensor,
    smoothing: tl.tensor,
    COLUMNS: tl.constexpr,
    N_VOCAB: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (rows,). Writes loss, top and total if LOSS, else it reads the latter two."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * logits_stride
    target = tl.load(target_ptr + row)
    kept = target != ignore_index
    good = (target >= 0) & (target < N_VOCAB)
    if LOSS:
        # Read before anything is written: the reductions of the sums keep fast warps waiting.
        wanted = tl.load(logits + target, mask=good, other=0.0).to(tl.float32)
        if SOFTCAP:
            wanted = _cap(wanted, softcap) * softcap
        top, total, spread = _sums(logits, softcap, COLUMNS, N_VOCAB, SOFTCAP, BLOCK)
        lse = top + tl.log(total)
        loss = tl.log(total) + (1.0 - smoothing) * (top - wanted)
        loss += spread * (smoothing / N_VOCAB) + z_loss * lse * lse
        loss = tl.where(kept, tl.where(good, loss, float("nan")), 0.0)
        tl.store(loss_ptr + row, loss)
        tl.store(top_ptr + row, top)
        tl.store(total_ptr + row, total)
    else:
        top = tl.load(top_ptr + row)
        total = tl.load(total_ptr + row)
    if GRADIENT:
        gradient = gradient_ptr + row * gradient_stride
        scale = tl.where(good, tl.load(scale_ptr + row), float("nan"))
        factor = scale * (1.0 + 2.0 * z_loss * (top + tl.log(total))) / total
        for first in range(0, COLUMNS, BLOCK):
            column = first + tl.arange(0, BLOCK)
            there = column < COLUMNS
            x = tl.load(logits + column, mask=there, other=0.0).to(tl.float32)
            if SOFTCAP:
                turned = _cap(x, softcap)
                x = turned * softcap
            d = tl.exp(x - top) * factor - scale * (smoothing / N_VOCAB)
            d -= tl.where(column == target, scale * (1.0 - smoothing), 0.0)
            if SOFTCAP:
                d *= 1.0 - turned * turned
            d = tl.where(kept & (column < N_VOCAB), d, 0.0)
            tl.store(gradient + column, d.to(gradient_ptr.dtype.element_ty), mask=there)


def run_rows(
    logits: Tensor,
    gradient: Tensor | None,
    target: Tensor,
    scale: Tensor | None,
    loss: Tensor | None,
    top: Tensor,
    total: Tensor,
    terms: Terms,
) -> None:
    """`linear_ce_rows.run_rows_reference`, by the kernel. Columns of each row are contiguous."""
    rows, columns = logits.shape
    if not rows:
        return
    out = logits if gradient is None else gradient
    with torch.cuda.device(logits.get_device()):
        _row[(rows,)](
            logits,
            out,
            target,
            top if scale is None else scale,
            top if loss is None else loss,
            top,
            total,
            logits.stride(0),
            out.stride(0),
            terms.ignore_index,
            terms.softcap,
            terms.z_loss,
            terms.label_smoothing,
            COLUMNS=columns,  # a constant, as is the vocabulary: one kernel for each
            N_VOCAB=terms.n_vocab,
            LOSS=loss is not None,
            GRADIENT=gradient is not None,
            SOFTCAP=terms.softcap > 0,
            BLOCK=min(_BLOCK, triton.next_power_of_2(columns)),
            **_LAUNCH,
        )


def _compiled(gradient: str, **flags: bool) -> tuple[Any, dict[str, str], dict[str, Any]]:
    signature = {
        "logits_ptr": "*fp32:16",
        "gradient_ptr": f"*{gradient}:16",
        "target_ptr": "*i64",
        **dict.fromkeys(("scale_ptr", "loss_ptr", "top_ptr", "total_ptr"), "*fp32"),
        **dict.fromkeys(("logits_stride", "gradient_stride"), "i32:16"),
        "ignore_index": "i32",
        **dict.fromkeys(("softcap", "z_loss", "smoothing"), "fp32"),
        **dict.fromkeys(("COLUMNS", "N_VOCAB", *flags, "BLOCK"), "constexpr"),
    }
    sizes = {"COLUMNS": 50304, "N_VOCAB": 50257, "BLOCK": _BLOCK}
    return _row, signature, {**sizes, **flags, **_LAUNCH}


# What is launched, for tests that compile without a GPU: kernel, types, constants and options.
COMPILED = [
    _compiled(gradient, LOSS=loss, GRADIENT=write, SOFTCAP=capped)
    for loss, write, gradients in (
        (True, False, ("fp32",)),
        (True, True, ("fp32", "bf16", "fp16")),
        (False, True, ("fp32", "bf16", "fp16")),
    )
    for gradient in gradients
    for capped in (False, True)
]
