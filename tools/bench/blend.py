"""Megatron-LM's blending index of ROWS over DOMAINS. Runs in the trainers' environment.

    python blend.py ROWS DOMAINS

Prints, as JSON, the seconds of the compiled call, and the largest error of a prefix in rows.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from megatron.core.datasets import helpers_cpp


def main() -> None:
    rows, domains = map(int, sys.argv[1:])
    weights = 1.0 / np.arange(1, domains + 1)
    weights /= weights.sum()
    index, sample = np.zeros(rows, np.int16), np.zeros(rows, np.int64)
    start = time.perf_counter()
    helpers_cpp.build_blending_indices(index, sample, weights, domains, rows, False)
    seconds = time.perf_counter() - start
    worst = 0.0
    for domain, weight in enumerate(weights.tolist()):
        at = np.flatnonzero(index == domain)
        has = np.arange(len(at))
        # Furthest ahead after each of its rows, furthest behind before each, or at the end.
        ahead, behind = has + 1 - weight * (at + 1), weight * at - has
        worst = max(worst, ahead.max(), behind.max(), weight * rows - len(at))
    print(json.dumps({"seconds": seconds, "error": float(worst)}))


if __name__ == "__main__":
    main()
