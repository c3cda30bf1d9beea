"""One backward pass by domain: uses of parameters in, gradients' products and mixes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mixc_kernels.domain_gram import DomainGram
from mixc_kernels.grouped_dw import (
    Groups,
    LookupPart,
    Part,
    ProductPart,
    SumPart,
    token_domains,
)
from mixc_kernels.grouped_head import HeadPart, Softmax
from mixc_kernels.half_products import operand_type
from mixc_kernels.long_products import long_products
from mixc_kernels.watch_uses import Use


@dataclass(frozen=True)
class Want:
    """What a pass is for: the gradients' products, their mix by `weights` float64[K], all of them.

    `block_bytes` is for K gradients of some rows of a parameter; where all are kept there is one
    block. `precondition` and `group` are as in `DomainGrads`.
    """

    products: bool = True
    weights: NDArray[np.float64] | None = None
    keep: bool = False
    block_bytes: int = 16 << 20
    precondition: Mapping[nn.Parameter, Tensor] | None = None
    group: dist.ProcessGroup | None = None


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
        # Of each block of a parameter; left where they are, so that a GPU need not wait for each.
        self._products: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._kept: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}
        self._waiting: dict[nn.Parameter, list[Part]] = {}
        self._scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def see(self, use: Use, given: Tensor, dy: Tensor) -> None:
        """Take one use: what its layer was given, and the gradient of what it returned."""
        parts = self._waiting.setdefault(use.parameter, [])
        parts.append(self._part(use, given, dy))
        if len(parts) == self._uses[use.parameter]:
            self._settle(use.parameter)

    def finish(self) -> None:
        """Settle the parameters with a use that had no bearing on the losses."""
        for parameter in list(self._waiting):
            self._settle(parameter)

    def gram(self, tokens: NDArray[np.int64]) -> DomainGram:
        """The products that were found, of gradients that are means over so many tokens."""
        domains = len(self._groups.rows)
        products, squares = np.zeros((domains, domains)), np.zeros(domains)
        for one, square in zip(self._products, self._squares, strict=True):
            products += one.cpu().numpy()
            squares += square.cpu().numpy()
        return DomainGram((products + products.T) / 2, np.sqrt(squares), tokens)

    def mix_kept(self, weights: NDArray[np.float64]) -> dict[nn.Parameter, Tensor]:
        """The sum over domains of weights[k] times the kept gradients."""
        return {p: _laid(_mixed(out, weights), rows, p) for p, (out, rows) in self._kept.items()}

    def _part(self, use: Use, given: Tensor, dy: Tensor) -> Part:
        dtype = wide(use.parameter)
        if use.kind == "head":
            return self._head(use, given, dy)
        if use.kind == "product":
            dtype = operand_type(dy, dtype)
        dy = self._by_domain(dy, 1).to(dtype)
        spans = self._groups.spans(len(dy))
        if use.kind == "lookup":
            return LookupPart(self._by_domain(given, 0), dy, token_domains(spans, dy.device))
        if use.kind == "sum":
            return SumPart(dy, spans)
        read = use.read(self._by_domain(given, 1).to(dtype))
        return ProductPart(read, dy, spans) if use.kind == "product" else SumPart(dy * read, spans)

    def _head(self, use: Use, given: Tensor, dy: Tensor) -> Part:
        assert use.softmax is not None
        about, dtype = use.softmax, operand_type(given, wide(use.parameter))
        x = self._by_domain(given, 1).to(dtype)
        target, top, total = (
            self._by_domain(one, 0) for one in (about.target, about.top, about.total)
        )
        softmax = Softmax(target, top, total, about.terms)
        spans = self._groups.spans(len(x))
        return HeadPart(x, use.parameter.detach(), self._by_domain(dy, 0), softmax, spans)

    def _by_domain(self, x: Tensor, features: int) -> Tensor:
        """x [B, ..., C] or [B * T, C], tokens by domain, as [N, C]; no C where features is 0."""
        rows = sum(self._groups.rows)
        if x.ndim == 1 + features and len(x) == rows * self._length:
            x = x.view(rows, self._length, *x.shape[1:])
        elif x.ndim < 2 + features or len(x) != rows:
            raise ValueError(f"a layer read {list(x.shape)}, which does not begin with the rows")
        return self._groups.sorted(x).flatten(0, x.ndim - 1 - features)

    def _settle(self, p: nn.Parameter) -> None:
        want, domains = self._want, len(self._groups.rows)
        parts, rows = _touched(self._waiting.pop(p), p, want.group)
        count, width = len(p) if rows is None else len(rows), p.numel() // len(p)
        room = want.block_bytes // (domains * width * wide(p).itemsize)
        block = count if want.keep else max(1, room)
        grad = torch.empty(count, width, dtype=wide(p), device=p.device)
        for first in range(0, count, block):
            mine = slice(first, min(first + block, count))
            out = self._zeros(p, domains, mine.stop - first, width)
            for part in parts:
                part.add(out, first)
            add_ranks(out, want.group)
            if want.products:
                self._multiply(p, out, mine if rows is None else rows[mine])
            if want.keep:
                self._kept[p] = out, rows
            if want.weights is not None:
                grad[mine] = _mixed(out, want.weights)
        if want.weights is not None:
            self.grads[p] = _laid(grad, rows, p)

    def _zeros(self, p: nn.Parameter, *size: int) -> Tensor:
        """Where gradients are added up: memory that was used before, unless they are kept."""
        kind, numel = (wide(p), p.device), math.prod(size)
        if self._want.keep:
            return torch.zeros(size, dtype=wide(p), device=p.device)
        if kind not in self._scratch or self._scratch[kind].numel() < numel:
            self._scratch[kind] = torch.empty(numel, dtype=wide(p), device=p.device)
        return self._scratch[kind][:numel].view(size).zero_()

    def _multiply(self, p: nn.Parameter, out: Tensor, rows: Tensor | slice) -> None:
        """Add the products of gradients out [K, R, C] of these rows of p."""
        flat = out.flatten(1)
        if self._want.precondition is None:
            products = long_products(flat, flat)
            squares = products.diagonal()
        else:
            scale = self._want.precondition[p].detach().view(len(p), -1)[rows]
            products = long_products(flat, (out * scale.to(out)).flatten(1))
            squares = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
        self._products.append(products)
        self._squares.append(squares)


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


def _mixed(out: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """The sum over domains of weights[k] out[k]: [R, C] from [K, R, C]."""
    there = torch.from_numpy(weights).to(out, non_blocking=True)  # the host need not wait
    return (there @ out.flatten(1)).view(out.shape[1:])


def _laid(grad: Tensor, rows: Tensor | None, p: nn.Parameter) -> Tensor:
    """A gradient of these rows as one of p, in p's type."""
    if rows is not None:
        grad = grad.new_zeros(len(p), grad.shape[1]).index_copy_(0, rows, grad)
    return grad.view(p.shape).to(p.dtype)
