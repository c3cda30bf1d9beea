"""One backward pass by domain: uses of parameters in, gradients' products and mixes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mixc_kernels.domain_gram import DomainGram, unbiased_squares
from mixc_kernels.grouped_dw import (
    Groups,
    LookupPart,
    Part,
    ProductPart,
    SumPart,
    add_tokens,
    token_groups,
)
from mixc_kernels.grouped_head import HeadPart, Softmax
from mixc_kernels.half_products import operand_type
from mixc_kernels.long_products import long_products, long_squares
from mixc_kernels.room import Buffers
from mixc_kernels.watch_uses import Use


@dataclass(frozen=True)
class Want:
    """What a pass is for: the gradients' products, their mix by `weights` float64[K], all of them.

    `block_bytes` is for the groups' gradients of some rows of a parameter. In `halves` there are 2K
    groups, those of `split_halves`, and what is made of them is for domains. The rest is as in
    `DomainGrads`.
    """

    products: bool = True
    toward: NDArray[np.float64] | None = None
    halves: bool = False
    weights: NDArray[np.float64] | None = None
    keep: bool = False
    block_bytes: int = 4 << 20
    precondition: Mapping[nn.Parameter, Tensor] | None = None
    group: dist.ProcessGroup | None = None
    buffers: Buffers = field(default_factory=Buffers)


class DomainPass:
    """Takes use by use, and settles a parameter once the last of its `uses` has come.

    Rows of the batch are in `groups`, each of `length` tokens. `grads` holds the mix of each
    parameter's gradients, if wanted.
    """

    def __init__(
        self, groups: Groups, length: int, uses: Mapping[nn.Parameter, int], want: Want
    ) -> None:
        self.grads: dict[nn.Parameter, Tensor] = {}
        self._groups, self._length, self._uses, self._want = groups, length, uses, want
        self._domains = len(groups.rows) // (2 if want.halves else 1)
        # Of each block of a parameter; left where they are, so that a GPU need not wait for each.
        self._products: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._across: list[Tensor] = []
        self._kept: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}
        self._waiting: dict[nn.Parameter, list[Part]] = {}
        self._sums: dict[tuple[torch.dtype, torch.device], dict[nn.Parameter, SumPart]] = {}
        self._runs = runs = cache(groups.runs)
        self._token_groups = cache(lambda n, device: token_groups(runs(n), n, device))

    def see(self, use: Use, given: Tensor, dy: Tensor) -> None:
        """Take one use: what its layer was given, and the gradient of what it returned."""
        parts = self._waiting.setdefault(use.parameter, [])
        parts.append(self._part(use, given, dy))
        if len(parts) == self._uses[use.parameter]:
            self._settle(use.parameter)

    def finish(self) -> None:
        """Settle what is left: uses that had no bearing on the losses, and gains and biases."""
        for parameter in list(self._waiting):
            self._settle(parameter)
        for sums in self._sums.values():
            self._settle_sums(sums)

    def gram(self, tokens: NDArray[np.int64]) -> DomainGram:
        """The products that were found, of groups of so many tokens."""
        toward, each = self._want.toward, (self._domains,)
        products = _total(self._products, each * 2 if toward is None else each)
        if toward is None:
            products = (products + products.T) / 2
        if self._want.halves:
            unbiased = unbiased_squares(_total(self._across, each), tokens)
            if toward is None:
                np.fill_diagonal(products, unbiased)
            else:
                products += toward * np.nan_to_num(unbiased)
        counts = tokens.reshape(self._domains, -1).sum(axis=1)
        return DomainGram(products, np.sqrt(_total(self._squares, each)), counts)

    def mix_kept(self, weights: NDArray[np.float64]) -> dict[nn.Parameter, Tensor]:
        """The sum over domains of weights[k] times the kept gradients."""
        return {
            p: _laid(_mixed(kept, weights).view(-1, p.numel() // len(p)), rows, p)
            for p, (kept, rows) in self._kept.items()
        }

    def _part(self, use: Use, given: Tensor, dy: Tensor) -> Part:
        dtype = wide(use.parameter)
        if use.kind == "head":
            return self._head(use, given, dy)
        if use.kind == "product":
            dtype = operand_type(dy, dtype)
        dy = self._by_group(dy, 1).to(dtype)
        runs = self._runs(len(dy))
        if use.kind == "product":
            return ProductPart(use.read(self._by_group(given, 1).to(dtype)), dy, runs)
        if use.kind == "lookup":
            ids = self._by_group(given, 0)
            return LookupPart(ids, dy, self._token_groups(len(dy), dy.device))
        if use.kind == "gain":
            dy = dy * use.read(self._by_group(given, 1).to(dtype))
        if dy.shape[1] != use.parameter.numel():
            raise ValueError(f"{list(use.parameter.shape)} numbers were added to {dy.shape[1]}")
        return SumPart(add_tokens(dy, runs))

    def _head(self, use: Use, given: Tensor, dy: Tensor) -> Part:
        assert use.softmax is not None
        about, dtype = use.softmax, operand_type(given, wide(use.parameter))
        x = self._by_group(given, 1).to(dtype)
        target, top, total = (
            self._by_group(one, 0) for one in (about.target, about.top, about.total)
        )
        softmax = Softmax(target, top, total, about.terms)
        runs = self._runs(len(x))
        return HeadPart(x, use.parameter.detach(), self._by_group(dy, 0), softmax, runs)

    def _by_group(self, x: Tensor, features: int) -> Tensor:
        """x [B, ..., C] or [B * T, C], tokens by group, as [N, C]; no C where features is 0."""
        rows = sum(self._groups.rows)
        if x.ndim == 1 + features and len(x) == rows * self._length:
            x = x.view(rows, self._length, *x.shape[1:])
        elif x.ndim < 2 + features or len(x) != rows:
            raise ValueError(f"a layer read {list(x.shape)}, which does not begin with the rows")
        return self._groups.sorted(x).flatten(0, x.ndim - 1 - features)

    def _settle(self, p: nn.Parameter) -> None:
        want, made = self._want, self._waiting.pop(p)
        if isinstance(made[0], SumPart) and len(made) == 1:
            self._sums.setdefault((wide(p), p.device), {})[p] = made[0]
            return
        parts, rows = _touched(made, p, want.group)
        count, width = len(p) if rows is None else len(rows), p.numel() // len(p)
        groups, scale = len(self._groups.rows), self._scale(p, rows)
        like = torch.empty(0, dtype=wide(p), device=p.device)
        kept = None
        if want.keep:
            kept = want.buffers.take(p, (self._domains, count, width), like)
            self._kept[p] = kept.flatten(1), rows
        grad = None if want.weights is None else like.new_empty(count, width)
        block = max(1, want.block_bytes // (groups * width * like.element_size()))
        for first in range(0, count, block):
            mine = slice(first, min(first + block, count))
            out = want.buffers.take("block", (groups, mine.stop - first, width), like)
            for number, part in enumerate(parts):
                part.put(out, first, fresh=number == 0)
            flat = self._note(
                out.flatten(1),
                None if scale is None else scale[mine].flatten(),
                None if kept is None else kept[:, mine].flatten(1),
            )
            if grad is not None and want.weights is not None:
                grad[mine] = _mixed(flat, want.weights).view(-1, width)
        if grad is not None:
            self.grads[p] = _laid(grad, rows, p)

    def _settle_sums(self, sums: dict[nn.Parameter, SumPart]) -> None:
        """Gains and biases of a type and device, all as one: they are many, and small."""
        want = self._want
        scales = [scale.flatten() for p in sums if (scale := self._scale(p, None)) is not None]
        out = torch.cat([part.sums for part in sums.values()], 1)
        size = self._domains, out.shape[1]
        into = want.buffers.take("sums", size, out) if want.keep else None
        flat = self._note(out, torch.cat(scales) if scales else None, into)
        each = torch.split(flat, [p.numel() for p in sums], 1)
        for p, mine in zip(sums, each, strict=True):
            if want.keep:
                self._kept[p] = mine, None
            if want.weights is not None:
                self.grads[p] = _laid(_mixed(mine, want.weights)[:, None], None, p)

    def _note(self, out: Tensor, scale: Tensor | None, into: Tensor | None) -> Tensor:
        """Note the products, scaled by `scale` [P], of groups' gradients [G, P]; these are lost.

        Returns the domains' gradients [K, P], in `into` if given.
        """
        add_ranks(out, self._want.group)
        if self._want.halves:
            flat = self._fold(out, scale, into)
        else:
            flat = out if into is None else into.copy_(out)
        if self._want.products:
            self._multiply(flat, scale)
        return flat

    def _scale(self, p: nn.Parameter, rows: Tensor | None) -> Tensor | None:
        """What these rows of p are multiplied by in products, [R, C], if anything."""
        if self._want.precondition is None:
            return None
        scale = self._want.precondition[p].detach().view(len(p), -1).to(wide(p))
        return scale if rows is None else scale[rows]

    def _fold(self, out: Tensor, scale: Tensor | None, into: Tensor | None) -> Tensor:
        """The domains' gradients [K, P] of those of halves, which are lost; these make products."""
        a, b = out[::2], out[1::2]
        if into is None:
            into = self._want.buffers.take("whole", tuple(a.shape), a)
        torch.add(a, b, out=into)
        across = b.mul_(a) if scale is None else b.mul_(a).mul_(scale)
        self._across.append(across.sum(1).double())  # torch sums pairwise: no pieces are needed
        return into

    def _multiply(self, flat: Tensor, scale: Tensor | None) -> None:
        """Note the products of the domains' gradients [K, P], or those with their sum.

        What a domain in two halves has in that sum is left out: its halves' product comes instead.
        """
        toward = self._toward(flat)
        if toward is None:
            products = long_products(flat, flat if scale is None else flat * scale)
        else:
            total = toward @ flat
            products = long_products(flat, (total if scale is None else total * scale)[None])[:, 0]
        plain = toward is None and scale is None
        squares = products.diagonal() if plain else long_squares(flat)
        if toward is not None and self._want.halves:
            own = squares if scale is None else (flat * flat * scale).sum(1).double()
            products -= toward * own
        self._products.append(products)
        self._squares.append(squares)

    def _toward(self, like: Tensor) -> Tensor | None:
        toward = self._want.toward
        return None if toward is None else torch.from_numpy(toward).to(like, non_blocking=True)


