"""weights.json: what was solved, how sure it is, and what it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixc.errors import MixcError, Place
from mixc.store.hashes import FileRecord, unseal

FILE = "weights.json"
FILES = ("trajectory", "documents")  # what may stand beside it, by its key there
SCHEMA = "mixc.weights/1"


@dataclass(frozen=True)
class SolvedWeights:
    """An opened weights.json."""

    path: Path
    manifest: dict[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each domain."""
        return {name: entry["weight"] for name, entry in self.manifest["domains"].items()}

    @property
    def files(self) -> dict[str, FileRecord]:
        """The files that belong to it, in the same folder, by their keys."""
        found = {name: self.manifest.get(name) for name in FILES}
        return {name: FileRecord(**file) for name, file in found.items() if file is not None}

    @property
    def schedule(self) -> list[tuple[float, dict[str, float]]]:
        """Weights that change along the mixture, each until a part (0..1) of it; or none."""
        stages = self.manifest.get("schedule", [])
        return [(stage["until"], dict(stage["weights"])) for stage in stages]


def open_weights(path: Path) -> SolvedWeights:
    """Open what `mixc solve-weights` wrote. Raises MX041 if it is not there, MX040 if damaged."""
    try:
        return SolvedWeights(path, unseal(path, SCHEMA))
    except MixcError as error:
        if error.code == "MX041":
            error.message, error.help = "there are no weights here", "run `mixc solve-weights`"
        elif error.code == "MX040":
            error.help = (
                "solve again; to use weights of your own, give mixture.weights a file of "
                '{"domain": weight, ...}'
            )
        raise


def read_weights(path: Path, place: Place) -> dict[str, float]:
    """Read a user's file of weights: a weights.json, or plain `{"domain": weight, ...}`.

    Raises MX061 if it is neither, or if its weights do not lie on the simplex.
    """
    data = _read(path, place)
    return open_weights(path).weights if _sealed(data) else check_simplex(data, path.name, place)


def read_schedule(path: Path, place: Place) -> list[tuple[float, dict[str, float]]]:
    """The schedule of a user's file of weights (see `read_weights`); none in plain weights."""
    return open_weights(path).schedule if _sealed(_read(path, place)) else []


def _read(path: Path, place: Place) -> object:
    try:
        return json.loads(path.read_bytes(), parse_int=float)  # no int is too large for a float
    except (OSError, ValueError, RecursionError) as error:
        raise MixcError("MX061", f"cannot read '{path.name}': {error}", place=place) from error


def _sealed(data: object) -> bool:
    return isinstance(data, dict) and isinstance(data.get("schema"), str)


def check_simplex(data: object, name: str, place: Place) -> dict[str, float]:
    """Plain data as weights that are finite, not negative, and sum to one."""
    if not isinstance(data, Mapping) or not all(_is_weight(value) for value in data.values()):
        message = f"'{name}' is not a mapping of domains to weights"
        raise MixcError("MX061", message, place=place, help='as in {"web": 0.7, "code": 0.3}')
    total = math.fsum(data.values())
    if abs(total - 1) > 1e-6:
        message = f"the weights in '{name}' sum to {total:.6g}, not to 1"
        raise MixcError("MX061", message, place=place)
    return {str(key): float(value) for key, value in data.items()}


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
