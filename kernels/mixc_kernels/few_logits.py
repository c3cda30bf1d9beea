"""Losses of a linear head whose logits are few: their exponentials are held, and used again.

Where all logits [N, V] take little memory, going backwards need not make them again, and the
gradient by them serves what was read and the head's weight alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor

from mixc_kernels.half_products import multiply
from mixc_kernels.linear_ce_torch import (
    Sums,
    Terms,
    absorb_,
    begin_sums,
    exact,
    from_exponentials_,
    losses_of,
    read_targets,
    scale_of,
)
from mixc_kernels.room import room


def few_bytes(device: torch.device) -> int:
    """What logits may take to be held: on a CPU making them again costs a tenth of a step."""
    return room(device, 256 << 20, 512)


class FewLogits(torch.autograd.Function):
    """Losses [N] of x [N, C] by a weight [V, C].

    Going backwards, `report` is given x and the gradient by the logits, [N, V].
    """

    @staticmethod
    def fits(x: Tensor, weight: Tensor, terms: Terms, budget: int) -> bool:
        """Whether it may be used: without half types, or a soft cap, whose slope is not held."""
        bytes_ = len(x) * len(weight) * x.element_size()
        few = bytes_ <= min(budget, few_bytes(x.device))
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
