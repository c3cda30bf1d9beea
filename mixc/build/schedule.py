"""Weights along the mixture: its stages, and the whole rows that realise them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import Counts, stage_counts

Real = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """A stage as asked for: it ends at `until` (0..1) of all rows.

    Weights are float64[K], of sum 1; they go linearly from `begin` to `end`, or stay.
    """

    until: float
    begin: Real
    end: Real
    ramp: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage in whole rows: `counts` int64[K] from row `first` on.

    `begin` is int64[K] of the same sum: begin / rows are the weights at its begin, and
    (2 counts - begin) / rows at its end; without a ramp it equals `counts`.
    """

    first: int
    counts: Index
    begin: Index

    @property
    def rows(self) -> int:
        """Rows of the stage."""
        return int(self.counts.sum())

    @property
    def ramp(self) -> bool:
        """Whether its weights change."""
        return not np.array_equal(self.begin, self.counts)


@dataclass(frozen=True)
class Schedule:
    """All stages. `weights` is float64[K], what was asked for over the whole mixture."""

    asked: tuple[Asked, ...]
    stages: tuple[Stage, ...]
    weights: Real
    counts: Counts


def constant(weights: Real) -> tuple[Asked, ...]:
    """The one stage of a mixture whose weights do not change."""
    return (Asked(1.0, weights, weights),)


def make_schedule(asked: Sequence[Asked], rows: int, room: Index) -> Schedule:
    """Whole rows of every stage, `rows` in all, at most `room` (int64[K]) of each domain.

    A cap that binds cuts a domain by one factor in every stage: see `counts.spread`. Raises
    MX060 if the domains hold too little.
    """
    ends = [int(stage.until * rows + 0.5) for stage in asked[:-1]] + [rows]
    sizes = np.diff([0, *ends])
    shares = np.array([_mean(stage) for stage in asked])
    counts = stage_counts(shares, sizes, room)
    stages = [
        Stage(end - int(size), count, _begin(stage, count))
        for stage, end, size, count in zip(asked, ends, sizes, counts, strict=True)
    ]
    weights = shares[0] if len(asked) == 1 else np.asarray(sizes @ shares / rows, np.float64)
    # A hair less, so that rounding never calls cut what fits exactly.
    capped = weights * rows / weights.sum() * (1 - 1e-9) > np.where(weights > 0, room, 0)
    return Schedule(tuple(asked), tuple(stages), weights, Counts(counts.sum(axis=0), capped))


def _mean(stage: Asked) -> Real:
    return np.asarray((stage.begin + stage.end) / 2, np.float64) if stage.ramp else stage.begin


def _begin(stage: Asked, counts: Index) -> Index:
    """Where a ramp of these counts begins: as steep as was asked, in whole numbers, int64[K].

    Each lies in 0..2 counts, so that no weight along the ramp is below 0.
    """
    total = int(counts.sum())
    if not stage.ramp or not total:
        return counts
    both = stage.begin + stage.end
    part = np.divide(stage.begin, both, out=np.zeros_like(both), where=both > 0)
    wanted = 2 * counts * part
    if wanted.sum() > total:
        wanted = wanted * (total / wanted.sum())
    else:
        room = 2 * counts - wanted
        wanted = wanted + room * ((total - wanted.sum()) / room.sum())
    shares = (wanted / wanted.sum())[None]
    return np.asarray(stage_counts(shares, np.array([total]), 2 * counts)[0], np.int64)


def describe(schedule: Schedule, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The stages as a manifest holds them: where each begins, weights asked for and realised."""
    described = []
    for asked, stage in zip(schedule.asked, schedule.stages, strict=True):
        total = max(stage.rows, 1)
        arrays = {
            "begin": asked.begin,
            "weight": asked.end,
            "rows": stage.counts,
            "realised": stage.counts / total,
            "realised_begin": stage.begin / total,
            "realised_end": (2 * stage.counts - stage.begin) / total,
        }
        kept = arrays if asked.ramp else {k: arrays[k] for k in ("weight", "rows", "realised")}
        described.append(
            {
                "until": asked.until,
                "ramp": asked.ramp,
                "first": stage.first,
                "rows": stage.rows,
                "domains": {
                    name: {key: array[i].item() for key, array in kept.items()}
                    for i, name in enumerate(domains)
                },
            }
        )
    return described


def asked_of(described: Sequence[Mapping[str, Any]]) -> tuple[Asked, ...]:
    """What was asked for, from a manifest's stages."""
    stages = []
    for stage in described:
        ends = np.array([one["weight"] for one in stage["domains"].values()], np.float64)
        begins = [one.get("begin", one["weight"]) for one in stage["domains"].values()]
        stages.append(Asked(stage["until"], np.array(begins, np.float64), ends, stage["ramp"]))
    return tuple(stages)
