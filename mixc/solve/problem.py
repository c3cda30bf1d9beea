"""What a method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # methods that train nothing need none of what it imports
    from mixc.solve.lab import Lab

Weights = NDArray[np.float64]
Schedule = tuple[tuple[float, Weights], ...]


@dataclass(frozen=True)
class Problem:
    """K domains to weigh. `tokens` is int64[K], what each has for training.

    `target_tokens` and `max_epochs` are those of the mixture that will be built. `lab` trains
    and scores small models; methods that train nothing never touch it. Paths of a method's options
    are relative to `folder`.
    """

    domains: tuple[str, ...]
    tokens: NDArray[np.int64]
    seed: int
    lab: Lab
    target_tokens: int | None = None
    max_epochs: float | None = None
    folder: Path = Path()


@dataclass(frozen=True)
class DocumentShares:
    """How often documents appear in an epoch: `ids` uint64[n], each once; `weights` float64[n]."""

    ids: NDArray[np.uint64]
    weights: Weights


@dataclass(frozen=True)
class Solution:
    """Weights on the simplex with an interval each, float64[K], and how they came about.

    `trajectory` maps a name to a value per step and domain, [T, K], or per step, [T].
    `bits_per_byte` maps a model's name to its loss on each domain's holdout, [K], NaN where a
    domain holds nothing out. `environment` names what a rerun must share to repeat to the bit.
    `schedule` holds weights that change along the mixture: each pair ends at a part (0..1) of it,
    the last at 1; `weights` are then their mean. `documents` says how often documents appear in an
    epoch, where that is not once.
    """

    weights: Weights
    low: Weights
    high: Weights
    trajectory: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    bits_per_byte: Mapping[str, Weights] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    schedule: Schedule | None = None
    documents: DocumentShares | None = None

    @staticmethod
    def exact(weights: Weights) -> Solution:
        """Weights that follow from the counts alone: their intervals have no width."""
        return Solution(weights, weights, weights)
