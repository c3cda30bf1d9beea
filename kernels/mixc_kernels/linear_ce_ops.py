"""The operators of torch behind `fused_linear_ce`, so that torch.compile goes around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixc_kernels.linear_ce_rows import Rows, buffer, row_gradients, row_losses
from mixc_kernels.linear_ce_torch import (
    Terms,
    exact,
    read_targets,
    vocab_gradients,
    vocab_losses,
)


@torch.library.custom_op("mixc::linear_ce", mutates_args=())
def _linear_ce(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    n_vocab: int,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    budget: int,
    way: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, top, total, logits if they are stored)."""
    terms = Terms(n_vocab, ignore_index, softcap, z_loss, label_smoothing)
    if way == "vocab":
        found = vocab_losses(hidden, weight, target, terms, budget)
        return *found, buffer(0, weight, exact(hidden.dtype))
    target, keep = _checked(target, terms), way == "store"
    rows = row_losses(hidden, weight, target, None, terms, budget, keep=keep)
    return rows.loss, rows.top, rows.total, rows.logits


@torch.library.custom_op("mixc::linear_ce_backward", mutates_args=())
def _linear_ce_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    top: Tensor,
    total: Tensor,
    logits: Tensor,
    n_vocab: int,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    budget: int,
    way: str,
    by_hidden: bool,
    by_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad * loss) by hidden and weight; empty where not asked for."""
    terms = Terms(n_vocab, ignore_index, softcap, z_loss, label_smoothing)
    asked = {"by_hidden": by_hidden, "by_weight": by_weight}
    if way == "vocab":
        return vocab_gradients(grad, hidden, weight, target, top, total, terms, budget, **asked)
    nothing = top.new_empty(0)
    rows = Rows(nothing, top, total, nothing, nothing, logits)
    target, grad = target.contiguous(), grad.contiguous()
    dx, dw = row_gradients(grad, hidden, weight, target, rows, terms, budget, **asked)
    return dx.to(hidden.dtype), dw.to(weight.dtype)


@torch.library.custom_op("mixc::linear_ce_weighted", mutates_args=())
def _linear_ce_weighted(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_weight: Tensor,
    n_vocab: int,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    budget: int,
    by_hidden: bool,
    by_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(sum(token_weight * loss), loss, top, total, its gradients by hidden and weight)."""
    terms = Terms(n_vocab, ignore_index, softcap, z_loss, label_smoothing)
    target, scale = _checked(target, terms), token_weight.contiguous()
    asked = {"by_hidden": by_hidden, "by_weight": by_weight}
    rows = row_losses(hidden, weight, target, scale, terms, budget, **asked)
    return (rows.loss * scale).sum(), *rows[:5]


def _checked(target: Tensor, terms: Terms) -> Tensor:
    read_targets(target, terms)  # raises on the CPU
    return target.contiguous()


def _fake_rows(hidden: Tensor, weight: Tensor, logits: int) -> tuple[Tensor, ...]:
    dtype = exact(hidden.dtype)
    rows = [torch.empty(len(hidden), dtype=dtype, device=hidden.device) for _ in range(3)]
    return *rows, buffer(logits, weight, dtype)


def _fake_gradients(
    x: Tensor, w: Tensor, by_hidden: bool, by_weight: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if by_hidden else 0), w.new_empty(w.shape if by_weight else 0)


@_linear_ce.register_fake
def _fake_linear_ce(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_rows(hidden, weight, len(hidden) if rest[-1] == "store" else 0)


@_linear_ce_backward.register_fake
def _fake_backward(_: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(hidden, weight, *rest[-2:])


@_linear_ce_weighted.register_fake
def _fake_weighted(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rows = _fake_rows(hidden, weight, 0)[:3]
    dtype, (by_hidden, by_weight) = exact(hidden.dtype), rest[-2:]
    x = hidden if hidden.is_cuda else hidden.to(dtype)
    gradients = _fake_gradients(x, weight.to(dtype), by_hidden, by_weight)
    return rows[0].new_empty(()), *rows, *gradients


# What is called: the operators themselves, which modes of torch see as such.
linear_ce = torch.ops.mixc.linear_ce.default
linear_ce_backward = torch.ops.mixc.linear_ce_backward.default
linear_ce_weighted = torch.ops.mixc.linear_ce_weighted.default


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, *settings, ctx.way = inputs
    ctx.settings = settings
    ctx.save_for_backward(hidden, weight, target, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(ctx.settings) + 2)
    if grad is None:
        return None, None, *nothing
    asked = ctx.needs_input_grad[:2]
    dx, dw = linear_ce_backward(grad, *ctx.saved_tensors, *ctx.settings, ctx.way, *asked)
    return dx if asked[0] else None, dw if asked[1] else None, *nothing


def _save_weighted(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, target, _, *settings, _, _ = inputs
    ctx.settings = settings
    ctx.save_for_backward(hidden, weight, target, *output[2:])
    ctx.set_materialize_grads(False)


def _differentiate_weighted(
    ctx: Any, by_total: Tensor | None, by_loss: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    """From the total its gradients are known; from single losses they are computed again."""
    hidden, weight, target, top, total, *known = ctx.saved_tensors
    asked = ctx.needs_input_grad[:2]
    found: list[Tensor | None] = [None, None]
    if by_total is not None:
        for i, one in enumerate((hidden, weight)):
            if asked[i]:
                found[i] = (known[i] * by_total).to(one.dtype)  # anew: backward may be run again
    if by_loss is not None:
        logits = buffer(0, weight, exact(hidden.dtype))
        saved = hidden, weight, target, top, total, logits
        more = linear_ce_backward(by_loss, *saved, *ctx.settings, "hybrid", *asked)
        for i in range(2):
            if asked[i]:
                found[i] = more[i] if found[i] is None else found[i] + more[i]
    return *found, *(None,) * (len(ctx.settings) + 4)


_linear_ce.register_autograd(_differentiate, setup_context=_save)
_linear_ce_weighted.register_autograd(_differentiate_weighted, setup_context=_save_weighted)
