"""Which domains a method trains on, and which it aims at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, did_you_mean


@dataclass(frozen=True)
class Roles:
    """Which of K domains are trained on, and which are targets: bool[K] each."""

    trained: NDArray[np.bool_]
    target: NDArray[np.bool_]


def roles(
    domains: tuple[str, ...], target: tuple[str, ...], *, train_target: bool, key: str
) -> Roles:
    """All domains in both roles, or the targets that are named in theirs.

    Those are only trained on if `train_target`. `key` is where the recipe names them. Errors:
    MX008 for a target that is no domain, MX009 if nothing is left to train on.
    """
    for name in target:
        if name not in domains:
            message = f"{key} names '{name}', which is no domain"
            raise MixcError("MX008", message, help=did_you_mean(name, domains))
    named = np.array([name in target for name in domains])
    if not target:
        return Roles(~named, ~named)
    trained = named | ~named if train_target else ~named
    if not trained.any():
        hint = "leave a domain to train on, or set train_target beside it"
        raise MixcError("MX009", f"{key} names every domain", help=hint)
    return Roles(trained, named)
