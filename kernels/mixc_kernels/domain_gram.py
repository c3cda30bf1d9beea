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

    `products` float64[K, K] holds <g_i, g_j>, `norms` float64[K] holds |g_k| as they were before
    any clipping, `tokens` int64[K] what each mean is over. An absent domain has zeros.
    """

    products: Floats
    norms: Floats
    tokens: Ints

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which domains have tokens in the batch, bool[K]."""
        return self.tokens > 0

    def clipped(self, max_norm: float) -> DomainGram:
        """The products of the gradients once each is scaled down to `max_norm` at most."""
        factors = clip_factors(self.norms, max_norm)
        return replace(self, products=self.products * np.outer(factors, factors))


def clip_factors(norms: Floats, max_norm: float) -> Floats:
    """What each gradient is multiplied by: min(1, max_norm / norm), float64[K]."""
    return max_norm / np.maximum(norms, max_norm)


def split_halves(domain: Ints, domains: int) -> Ints:
    """Two pseudo-domains for each domain: its rows go to k and to K + k in turns.

    domain int64[B] in [0, K); so is the result, in [0, 2K).
    """
    halves = domain.copy()
    for k in range(domains):
        halves[np.flatnonzero(domain == k)[1::2]] += domains
    return halves


def half_weights(weights: Floats, halves: Ints) -> Floats:
    """Weights float64[2K] of pseudo-domains that mix the gradient that `weights` float64[K] mix."""
    return np.tile(weights, 2) * _shares(np.bincount(halves, minlength=2 * len(weights)))


def fold_halves(halves: DomainGram) -> DomainGram:
    """The products of K domains from those of their 2K halves.

    <g_i, g_j> is exact for i != j. On the diagonal stands the product of the two halves'
    gradients, an unbiased estimate of |E g_k|^2 where rows are drawn independently; NaN for a
    domain of one row, which has none. Norms are those of the whole gradients.
    """
    count = len(halves.tokens) // 2
    fold = np.concatenate([np.eye(count), np.eye(count)]) * _shares(halves.tokens)[:, None]
    products = fold.T @ halves.products @ fold
    norms = np.sqrt(np.diag(products))
    tokens = halves.tokens.reshape(2, count)
    unbiased = np.diag(halves.products, count)
    np.fill_diagonal(products, np.where((tokens > 0).sum(axis=0) == 1, np.nan, unbiased))
    return DomainGram(products, norms, tokens.sum(axis=0))


def _shares(sizes: NDArray[np.integer]) -> Floats:
    """What part each half is of its domain, float64[2K]; 0 where there is nothing."""
    whole = np.tile(sizes.reshape(2, -1).sum(axis=0), 2)
    return np.asarray(sizes / np.maximum(whole, 1))
