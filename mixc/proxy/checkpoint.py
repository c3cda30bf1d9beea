"""A training run between two steps, on disk: a safetensors file with a hash of what it holds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from mixc import progress
from mixc.proxy.model import Model
from mixc.store import commit

SCHEMA = "mixc.checkpoint/1"
_EVERY_SECONDS = 60.0


@dataclass
class State:
    """All that the steps to come depend on. `losses` is float64[steps]; `records` as in `train`."""

    model: Model
    optimiser: torch.optim.Optimizer
    records: dict[str, NDArray[np.float64]]
    losses: NDArray[np.float64]
    step: int = 0
    tokens: int = 0


class Checkpoint:
    """Where a run keeps its state. `key` names all that the run depends on.

    A file under another key is another run's, and one whose hash does not fit is damaged: neither
    is loaded, the run starts anew, and says why.
    """

    def __init__(self, path: Path, key: str, *, every_seconds: float = _EVERY_SECONDS) -> None:
        self.path, self.key, self.every_seconds = path, key, every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether so much time went by since the last one that another is worth its cost."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, state: State) -> None:
        """Put the state in the place of the one before, in one step."""
        tensors = _tensors(state)
        about = {"schema": SCHEMA, "key": self.key, "xxh3": _digest(tensors)}
        commit.write_file(self.path, to_bytes(tensors, metadata=about))
        self._last = time.monotonic()

    def restore(self, state: State) -> None:
        """Bring a state to where the file left off. Without a file that fits it stays as it is."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        tensors = self._opened(data)
        if tensors is not None:
            _load(state, tensors)

    def _opened(self, data: bytes) -> dict[str, Tensor] | None:
        try:
            about = _metadata(data)
            tensors = from_bytes(data)
            whole = about["xxh3"] == _digest(tensors)
            ours = (about["schema"], about["key"]) == (SCHEMA, self.key)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            whole = ours = False
        if whole and ours:
            return tensors
        why = "of a run with other options" if whole else "damaged"
        progress.say(f"the checkpoint {self.path.name} is {why}: training starts anew")
        return None


def _metadata(data: bytes) -> dict[str, Any]:
    """What safetensors keeps beside the tensors: the format's header is a length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    if not isinstance(metadata, dict):
        raise TypeError("metadata is a mapping")
    return metadata


def _tensors(state: State) -> dict[str, Tensor]:
    """A state as named tensors, which share its memory."""
    tensors = {f"model.{name}": weight for name, weight in state.model.state_dict().items()}
    for number, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
    tensors |= {f"records.{name}": torch.from_numpy(v) for name, v in state.records.items()}
    counts = torch.tensor([state.step, state.tokens])
    return tensors | {"losses": torch.from_numpy(state.losses), "counts": counts}


def _load(state: State, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a state of the same options: `key` vouches for names and shapes."""
    groups = _by_prefix(tensors)
    state.model.load_state_dict(groups["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in groups.get("optimiser", {}).items():
        number, _, name = path.partition(".")
        # A clone stands where torch aligns it: kernels that go by alignment then give equal bits.
        moments.setdefault(int(number), {})[name] = value.clone()
    described = state.optimiser.state_dict()
    state.optimiser.load_state_dict({**described, "state": moments})
    for name, values in state.records.items():
        values[...] = groups["records"][name].numpy()
    state.losses[...] = tensors["losses"].numpy()
    state.step, state.tokens = tensors["counts"].tolist()


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        prefix, _, name = path.partition(".")
        groups.setdefault(prefix, {})[name] = tensor
    return groups


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
