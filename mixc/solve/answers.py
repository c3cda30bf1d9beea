"""What a method answered, kept on disk: one sealed JSON file a solve, named by its key.

`mixc compare` asks methods beside the recipe's own, whose answers no weights.json holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixc import progress
from mixc.errors import MixcError
from mixc.solve.problem import Solution
from mixc.store import commit
from mixc.store.hashes import seal, unseal

SCHEMA = "mixc.answer/1"


def save(path: Path, found: Solution) -> None:
    """Keep the weights of a solution, its schedule, and what it took. Floats come back exactly."""
    schedule = found.schedule and [[until, mix.tolist()] for until, mix in found.schedule]
    data = {
        "schema": SCHEMA,
        "weights": found.weights.tolist(),
        "low": found.low.tolist(),
        "high": found.high.tolist(),
        "schedule": schedule,
        "tokens": found.tokens,
        "flops": found.flops,
    }
    commit.write_file(path, seal(data))


def load(path: Path) -> Solution | None:
    """An answer that was kept, or None. One that is damaged is told of, and counts as none."""
    try:
        data = unseal(path, SCHEMA)
    except MixcError as error:
        if error.code != "MX041":
            progress.say(f"the answer {path.name} is not used: {error.message}")
        return None
    stages = data["schedule"]
    return Solution(
        weights=np.array(data["weights"], np.float64),
        low=np.array(data["low"], np.float64),
        high=np.array(data["high"], np.float64),
        schedule=stages and tuple((until, np.array(mix, np.float64)) for until, mix in stages),
        tokens=data["tokens"],
        flops=data["flops"],
    )
