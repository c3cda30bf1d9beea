"""Gradients of an output weight by domain, from losses whose logits nobody kept.

Where losses come from `fused_linear_ce`, the logits of a few columns are computed once more, turned
into their gradients, and multiplied with what was read: neither [N, V] nor K gradients [V, D] are
ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mixc_kernels.half_products import add_product, multiply
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
    spans: list[tuple[int, int, int]]

    def add(self, out: Tensor, first: int) -> None:
        """Add (p - y)_k^T x_k to out [K, R, C], p the probabilities and y the targets."""
        targets = read_targets(self.softmax.target, self.softmax.terms)
        scale = scale_of(self.grad, targets)
        sums = Sums(self.softmax.top, self.softmax.total, self.softmax.top, self.softmax.top)
        columns = max(64, tile_bytes(out.device) // (max(1, len(self.x)) * out.element_size()))
        end = min(first + out.shape[1], self.softmax.terms.n_vocab)
        for begin in range(first, end, columns):
            block = self.weight[begin : min(begin + columns, end)].to(self.x.dtype)
            z = self.grad.new_empty(len(self.x), len(block), dtype=out.dtype)
            multiply(self.x, block.T, z)
            differentiate_(z, begin, sums, scale, targets, self.softmax.terms)
            z = z.to(self.x.dtype)
            for k, start, stop in self.spans:
                rows = out[k, begin - first : begin - first + len(block)]
                add_product(z[start:stop].T, self.x[start:stop], rows)
