"""UniMax: as uniform as a cap on epochs allows (Chung et al., arXiv:2304.09151, algorithm 1).

The token budget is spread evenly; a domain whose even share would repeat it more often than the
cap gets the cap, and what it leaves is spread over the others.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixc.build.counts import water_fill
from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution

_DEFAULT_EPOCHS = 4.0


class Options(Strict):
    """How often a domain may be repeated."""

    max_epochs: float | None = Field(
        default=None, gt=0, description="cap on epochs; default: mixture.max_epochs, or else 4"
    )


def solve(problem: Problem, options: Options) -> Solution:
    """Water-fill the budget, the mixture's tokens (or the domains' own, if it names none)."""
    epochs = options.max_epochs or problem.max_epochs or _DEFAULT_EPOCHS
    room = epochs * problem.tokens.astype(np.float64)
    budget = min(float(problem.target_tokens or problem.tokens.sum()), float(room.sum()))
    filled = water_fill(np.ones(len(room)), room, budget)
    return Solution.exact(filled / filled.sum())
