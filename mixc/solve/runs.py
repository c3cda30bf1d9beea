"""What training on a fixed mix came to, kept on disk: one sealed JSON file a run, named by its key.

These files stay when a solve is done. Swarms, checks and comparisons are made of the same runs,
and whoever asks for one that was made gets it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc import progress
from mixc.errors import MixcError
from mixc.solve.weights import finite_or_none
from mixc.store import commit
from mixc.store.hashes import seal, unseal

SCHEMA = "mixc.run/1"


@dataclass(frozen=True)
class MixRun:
    """A model trained on a fixed mix: its loss on each holdout, float64[K], NaN where there is
    none; the mean loss of each step's batch, float64[steps], in nats; tokens and FLOPs of training.
    """

    bits_per_byte: NDArray[np.float64]
    losses_per_step: NDArray[np.float64]
    tokens: int
    flops: float


def save(path: Path, run: MixRun) -> None:
    """Keep a run. Floats come back to the last bit."""
    data = {
        "schema": SCHEMA,
        "bits_per_byte": [finite_or_none(value) for value in run.bits_per_byte],
        "losses_per_step": run.losses_per_step.tolist(),
        "tokens": run.tokens,
        "flops": run.flops,
    }
    commit.write_file(path, seal(data))


def load(path: Path) -> MixRun | None:
    """A run that was kept, or None. One that is damaged is told of, and counts as none."""
    try:
        data = unseal(path, SCHEMA)
    except MixcError as error:
        if error.code != "MX041":
            progress.say(f"the run {path.name} is not used: {error.message}")
        return None
    bits = [np.nan if value is None else value for value in data["bits_per_byte"]]
    losses = np.array(data["losses_per_step"], np.float64)
    return MixRun(np.array(bits, np.float64), losses, data["tokens"], data["flops"])
