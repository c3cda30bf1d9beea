"""Gradients of an output weight by group, from losses whose logits nobody kept.

Where losses come from `fused_linear_ce`, the logits of a few columns are computed once more, turned
into their gradients, and multiplied with what was read: neither [N, V] nor G gradients [V, D] are
ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mixc_kernels.grouped_dw import Run
from mixc_kernels.half_products import multiply, multiply_groups
from mixc_kernels.linear_ce_torch import (
    Sums,
    Terms,
    differentiate_,
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
    runs: list[Run]

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put (p - y)_g^T x_g to out [G, R, C], p the probabilities and y the targets."""
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
