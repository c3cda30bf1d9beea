"""Gradients of a parameter by group, from what a layer read and the gradient of what it wrote.

For y = W x the gradient of a group of rows is the sum of dy x^T over its tokens: G products that
cost together what the plain one does. Each kind of use is a small class that writes or adds its
part to a block of the parameter's rows, out [G, R, C] from row `first` on, so that a tied weight's
uses can be summed block by block and G gradients of a large weight are never held at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixc_kernels.domain_gram import split_halves
from mixc_kernels.half_products import multiply_groups


class Run(NamedTuple):
    """`size` groups, every `step`-th from `first` on, of `each` tokens.

    Their tokens begin at token `begin` + `offset`, those of the next group `stride` tokens later.
    """

    first: int
    step: int
    size: int
    begin: int
    stride: int
    offset: int
    each: int

    @property
    def where(self) -> slice:
        """Which groups."""
        return slice(self.first, self.first + self.step * self.size, self.step)

    def of(self, x: Tensor) -> Tensor:
        """Their tokens of x [N, C]: [size, each, C]."""
        mine = x[self.begin : self.begin + self.size * self.stride]
        across = mine.view(self.size, self.stride, x.shape[1])
        return across[:, self.offset : self.offset + self.each]


@dataclass(frozen=True)
class Groups:
    """Rows of a batch by group: `order` int64[B] sorts them, None if they stand so.

    `rows[g]` is how many rows group g has. Groups are domains, or the `halves` of these.
    """

    order: Tensor | None
    rows: tuple[int, ...]
    halves: bool = False

    def sorted(self, x: Tensor) -> Tensor:
        """Rows of x [B, ...] by group."""
        if self.order is None:
            return x
        return x.index_select(0, self.order.to(x.device, non_blocking=True))

    def runs(self, tokens: int) -> list[Run]:
        """All groups, neighbours of as many of the sorted `tokens` together.

        Of halves, neighbours are also the first ones of domains with as many rows, and the second
        ones, where that makes fewer runs. A run is one product of torch, not many small ones.
        """
        length = tokens // max(1, sum(self.rows))
        runs = list(_neighbours(self.rows, length))
        if not self.halves:
            return runs
        return min(runs, list(_alternate(self.rows, length)), key=len)


def _neighbours(rows: tuple[int, ...], length: int) -> Iterator[Run]:
    first, begin = 0, 0
    for size, equal in groupby(rows):
        count, each = len(list(equal)), size * length
        yield Run(first, 1, count, begin, each, 0, each)
        first, begin = first + count, begin + count * each


def _alternate(rows: tuple[int, ...], length: int) -> Iterator[Run]:
    first, begin = 0, 0
    for sizes, equal in groupby(zip(rows[::2], rows[1::2], strict=True)):
        count, (a, b) = len(list(equal)), (size * length for size in sizes)
        yield Run(first, 2, count, begin, a + b, 0, a)
        yield Run(first + 1, 2, count, begin, a + b, a, b)
        first, begin = first + 2 * count, begin + count * (a + b)


def group_rows(domain: Tensor, domains: int, *, halves: bool = False) -> Groups:
    """Groups of domain int64[B], or of `split_halves` of it.

    Raises ValueError if a domain is not in [0, domains).
    """
    if len(domain) and not 0 <= int(domain.min()) <= int(domain.max()) < domains:
        raise ValueError(f"a domain is not in 0..{domains - 1}")
    group, count = domain, domains
    if halves:
        group, count = torch.from_numpy(split_halves(domain.cpu().numpy(), domains)), 2 * domains
    rows = torch.bincount(group, minlength=count).tolist()
    stands = bool((group[1:] >= group[:-1]).all())
    return Groups(None if stands else torch.argsort(group, stable=True), tuple(rows), halves)


class Part(Protocol):
    """What one use of a parameter adds to its gradients by group."""

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Add rows `first` and on of the gradients to out [G, R, C], or write them where fresh."""


@dataclass(frozen=True)
class ProductPart:
    """A weight [rows, C] of a linear map: x [N, C] was read, dy [N, rows] came back.

    Both are of the type of what they are added to, or both half (on a GPU).
    """

    x: Tensor
    dy: Tensor
    runs: list[Run]

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put dy_g^T x_g."""
        dy = self.dy[:, first : first + out.shape[1]]
        for run in self.runs:
            multiply_groups(run.of(dy).mT, run.of(self.x), out[run.where], fresh=fresh)


@dataclass(frozen=True)
class LookupPart:
    """An embedding [rows, C]: ids int64[N] were looked up by `group` int64[N]."""

    ids: Tensor
    dy: Tensor
    group: Tensor

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put each token's dy [C] to the row of its id and group."""
        groups, rows, width = out.shape
        if fresh:
            out.zero_()
        inside = (self.ids >= first) & (self.ids < first + rows)
        place = (self.group * rows + self.ids - first)[inside]
        out.view(groups * rows, width).index_add_(0, place, self.dy[inside])


@dataclass(frozen=True)
class SumPart:
    """A gain or a bias [rows]: `sums` [G, rows] of the gradients of each group's tokens."""

    sums: Tensor

    def put(self, out: Tensor, first: int, *, fresh: bool) -> None:
        """Put the sums; C is 1."""
        mine = self.sums[:, first : first + out.shape[1], None]
        if fresh:
            out.copy_(mine)
        else:
            out.add_(mine)


def add_tokens(dy: Tensor, runs: list[Run]) -> Tensor:
    """The sums [G, C] of each group's tokens of dy [N, C]."""
    sums = dy.new_empty(sum(run.size for run in runs), dy.shape[1])
    for run in runs:
        sums[run.where] = run.of(dy).sum(1)
    return sums


def token_groups(runs: list[Run], tokens: int, device: torch.device) -> Tensor:
    """The group of each of the sorted tokens, int64[N]."""
    groups = torch.empty(tokens, 1, dtype=torch.int64)
    numbers = torch.arange(sum(run.size for run in runs))
    for run in runs:
        run.of(groups)[:] = numbers[run.where, None, None]
    return groups[:, 0].to(device)
