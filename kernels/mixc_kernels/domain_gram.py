"""Inner products of domains' gradients, and what follows from them alone. Imports no torch.

Clipping each gradient before the products are taken, as DoGE does (S. Fan et al., "DoGE: domain
reweighting with generalization estimation", arXiv:2310.15393), needs no gradient: the norms stand
on the diagonal. The diagonal of one batch is biased, E|g|^2 = |E g|^2 + noise; the product of
gradients of two halves of a domain's rows is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DomainGram:
    """What is known of K gradients g_k, each of the mean loss of domain k's tokens in a batch.

    `products` float64[K, K] holds <g_i, g_j>, or float64[K] those with one sum of gradients,
    `norms` float64[K] holds |g_k| as they were before any clipping, `tokens` int64[K] what each
    mean is over. An absent domain has zeros.
    """

    products: Floats
    norms: Floats
    tokens: Ints

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which domains have tokens in the batch, bool[K]."""
        return self.tokens > 0

    def clipped(self, max_norm: float) -> DomainGram:
        """The products of the gradients once each is scaled down to `max_norm` at most.

        Errors: ValueError for products with a sum.
        """
        if self.products.ndim != 2:
            raise ValueError("products with a sum are not those with a sum of clipped gradients")
        factors = clip_factors(self.norms, max_norm)
        return replace(self, products=self.products * np.outer(factors, factors))


def gram_flops(
    domains: int, numbers: int, *, toward: bool, halves: bool = False, precondition: bool = False
) -> float:
    """Floating-point operations, at most, of what `DomainGrads` does with K gradients [P].

    Of their products and their mix, that is, not of the backward pass that makes them; `numbers`
    is P, and the rest says which of its options are used.
    """
    products = 6 if toward else 2 * domains  # a sum, products with it, and norms; or of all pairs
    mix = 2
    return float(products + mix + 3 * halves + 5 * precondition) * domains * numbers


def clip_factors(norms: Floats, max_norm: float) -> Floats:
    """What each gradient is multiplied by: min(1, max_norm / norm), float64[K]."""
    return max_norm / np.maximum(norms, max_norm)


def split_halves(domain: Ints, domains: int) -> Ints:
    """Two groups for each domain k, 2k and 2k + 1: the first half of its rows, and the second.

    domain int64[B] in [0, K); so is the result, in [0, 2K). Rows that stand by domain stand by
    group, too. Of an odd number the first half has the row more.
    """
    halves = 2 * domain
    for k in range(domains):
        rows = np.flatnonzero(domain == k)
        halves[rows[(len(rows) + 1) // 2 :]] += 1
    return halves


def unbiased_squares(across: Floats, halves: Ints) -> Floats:
    """Unbiased estimates of |E g_k|^2, float64[K], where rows are drawn independently.

    `across` float64[K] holds <a_k, b_k> of the halves' gradients, g_k = a_k + b_k; `halves`
    int64[2K] counts their tokens. NaN for a domain of one row.
    """
    first, second = halves.reshape(-1, 2).T
    squares = across * np.square(first + second) / np.maximum(first * second, 1)
    return np.where((first > 0) == (second > 0), squares, np.nan)
