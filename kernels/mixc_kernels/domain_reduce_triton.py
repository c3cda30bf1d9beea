"""Sums of losses by domain in one Triton kernel: a program for each domain and span of tokens.

Each program reads all tokens of its span and adds those of its domain, so that nothing is
atomic; the tokens come from the L2 cache after the first. All arithmetic is exact, as in
`domain_reduce`, and so the bits are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LAUNCH = {"SPAN": 16384, "BLOCK": 1024, "num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _nearest(x: tl.tensor) -> tl.tensor:
    return tl.floor(x + 0.5).to(tl.int64)


@triton.jit
def _domain_reduce(
    loss: tl.tensor,
    domain: tl.tensor,
    ref_loss: tl.tensor,
    valid: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    floor: tl.tensor,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (K, spans); ref_loss and valid may be None; out int64[spans, 7, K]."""
    me = tl.program_id(0)
    span = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int64)
    count = tl.zeros([BLOCK], tl.int64)
    square = tl.zeros([BLOCK], tl.int64)
    excess = tl.zeros([BLOCK], tl.int64)
    raw = tl.zeros([BLOCK], tl.int64)
    nonfinite = tl.zeros([BLOCK], tl.int64)
    clamped = tl.zeros([BLOCK], tl.int64)
    for begin in range(0, SPAN, BLOCK):
        at = span * SPAN + begin + tl.arange(0, BLOCK)
        mine = at < tokens
        mine &= tl.load(domain + at, mask=mine, other=-1) == me
        if valid is not None:
            mine &= tl.load(valid + at, mask=mine, other=0) != 0
        x = tl.load(loss + at, mask=mine, other=0.0).to(tl.float64)
        y = tl.zeros([BLOCK], tl.float64)
        if ref_loss is not None:
            y = tl.load(ref_loss + at, mask=mine, other=0.0).to(tl.float64)
        used = mine & (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        high = used & ((tl.abs(x) > 1024.0) | (tl.abs(y) > 1024.0))
        x = tl.where(used, tl.minimum(tl.maximum(x, -1024.0), 1024.0), 0.0)
        y = tl.where(used, tl.minimum(tl.maximum(y, -1024.0), 1024.0), 0.0)
        units = _nearest(x * 16777216.0)
        more = units - _nearest(y * 16777216.0)
        total += units
        count += used.to(tl.int64)
        square += _nearest(x * x * 1048576.0)
        excess += tl.where(used, tl.maximum(more, floor), 0)
        raw += more
        nonfinite += (mine & ~used).to(tl.int64)
        clamped += high.to(tl.int64)
    domains = tl.num_programs(0)
    out += span * 7 * domains + me
    tl.store(out, tl.sum(total))
    tl.store(out + domains, tl.sum(count))
    tl.store(out + 2 * domains, tl.sum(square))
    tl.store(out + 3 * domains, tl.sum(excess))
    tl.store(out + 4 * domains, tl.sum(raw))
    tl.store(out + 5 * domains, tl.sum(nonfinite))
    tl.store(out + 6 * domains, tl.sum(clamped))


def reduce_table(
    loss: Tensor, domain: Tensor, K: int, ref_loss: Tensor | None, floor: int, valid: Tensor | None
) -> Tensor:
    """The rows of `DomainStats.table`, int64[7, K], on the losses' device.

    loss float32[N], domain int[N], ref_loss float32[N], valid bool[N]; `floor` is the least
    excess, in 2**-24 nats. Tokens of domains out of range are in no sum.
    """
    loss, domain = loss.contiguous(), domain.contiguous()
    ref_loss = None if ref_loss is None else ref_loss.contiguous()
    valid = None if valid is None else valid.contiguous().view(torch.uint8)
    spans = triton.cdiv(len(loss), _LAUNCH["SPAN"])
    parts = torch.empty(spans, 7, K, dtype=torch.int64, device=loss.device)
    if spans:
        with torch.cuda.device(loss.get_device()):
            _domain_reduce[K, spans](
                loss, domain, ref_loss, valid, parts, len(loss), floor, **_LAUNCH
            )
    return parts.sum(0)


def _compiled(domain: str, given: bool) -> tuple[Any, dict[str, str], dict[str, Any]]:
    absent = {} if given else {"ref_loss": None, "valid": None}
    signature = {
        "loss": "*fp32:16",
        "domain": f"*{domain}:16",
        "ref_loss": "*fp32:16" if given else "constexpr",
        "valid": "*u8:16" if given else "constexpr",
        "out": "*i64:16",
        "tokens": "i32",
        "floor": "i64",
        "SPAN": "constexpr",
        "BLOCK": "constexpr",
    }
    return _domain_reduce, signature, {**absent, **_LAUNCH}


# What is launched, for tests that compile without a GPU.
COMPILED = [_compiled(domain, given) for domain in ("i16", "i64") for given in (False, True)]
