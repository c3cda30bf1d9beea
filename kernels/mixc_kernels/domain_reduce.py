"""Sums of per-token losses by domain that do not depend on the order of adding.

Floats added in another order give other bits, so that weights solved on two ranks would not be
those solved on one. Here each loss becomes a whole number of 2**-24 nats first (its square, of
2**-20), and whole numbers are added: the sums are the same to the bit for any chunking, any
permutation of tokens, any number of ranks, on the CPU and on the GPU. A float32 of 0.5 or more
is a multiple of 2**-24, so that only smaller losses are rounded at all.

Sums have room for 2**33 tokens of domains whose losses stay below 32 nats; beyond it they wrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numba
import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

LOSS_SCALE = 2**24
SQUARE_SCALE = 2**20
LARGEST = 2**10  # nats; the square of what is not larger leaves room for 2**23 tokens at worst
MAX_DOMAINS = 2**16


@dataclass(frozen=True, eq=False)
class DomainStats:
    """What tokens of K domains add up to, each int64[K], on the device of the losses.

    Tokens whose loss or reference is NaN or infinite are in `nonfinite_i64` and nowhere else.
    """

    sum_i64: Tensor  # of losses, in 2**-24 nats
    count_i64: Tensor  # tokens
    sumsq_i64: Tensor  # of squared losses, in 2**-20 squared nats
    excess_i64: Tensor  # of max(loss - reference, clip), in 2**-24 nats
    raw_excess_i64: Tensor  # of loss - reference, in 2**-24 nats
    nonfinite_i64: Tensor  # tokens
    clamped_i64: Tensor  # tokens whose loss or reference was cut to +-1024 nats, counted as such

    def __add__(self, other: DomainStats) -> DomainStats:
        return DomainStats(*(self.table() + other.table()))

    def table(self) -> Tensor:
        """All of it, int64[7, K], rows in the order of the fields."""
        return torch.stack([getattr(self, field.name) for field in fields(self)])

    def all_reduce(self) -> DomainStats:
        """The sum over all ranks, on each of them; itself where torch.distributed is not in use."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        table = self.table()
        torch.distributed.all_reduce(table)
        return DomainStats(*table)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which domains have a token that was counted, bool[K]."""
        return _host(self.count_i64) > 0

    def mean(self) -> NDArray[np.float64]:
        """The mean loss of each domain, float64[K], in nats; NaN where there is no token."""
        return self._per_token(self.sum_i64, LOSS_SCALE)

    def mean_excess(self) -> NDArray[np.float64]:
        """The mean clipped excess of each domain, float64[K], in nats; NaN where no token is."""
        return self._per_token(self.excess_i64, LOSS_SCALE)

    def mean_raw_excess(self) -> NDArray[np.float64]:
        """The mean of loss - reference, float64[K], in nats; NaN where there is no token."""
        return self._per_token(self.raw_excess_i64, LOSS_SCALE)

    def variance(self) -> NDArray[np.float64]:
        """The variance of each domain's losses (over n), float64[K]; NaN where no token is."""
        return np.maximum(self._per_token(self.sumsq_i64, SQUARE_SCALE) - self.mean() ** 2, 0.0)

    def _per_token(self, total: Tensor, scale: int) -> NDArray[np.float64]:
        count = _host(self.count_i64)
        means = np.full(len(count), np.nan)
        np.divide(_host(total) / scale, count, out=means, where=count > 0)
        return means


def _host(values: Tensor) -> NDArray[np.int64]:
    return np.asarray(values.cpu().numpy(), np.int64)


def domain_reduce(
    loss: Tensor,
    domain: Tensor,
    K: int,
    *,
    ref_loss: Tensor | None = None,
    clip: float = 0.0,
    valid: Tensor | None = None,
) -> DomainStats:
    """Reduce per-token losses to sums per domain, exactly; no gradient flows.

    loss float32[N] in nats, domain int16, int32 or int64[N] in [0, K), K up to 65536. The excess
    of a token is max(loss - ref_loss, clip), as DoReMi has it (Xie et al., arXiv:2305.10429,
    algorithm 1); without ref_loss, float32[N], the reference is 0. Tokens where `valid`, bool[N],
    is false are in no sum. A domain out of range raises IndexError on the CPU and is a
    device-side assertion on the GPU.
    """
    _check(loss, domain, K, ref_loss, valid)
    loss = loss.detach()
    ref_loss = None if ref_loss is None else ref_loss.detach()
    floor = math.floor(clip * LOSS_SCALE + 0.5)
    if loss.is_cuda:
        from mixc_kernels.domain_reduce_triton import reduce_table

        outside = (domain < 0) | (domain >= K)
        torch._assert_async(~(outside if valid is None else outside & valid).any())
        return DomainStats(*reduce_table(loss, domain, K, ref_loss, floor, valid))
    return DomainStats(*_reduce_table(loss, domain, K, ref_loss, floor, valid))