def _total(found: list[Tensor], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The sum of what was found of each block."""
    total = np.zeros(shape)
    for one in found:
        total += one.cpu().numpy()
    return total


def wide(p: Tensor) -> torch.dtype:
    """What gradients of p are added up in: float32, or its own type if that is wider."""
    return torch.promote_types(p.dtype, torch.float32)


def add_ranks(x: Tensor, group: dist.ProcessGroup | None) -> None:
    """Make x the sum over the ranks of a group."""
    if group is not None:
        dist.all_reduce(x, group=group)


def _touched(
    parts: list[Part], p: nn.Parameter, group: dist.ProcessGroup | None
) -> tuple[list[Part], Tensor | None]:
    """Of an embedding, only the rows that some rank looked up, and parts that count these alone.

    Other parameters have all rows (None).
    """
    lookups = [part for part in parts if isinstance(part, LookupPart)]
    if len(lookups) < len(parts):
        return parts, None
    seen = torch.zeros(len(p), dtype=torch.int64, device=p.device)
    for part in lookups:
        seen[part.ids] = 1
    add_ranks(seen, group)
    rows = seen.nonzero().squeeze(1)
    place = torch.empty_like(seen)
    place[rows] = torch.arange(len(rows), device=p.device)
    return [replace(part, ids=place[part.ids]) for part in lookups], rows


def _mixed(flat: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """The sum over domains of weights[k] times gradient k: [P] from [K, P]."""
    return torch.from_numpy(weights).to(flat, non_blocking=True) @ flat  # the host need not wait


def _laid(grad: Tensor, rows: Tensor | None, p: nn.Parameter) -> Tensor:
    """A gradient of these rows as one of p, in p's type."""
    if rows is not None:
        grad = grad.new_zeros(len(p), grad.shape[1]).index_copy_(0, rows, grad)
    return grad.view(p.shape).to(p.dtype)
