"""Gradients of a parameter by domain, from what a layer read and the gradient of what it wrote.

For y = W x the gradient of domain k is the sum of dy x^T over its tokens: K products that cost
together what the plain one does. Each kind of use is a small class that writes or adds its part to
a block of the parameter's rows, out [K, R, C] from row `first` on, so that a tied weight's uses can
be summed block by block and K gradients of a large weight are never held at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixc_kernels.half_products import multiply_groups


class Run(NamedTuple):
    """`groups` groups from `first` on, of `each` tokens, that begin at token `begin`."""

    first: int
    groups: int
    begin: int
    each: int

    @property
    def where(self) -> slice:
        """Which groups."""
        return slice(self.first, self.first + self.groups)

    def of(self, x: Tensor) -> Tensor:
        """Their tokens of x [N, C]: [count, each, C]."""
        mine = x[self.begin : self.begin + self.groups * self.each]
        return mine.view(self.groups, self.each, x.shape[1])


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

    def runs(self, tokens: int) -> tuple[Run, ...]:
        """All groups, those that have as many of the sorted `tokens` as their neighbours together:
        they are one product of torch, and not many small ones.
        """
        return tuple(self._runs(tokens // max(1, sum(self.rows))))

    def _runs(self, length: int) -> Iterator[Run]:
        first, begin = 0, 0
        for rows, equal in groupby(self.rows):
            run = Run(first, len(list(equal)), begin, rows * length)
            yield run
            first, begin = first + run.groups, begin + run.groups * run.each


def group_rows(domain: Tensor, domains: int) -> Groups:
    """Groups of domain int64[B]. Raises ValueError if one is not in [0, domains)."""
    if len(domain) and not 0 <= int(domain.min()) <= int(domain.max()) < domains:
        raise ValueError(f"a domain is not in 0..{domains - 1}")
    rows = torch.bincount(domain, minlength=domains).tolist()
    stands = bool((domain[1:] >= domain[:-1]).all())
    return Groups(None if stands else torch.argsort(domain, stable=True), tuple(rows))


class Part(Protocol):
    """What one use of a parameter adds to its gradients by domain."""

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Add rows `first` and on of the gradients to out [K, R, C], or write them where fresh."""


@dataclass(frozen=True)
class ProductPart:
    """A weight [rows, C] of a linear map: x [N, C] was read, dy [N, rows] came back.

    Both are of the type of what they are added to, or both half (on a GPU).
    """

    x: Tensor
    dy: Tensor
    runs: tuple[Run, ...]

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put dy_k^T x_k."""
        dy = self.dy[:, first : first + out.shape[1]]
        for run in self.runs:
            multiply_groups(run.of(dy).mT, run.of(self.x), out[run.where], fresh=fresh)


@dataclass(frozen=True)
class LookupPart:
    """An embedding [rows, C]: ids int64[N] were looked up by `domain` int64[N]."""

    ids: Tensor
    dy: Tensor
    domain: Tensor

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put each token's dy [C] to the row of its id and domain."""
        domains, rows, width = out.shape
        if fresh:
            out.zero_()
        inside = (self.ids >= first) & (self.ids < first + rows)
        place = (self.domain * rows + self.ids - first)[inside]
        out.view(domains * rows, width).index_add_(0, place, self.dy[inside])


@dataclass(frozen=True)
class SumPart:
    """A gain or a bias [rows]: `sums` [K, rows] of each domain's tokens' gradients."""

    sums: Tensor

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put the sums; C is 1."""
        mine = self.sums[:, first : first + out.shape[1], None]
        if fresh:
            out.copy_(mine)
        else:
            out.add_(mine)


def add_tokens(dy: Tensor, domain: Tensor, domains: int) -> Tensor:
    """The sums [K, C] of each domain's tokens of dy [N, C], `domain` int64[N].

    By a product of matrices, which adds in the same order each time.
    """
    return (domain == torch.arange(domains, device=dy.device)[:, None]).to(dy) @ dy


def token_domains(runs: tuple[Run, ...], device: torch.device) -> Tensor:
    """The domain of each sorted token, int64[N]."""
    counts = torch.tensor([run.each for run in runs for _ in range(run.groups)], device=device)
    return torch.arange(len(counts), device=device).repeat_interleave(counts)