def _check(
    loss: Tensor, domain: Tensor, K: int, ref_loss: Tensor | None, valid: Tensor | None
) -> None:
    if not 1 <= K <= MAX_DOMAINS:
        raise ValueError(f"there must be 1 to {MAX_DOMAINS} domains, not {K}")
    if loss.dtype != torch.float32 or (ref_loss is not None and ref_loss.dtype != torch.float32):
        raise ValueError("losses must be float32")
    if domain.dtype not in (torch.int16, torch.int32, torch.int64):
        raise ValueError("domains must be int16, int32 or int64")
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError("`valid` must be bool")
    for other in (domain, ref_loss, valid):
        if loss.dim() != 1 or (other is not None and other.shape != loss.shape):
            raise ValueError("losses, domains, references and `valid` must be of one shape, [N]")


def _reduce_table(
    loss: Tensor,
    domain: Tensor,
    K: int,
    ref_loss: Tensor | None,
    floor: int,
    valid: Tensor | None,
) -> Tensor:
    """The rows of `DomainStats.table`, int64[7, K]; `floor` is the clip in 2**-24 nats."""
    table = np.zeros((7, K), np.int64)
    none = np.zeros(0, np.float32)
    wrong = _reduce(
        loss.numpy(),
        domain.numpy(),
        none if ref_loss is None else ref_loss.numpy(),
        none.astype(bool) if valid is None else valid.numpy(),
        floor,
        table,
    )
    if wrong >= 0:
        raise IndexError(f"domain {int(domain[wrong])} is out of range: there are {K} domains")
    return torch.from_numpy(table)


@numba.njit(cache=True, nogil=True)
def _reduce(
    loss: NDArray[np.float32],
    domain: NDArray[np.integer],
    reference: NDArray[np.float32],
    valid: NDArray[np.bool_],
    floor: int,
    table: NDArray[np.int64],
) -> int:  # pragma: no cover - compiled
    """Add tokens to the table; which is the first that names no domain, or -1.

    An empty `reference` is 0, an empty `valid` true. Products with powers of two are exact, and so
    are squares of float32 in float64.
    """
    for i in range(len(loss)):
        if len(valid) and not valid[i]:
            continue
        k = domain[i]
        if k < 0 or k >= table.shape[1]:
            return i
        one, other = np.float64(loss[i]), np.float64(0)
        if len(reference):
            other = np.float64(reference[i])
        if not (np.isfinite(one) and np.isfinite(other)):
            table[5, k] += 1
            continue
        if abs(one) > LARGEST or abs(other) > LARGEST:
            table[6, k] += 1
        x, y = min(max(one, -LARGEST), LARGEST), min(max(other, -LARGEST), LARGEST)
        units = _nearest(x * LOSS_SCALE)
        raw = units - _nearest(y * LOSS_SCALE)
        table[0, k] += units
        table[1, k] += 1
        table[2, k] += _nearest(x * x * SQUARE_SCALE)
        table[3, k] += max(raw, floor)
        table[4, k] += raw
    return -1


@numba.njit(cache=True, nogil=True)
def _nearest(x: float) -> int:  # pragma: no cover - compiled
    """The nearest whole number, halves up: as Triton has it."""
    return int(np.floor(x + 0.5))


def domain_reduce_reference(
    loss: Sequence[float],
    domain: Sequence[int],
    K: int,
    ref_loss: Sequence[float],
    clip: float,
    valid: Sequence[bool],
) -> list[list[int]]:
    """The rows of `DomainStats.table` token by token, in fractions: for tests."""
    table = [[0] * K for _ in range(7)]

    def nearest(x: Fraction) -> int:
        return math.floor(x + Fraction(1, 2))

    for value, where, reference, counts in zip(loss, domain, ref_loss, valid, strict=True):
        if not counts:
            continue
        if not (math.isfinite(value) and math.isfinite(reference)):
            table[5][where] += 1
            continue
        exact, ref = (Fraction(min(max(one, -LARGEST), LARGEST)) for one in (value, reference))
        raw = nearest(exact * LOSS_SCALE) - nearest(ref * LOSS_SCALE)
        table[0][where] += nearest(exact * LOSS_SCALE)
        table[1][where] += 1
        table[2][where] += nearest(exact**2 * SQUARE_SCALE)
        table[3][where] += max(raw, nearest(Fraction(clip) * LOSS_SCALE))
        table[4][where] += raw
        table[6][where] += max(abs(value), abs(reference)) > LARGEST
    return table
