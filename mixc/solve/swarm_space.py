"""The mixes that a swarm varies: all domains, or, with reuse, those that changed.

Mixture reuse (Olmix): after domains were added, removed or split, those that an earlier solve
has weighed keep their proportions to each other and count as one domain, so that the swarm has
fewer unknowns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, did_you_mean

Index = NDArray[np.int64]
Real = NDArray[np.float64]


@dataclass(frozen=True)
class SwarmSpace:
    """k parts of K domains: basis float64[K, k], whose columns sum to 1.

    `natural` and `cap` are those of the parts, float64[k]. A mix of parts is the
    mix `parts @ basis.T` of domains.
    """

    basis: Real
    natural: Real
    cap: Real

    def mixes(self, parts: Real) -> Real:
        """Mixes of domains [..., K] from mixes of parts [..., k]."""
        return np.asarray(parts @ self.basis.T, np.float64)

    def order(self, domains: Index) -> Index:
        """The parts, int64[k], as the first domain of each stands in an order of them, int64[K]."""
        return np.argsort((self.basis[domains] > 0).argmax(axis=0), kind="stable")


def whole(natural: Real, cap: Real) -> SwarmSpace:
    """Each domain a part of its own."""
    return SwarmSpace(np.eye(len(natural)), natural, cap)


def reusing(
    previous: Mapping[str, float],
    changed: Collection[str],
    domains: Sequence[str],
    natural: Real,
    cap: Real,
) -> SwarmSpace:
    """The domains that `previous` does not weigh or that are `changed`, and one for the rest.

    Raises MX061 if a changed domain is not there, or nothing is left to keep or to solve.
    """
    for name in changed:
        if name not in domains:
            message = f"solve.regression.changed names '{name}', which is no domain"
            raise MixcError("MX061", message, help=did_you_mean(name, list(domains)))
    kept = np.array([name in previous and name not in changed for name in domains])
    shares = np.array([previous.get(name, 0.0) for name in domains]) * kept
    shares[(cap <= 0) | (natural <= 0)] = 0.0
    if kept.all() or shares.sum() <= 0:
        what = "nothing changed" if kept.all() else "no domain keeps a weight"
        hint = "name domains that changed under solve.regression.changed, or leave out reuse"
        raise MixcError("MX061", f"of the weights to reuse, {what}", help=hint)
    shares = shares / shares.sum()
    basis = np.c_[np.eye(len(domains))[:, ~kept], shares]
    together = shares > 0
    most = min(1.0, float((cap[together] / shares[together]).min()))
    caps = np.r_[cap[~kept], most]
    if caps.sum() < 1 - 1e-9:
        message = "under mixture.max_epochs, the domains cannot keep the proportions of 'reuse'"
        raise MixcError("MX060", message, help="leave out reuse, or raise mixture.max_epochs")
    return SwarmSpace(basis, np.r_[natural[~kept], natural[kept].sum()], caps)
