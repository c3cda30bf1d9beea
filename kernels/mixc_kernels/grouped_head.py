"""Gradients of an output weight by domain, from losses whose logits nobody kept.

Where losses come from `fused_linear_ce`, the logits of a few columns are computed once more, turned
into their gradients, and multiplied with what was read: neither [N, V] nor K gradients [V, D] are
ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor

from mixc_kernels.grouped_dw import Run
from mixc_kernels.half_products import multiply, multiply_groups
from mixc_kernels.linear_ce_torch import (
    Sums,
    Terms,
    absorb_,
    begin_sums,
    differentiate_,
    exact,
    from_exponentials_,
    losses_of,
    read_targets,
    scale_of,
    tile_bytes,
)


@dataclass(frozen=True)
class Softmax:
    """What is known of the losses of N tokens: targets, largest logits and sums, [N] each."""

    target: Tensor
    top: Tensor
    total: Tensor
    terms: Terms


@dataclass(frozen=True)
class HeadPart:
    """A weight [rows, C] whose losses of x [N, C] came back times `grad` [N].

    x is of the type of what is added to, or half (on a GPU).
    """

    x: Tensor
    weight: Tensor
    grad: Tensor
    softmax: Softmax
    runs: tuple[Run, ...]

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put (p - y)_k^T x_k to out [K, R, C], p the probabilities and y the targets."""
        targets = read_targets(self.softmax.target, self.softmax.terms)
        scale = scale_of(self.grad, targets)
        sums = Sums(self.softmax.top, self.softmax.total, self.softmax.top, self.softmax.top)
        columns = max(64, tile_bytes(out.device) // (max(1, len(self.x)) * out.element_size()))
        end = min(first + out.shape[1], self.softmax.terms.n_vocab)
        if fresh:
            out[:, max(end - first, 0) :] = 0  # padding: no id
        for begin in range(first, end, columns):
            block = self.weight[begin : min(begin + columns, end)].to(self.x.dtype)
            z = self.grad.new_empty(len(self.x), len(block), dtype=out.dtype)
            multiply(self.x, block.T, z)
            differentiate_(z, begin, sums, scale, targets, self.softmax.terms)
            z = z.to(self.x.dtype)
            rows = slice(begin - first, begin - first + len(block))
            for run in self.runs:
                into = out[run.where, rows]
                multiply_groups(run.of(z).mT, run.of(self.x), into, fresh=fresh)


class FewLogits(torch.autograd.Function):
    """Losses [N] of x [N, C] by a weight [V, C] whose logits fit a tile, which is held.

    The gradient by them, [N, V], is made once, for x and for `report`, which is given x and it.
    """

    @staticmethod
    def fits(x: Tensor, weight: Tensor, terms: Terms) -> bool:
        """Whether it may be used: without half types, or a soft cap, whose slope is not held."""
        few = len(x) * len(weight) * x.element_size() <= tile_bytes(x.device)
        return few and not terms.softcap and x.dtype == weight.dtype == exact(x.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        target: Tensor,
        anchor: Tensor,  # noqa: ARG004
        terms: Terms,
        report: Callable[[Tensor, Tensor], None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(losses, largest logits, sums of exponentials), [N] each, as of `linear_ce`."""
        targets, sums = read_targets(target, terms), begin_sums(x)
        z = x.new_empty(len(x), terms.n_vocab)
        multiply(x, weight[: terms.n_vocab].T, z)  # whatever autocast says
        absorb_(z, 0, sums, targets, terms)
        ctx.save_for_backward(x, weight, target, sums.top, sums.total, z)
        ctx.terms, ctx.report = terms, report
        ctx.mark_non_differentiable(sums.top, sums.total)
        return losses_of(sums, targets, terms), sums.top, sums.total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient by x, and the report."""
        x, weight, target, top, total, exponentials = ctx.saved_tensors
        targets, used = read_targets(target, ctx.terms), ctx.terms.n_vocab
        z = F.pad(exponentials, (0, len(weight) - used))
        sums, scale = Sums(top, total, top, top), scale_of(gradients[0], targets)
        from_exponentials_(z[:, :used], 0, sums, scale, targets, ctx.terms)
        ctx.report(x, z)
        return z @ weight, None, None, None, None, None
