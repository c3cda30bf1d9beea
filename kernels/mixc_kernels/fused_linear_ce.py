"""Per-token cross-entropy of a linear layer without its logits: one call, some ways to compute it.

What the losses are: `linear_ce_torch`. Each token has an own loss and an own upstream gradient, so
that weights of domains may be chosen from the losses before the backward pass. Losses are float32,
from float32 sums, whatever the inputs are; the same call gives the same bits.

`vocab`   blocks of the vocabulary, two passes, four products, no [N, V]: the CPU's, and
          a GPU's that has no Triton.
`hybrid`  chunks of rows: three products where weights of tokens are known, else four: the GPU's.
`store`   the same with all logits kept for the backward pass: three products.
`naive`   all logits at once, by autograd: a reference.
"""

from __future__ import annotations

from dataclasses import astuple
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from mixc_kernels.linear_ce_ops import linear_ce, linear_ce_weighted
from mixc_kernels.linear_ce_torch import Terms, exact, linear_ce_reference

_TRITON = find_spec("triton") is not None
MODES = ("auto", "hybrid", "store", "vocab", "naive")


class LossOut(NamedTuple):
    """Losses in nats and log-sum-exps of N tokens, float32[N] (float64 of float64 inputs).

    `loss` is 0 where ignored, and NaN for an id out of range, which `bad`, bool[], tells of; on
    the CPU that is an error at once. `total` is the sum of weighted losses, if there are weights,
    and `excess` is loss - ref_loss, if there is that. Gradients flow from `loss` and `total`.
    """

    loss: Tensor
    lse: Tensor
    total: Tensor | None
    excess: Tensor | None
    bad: Tensor


def fused_linear_ce(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    domain: Tensor | None = None,
    alpha: Tensor | None = None,
    token_weight: Tensor | None = None,
    ref_loss: Tensor | None = None,
    ignore_index: int = -100,
    n_vocab: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    budget_bytes: int = 512 << 20,
    mode: str = "auto",
) -> LossOut:
    """Cross-entropy of each token: hidden [N, D], weight [V, D], target int64[N] in [0, n_vocab).

    Rows of weight from `n_vocab` on are padding: no probability, no gradient. Weights of tokens,
    which take no gradient, are `token_weight` [N] or, by `domain` int64[N], alpha [K] of a token's
    domain over the tokens of it that count; with them `total` is the cheapest to differentiate.
    Products are computed in hidden's type on a GPU. Buffers take `budget_bytes`, or one row or
    column; "auto" stores logits where they fit.

    Errors: ValueError for arguments that do not fit together; IndexError for a target or domain
    out of range (targets: on the CPU alone, see `LossOut`).
    """
    terms = Terms(
        len(weight) if n_vocab is None else n_vocab,
        ignore_index,
        softcap or 0.0,
        z_loss,
        label_smoothing,
    )
    _check(hidden, weight, target, terms, mode)
    token_weight = _token_weight(target, domain, alpha, token_weight, terms, exact(hidden.dtype))
    way = _pick(mode, hidden, weight, token_weight is not None, budget_bytes)
    total = None
    if way == "naive":
        loss, lse = linear_ce_reference(hidden, weight, target, terms)
    else:
        settings = (*astuple(terms), budget_bytes)
        if way == "hybrid" and token_weight is not None:
            flags = [torch.is_grad_enabled() and one.requires_grad for one in (hidden, weight)]
            given = hidden, weight, target, token_weight, *settings, *flags
            total, loss, top, sums, _, _ = linear_ce_weighted(*given)
        else:
            loss, top, sums, _ = linear_ce(hidden, weight, target, *settings, way)
        lse = (top + sums.log()).detach()
    if token_weight is not None and total is None:
        total = (loss * token_weight).sum()
    kept = target != ignore_index
    bad = (kept & ((target < 0) | (target >= terms.n_vocab))).any()
    excess = None
    if ref_loss is not None:
        excess = torch.where(kept, loss.detach() - ref_loss, 0.0)
    return LossOut(loss, lse, total, excess, bad)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, terms: Terms, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError("hidden must be [N, D] and weight [V, D]")
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError("target must be int64[N]")
    if not 1 <= terms.n_vocab <= len(weight):
        raise ValueError("n_vocab must be from 1 to the rows of weight")
    if terms.softcap < 0 or not 0 <= terms.label_smoothing <= 1:
        raise ValueError("softcap must be positive, and label_smoothing in [0, 1]")


def _token_weight(
    target: Tensor,
    domain: Tensor | None,
    alpha: Tensor | None,
    token_weight: Tensor | None,
    terms: Terms,
    dtype: torch.dtype,
) -> Tensor | None:
    """The weight of each token, [N], 0 where it is ignored; None if none are given."""
    kept = target != terms.ignore_index
    if alpha is not None:
        if domain is None or token_weight is not None:
            raise ValueError("alpha needs domain, and takes the place of token_weight")
        counts = torch.zeros(len(alpha), dtype=torch.int64, device=target.device)
        counts.index_add_(0, domain, kept.long())
        token_weight = (alpha.detach().to(counts.device, dtype) / counts.clamp(min=1))[domain]
    if token_weight is None:
        return None
    if token_weight.shape != target.shape:
        raise ValueError("token_weight and domain must be [N]")
    return torch.where(kept, token_weight.detach().to(target.device, dtype), 0.0)


def _pick(mode: str, hidden: Tensor, weight: Tensor, weighted: bool, budget: int) -> str:
    if mode == "auto":
        if not hidden.is_cuda or not _TRITON:
            return "vocab"
        mode = "hybrid" if weighted else "store"
        if len(hidden) * len(weight) * exact(hidden.dtype).itemsize > budget:
            mode = "hybrid"
    used = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return "hybrid" if mode == "store" and not used else mode
