"""One answer from the solutions of several seeds.

Each seed stands for a whole run of the method: the first weights of its models, the order of the
data and all else that is random. The solution of seed s is that of a recipe whose seed is s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mixc.solve.doubts import total_variation
from mixc.solve.problem import DocumentShares, Schedule, Solution


def combine(solutions: Sequence[Solution]) -> Solution:
    """The mean of the seeds' weights; costs are summed, losses averaged.

    An interval reaches from the lowest end of the seeds' own to the highest, and so holds what
    they say about batches as well as how far they lie apart. The weights
    of stages and of documents are means too. Trajectories stay with the seeds.
    """
    if len(solutions) == 1:
        return solutions[0]
    first = solutions[0]
    return Solution(
        weights=np.mean([one.weights for one in solutions], axis=0),
        low=np.min([one.low for one in solutions], axis=0),
        high=np.max([one.high for one in solutions], axis=0),
        bits_per_byte={
            model: np.mean([one.bits_per_byte[model] for one in solutions], axis=0)
            for model in first.bits_per_byte
        },
        tokens=sum(one.tokens for one in solutions),
        flops=sum(one.flops for one in solutions),
        environment=first.environment,
        schedule=_mean_schedule([one.schedule for one in solutions if one.schedule]),
        documents=_mean_documents([one.documents for one in solutions if one.documents]),
    )


def _mean_schedule(schedules: Sequence[Schedule]) -> Schedule | None:
    """The mean of the seeds' weights in each stage; seeds share the stages' ends."""
    if not schedules:
        return None
    stages = zip(*schedules, strict=True)
    return tuple((stage[0][0], np.mean([w for _, w in stage], axis=0)) for stage in stages)


def _mean_documents(parts: Sequence[DocumentShares]) -> DocumentShares | None:
    """The mean of each document's weights, over the seeds that gave it one."""
    if not parts:
        return None
    ids, place = np.unique(np.concatenate([one.ids for one in parts]), return_inverse=True)
    sums = np.bincount(place, weights=np.concatenate([one.weights for one in parts]))
    return DocumentShares(ids, sums / np.bincount(place))


def disagreement(domains: Sequence[str], solutions: Sequence[Solution]) -> dict[str, Any] | None:
    """Each seed's weights, and the total variation between two seeds: the mean and the most.

    None for a single seed, which says nothing of this.
    """
    if len(solutions) == 1:
        return None
    apart = [total_variation(a.weights, b.weights) for a, b in combinations(solutions, 2)]
    return {
        "weights": [dict(zip(domains, one.weights.tolist(), strict=True)) for one in solutions],
        "total_variation": {"mean": float(np.mean(apart)), "max": max(apart)},
    }
