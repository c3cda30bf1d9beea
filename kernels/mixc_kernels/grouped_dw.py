"""Gradients of a parameter by domain, from what a layer read and the gradient of what it wrote.

For y = W x the gradient of domain k is the sum of dy x^T over its tokens: K products that cost
together what the plain one does. Each kind of use is a small class that adds its part to a block
of the parameter's rows, out [K, R, C] from row `first` on, so that a tied weight's uses can be
summed block by block and K gradients of a large weight are never held at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mixc_kernels.half_products import add_product


@dataclass(frozen=True)
class Groups:
    """Rows of a batch by domain: `order` int64[B] sorts them, None if they stand so.

    `rows[k]` is how many rows domain k has.
    """

    order: Tensor | None
    rows: tuple[int, ...]

    def sorted(self, x: Tensor) -> Tensor:
        """Rows of x [B, ...] by domain."""
        if self.order is None:
            return x
        return x.index_select(0, self.order.to(x.device, non_blocking=True))

    def spans(self, tokens: int) -> list[tuple[int, int, int]]:
        """(k, begin, end) of each domain that has any of the sorted `tokens`."""
        each = tokens // max(1, sum(self.rows))
        spans, begin = [], 0
        for k, rows in enumerate(self.rows):
            if rows:
                spans.append((k, begin, begin + rows * each))
            begin += rows * each
        return spans


def group_rows(domain: Tensor, domains: int) -> Groups:
    """Groups of domain int64[B]. Raises ValueError if one is not in [0, domains)."""
    if len(domain) and not 0 <= int(domain.min()) <= int(domain.max()) < domains:
        raise ValueError(f"a domain is not in 0..{domains - 1}")
    rows = torch.bincount(domain, minlength=domains).tolist()
    stands = bool((domain[1:] >= domain[:-1]).all())
    return Groups(None if stands else torch.argsort(domain, stable=True), tuple(rows))


class Part(Protocol):
    """What one use of a parameter adds to its gradients by domain."""

    def add(self, out: Tensor, first: int) -> None:
        """Add rows `first` and on of the gradients to out [K, R, C]."""


@dataclass(frozen=True)
class ProductPart:
    """A weight [rows, C] of a linear map: x [N, C] was read, dy [N, rows] came back.

    Both are of the type of what they are added to, or both half (on a GPU).
    """

    x: Tensor
    dy: Tensor
    spans: list[tuple[int, int, int]]

    def add(self, out: Tensor, first: int) -> None:
        """Add dy_k^T x_k."""
        dy = self.dy[:, first : first + out.shape[1]]
        for k, begin, end in self.spans:
            add_product(dy[begin:end].T, self.x[begin:end], out[k])


@dataclass(frozen=True)
class LookupPart:
    """An embedding [rows, C]: ids int64[N] were looked up by `domain` int64[N]."""

    ids: Tensor
    dy: Tensor
    domain: Tensor

    def add(self, out: Tensor, first: int) -> None:
        """Add each token's dy [C] to the row of its id and domain."""
        domains, rows, width = out.shape
        inside = (self.ids >= first) & (self.ids < first + rows)
        place = (self.domain * rows + self.ids - first)[inside]
        out.view(domains * rows, width).index_add_(0, place, self.dy[inside])


@dataclass(frozen=True)
class SumPart:
    """A gain or a bias [rows]: gradients [N, rows] of each token add up."""

    dy: Tensor
    spans: list[tuple[int, int, int]]

    def add(self, out: Tensor, first: int) -> None:
        """Add the sums over each domain's tokens; C is 1."""
        dy = self.dy[:, first : first + out.shape[1]]
        for k, begin, end in self.spans:
            out[k, :, 0] += dy[begin:end].sum(0)


def token_domains(spans: list[tuple[int, int, int]], device: torch.device) -> Tensor:
    """The domain of each sorted token, int64[N]."""
    names = torch.tensor([k for k, _, _ in spans], device=device)
    counts = torch.tensor([end - begin for _, begin, end in spans], device=device)
    return names.repeat_interleave(counts)
