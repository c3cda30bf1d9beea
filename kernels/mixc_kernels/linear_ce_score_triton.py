"""Cross-entropy of a linear head, losses alone, by a fused Triton kernel.

A program multiplies a tile of tokens with a span of the vocabulary and keeps three numbers of
each token: the largest logit, the sum of exponentials below it, the target's logit. A second
kernel joins the spans in their order. Which span a logit is in, and the order within it, depend on
the vocabulary alone: a token's loss is the same to the bit whatever the other tokens are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Named, as its default changes between versions of Triton, and bits with it.
_FUSED = {"enable_fp_fusion": True}
# Wider tiles would read less from the L2 cache, but spill registers.
_HALF = {"BN": 128, "BV": 128, "BD": 64, "num_warps": 8, "num_stages": 3, **_FUSED}
# Without tensor cores, which would round float32 to 10 bits.
_FLOAT = {"BN": 128, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 3, **_FUSED}
# The interpreter's cost is in the number of tiles, not in their size.
_INTERPRETED = {"BN": 256, "BV": 1024, "BD": 128, **_FUSED}
_JOIN = {"BLOCK": 128, "num_warps": 4, **_FUSED}


@triton.jit
def _score_spans(
    hidden: tl.tensor,
    weight: tl.tensor,
    target: tl.tensor,
    peaks: tl.tensor,
    totals: tl.tensor,
    picks: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    hidden_stride: tl.tensor,
    weight_stride: tl.tensor,
    softcap: tl.tensor,
    DIM: tl.constexpr,
    SPAN: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    BN: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """Grid (tiles of tokens, spans); peaks, totals and picks are float32[spans, N]."""
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    # What lies beyond the end reads the last row: without a mask, and it is not stored.
    place = tl.minimum(row, tokens - 1)
    wanted = tl.load(target + place)
    depth = tl.arange(0, BD)
    x_at = hidden + place[:, None] * hidden_stride + depth[None, :]
    peak = tl.full([BN], float("-inf"), tl.float32)
    total = tl.zeros([BN], tl.float32)
    pick = tl.zeros([BN], tl.float32)
    begin = tl.program_id(1) * SPAN
    end = tl.minimum(begin + SPAN, vocab)
    while begin < end:  # Triton 3.6 cannot interpret a range of tensors on new numpy
        column = begin + tl.arange(0, BV)
        inside = tl.minimum(column, vocab - 1).to(tl.int64)
        w_at = weight + inside[None, :] * weight_stride + depth[:, None]
        logits = tl.zeros([BN, BV], tl.float32)
        for done in range(0, DIM, BD):
            x = tl.load(x_at + done, mask=depth[None, :] < DIM - done, other=0.0)
            w = tl.load(w_at + done, mask=depth[:, None] < DIM - done, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        if CAPPED:
            logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
        pick += tl.sum(tl.where(column[None, :] == wanted[:, None], logits, 0.0), 1)
        logits = tl.where(column[None, :] < vocab, logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        peak = higher
        begin += BV
    to = tl.program_id(1).to(tl.int64) * tokens + row
    tl.store(peaks + to, peak, mask=row < tokens)
    tl.store(totals + to, total, mask=row < tokens)
    tl.store(picks + to, pick, mask=row < tokens)


@triton.jit
def _join_spans(
    target: tl.tensor,
    peaks: tl.tensor,
    totals: tl.tensor,
    picks: tl.tensor,
    loss: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    ignore_index: tl.tensor,
    SPANS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < tokens
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    pick = tl.zeros([BLOCK], tl.float32)
    at = row
    for _ in range(SPANS):
        top = tl.load(peaks + at, mask=here, other=0.0)
        higher = tl.maximum(peak, top)
        total = total * tl.exp(peak - higher)
        total += tl.load(totals + at, mask=here, other=1.0) * tl.exp(top - higher)
        pick += tl.load(picks + at, mask=here, other=0.0)
        peak = higher
        at += tokens
    wanted = tl.load(target + row, mask=here, other=0)
    # The difference first: what all logits have in common must not cost precision.
    value = (peak - pick) + tl.log(total)
    value = tl.where((wanted >= 0) & (wanted < vocab), value, float("nan"))
    tl.store(loss + row, tl.where(wanted == ignore_index, 0.0, value), mask=here)


def score(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    softcap: float | None,
    ignore_index: int,
    span: int,
) -> Tensor:
    """Losses float32[N] of hidden [N, D], weight [V, D], target int[N], all on one device.

    `span` is how much of the vocabulary a program takes, a multiple of 1024; the rest is as in
    `linear_ce_score`.
    """
    hidden, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, weight))
    target = target.contiguous()
    (tokens, dim), vocab = hidden.shape, len(weight)
    spans = triton.cdiv(vocab, span)
    loss = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    parts = torch.empty(3, spans, tokens, dtype=torch.float32, device=hidden.device)
    if not tokens:
        return loss
    interpreted = triton.knobs.runtime.interpret
    launch = _FLOAT if hidden.dtype == torch.float32 else _HALF
    if interpreted:
        launch = _INTERPRETED
    with torch.cuda.device(hidden.get_device()):
        _score_spans[triton.cdiv(tokens, launch["BN"]), spans](
            hidden, weight, target, *parts, tokens, vocab, hidden.stride(0), weight.stride(0),
            1.0 if softcap is None else softcap, DIM=dim, SPAN=span, CAPPED=softcap is not None,
            UPCAST=interpreted, **launch,
        )  # fmt: skip
        _join_spans[(triton.cdiv(tokens, _JOIN["BLOCK"]),)](
            target, *parts, loss, tokens, vocab, ignore_index, SPANS=spans, **_JOIN
        )
    return loss


def _compiled(dtype: str, capped: bool) -> tuple[Any, dict[str, str], dict[str, Any]]:
    signature = {
        "hidden": f"*{dtype}:16",
        "weight": f"*{dtype}:16",
        "target": "*i64:16",
        **dict.fromkeys(("peaks", "totals", "picks"), "*fp32:16"),
        **dict.fromkeys(("tokens", "vocab"), "i32"),
        **dict.fromkeys(("hidden_stride", "weight_stride"), "i32:16"),
        "softcap": "fp32",
        **dict.fromkeys(("DIM", "SPAN", "CAPPED", "UPCAST", "BN", "BV", "BD"), "constexpr"),
    }
    launch = _FLOAT if dtype == "fp32" else _HALF
    model = {"DIM": 768, "SPAN": 4096, "CAPPED": capped, "UPCAST": False}
    return _score_spans, signature, {**model, **launch}


_JOINED = {
    **dict.fromkeys(("peaks", "totals", "picks", "loss"), "*fp32:16"),
    **dict.fromkeys(("tokens", "vocab", "ignore_index"), "i32"),
    "SPANS": "constexpr",
    "BLOCK": "constexpr",
}
# What is launched, for tests that compile without a GPU.
COMPILED = [
    *(_compiled(dtype, capped) for dtype in ("bf16", "fp16", "fp32") for capped in (False, True)),
    (_join_spans, {"target": "*i64:16", **_JOINED}, {"SPANS": 13, **_JOIN}),
]
