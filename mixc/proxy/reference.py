"""Losses of a frozen model on the rows that another is trained on, found once and kept.

They are kept by row of a domain's stream, not by step: a run with other options or weights, or of
another method, that comes by the same rows finds them. Rows are scored some at a time, always as
many, so that the losses of one do not depend, to the bit, on which others were missing beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray

from mixc import progress
from mixc.proxy import cache, ranks
from mixc.proxy.device import computing_in
from mixc.proxy.evaluate import row_losses
from mixc.proxy.model import Model
from mixc.proxy.sampler import Sampler
from mixc.proxy.train import Batch
from mixc.store.columns import column, view

ALGORITHM = 6  # a change of what rows' losses are raises it
_TABLE_BYTES = 1 << 26
_TOKENS_AT_ONCE = {"cpu": 512, "cuda": 32_768}  # but a row at least

Index = NDArray[np.int64]
Losses = NDArray[np.float32]


def cached_losses(
    model: Model,
    batches: Sampler,
    folder: Path,
    key: dict[str, Any],
    *,
    name: str = "reference",
    precision: torch.dtype = torch.float32,
) -> Callable[[int], Losses]:
    """The model's loss on each token but the first of each row of a step's batch, in nats.

    Returns a function from the step to float32[B, L - 1]. Rows of the known batches whose losses
    are not in `folder` are scored now, on the device that holds the model. `key` (plain data)
    names all that losses depend on beside the model: tokenizer, store, how rows are cut and
    numbered, and the machine. Matrix products are in `precision`, as the other model's should be.
    """
    about = {"algorithm": ALGORITHM, "model": weights_hash(model), "precision": str(precision)}
    key = about | key
    known = _Known(folder, key)
    ids = _score(model, batches, known, name, precision)
    return lambda step: known.read(ids[step])


def uncached_losses(
    model: Model,
    batches: Callable[[int], Batch],
    *,
    precision: torch.dtype = torch.float32,
) -> Callable[[int], Losses]:
    """The same without keeping: each batch is scored when it is asked for, by all ranks together.

    For batches that follow from the run itself, which nobody can visit before.
    """

    def losses(step: int) -> Losses:
        tokens = batches(step).tokens
        mine = torch.from_numpy(_losses(model, tokens[ranks.share(len(tokens))], precision))
        return ranks.gather_rows(mine, len(tokens)).numpy()

    return losses


def weights_hash(model: Model) -> str:
    """A hash of a model's weights, their names and shapes, whatever the device."""
    digest = xxhash.xxh3_128()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


class _Known:
    """The losses that are kept under a key, by the id of a row."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self._folder, self._key = folder, key
        self._tables: list[tuple[Index, Index, Losses]] = []  # sorted ids, where each is, losses
        self._waiting: dict[int, Losses] = {}  # until they make a table
        for table in cache.kept(folder, key):
            self._open(table)

    def missing(self, ids: Index) -> Index:
        """Where in `ids` those stand that are not there, each once."""
        first = np.unique(ids, return_index=True)[1]
        new = np.array([name not in self._waiting for name in ids[first].tolist()], bool)
        for names, _, _ in self._tables:
            new &= ~_among(names, ids[first])[1]
        return np.asarray(first[new], np.int64)

    def read(self, ids: Index) -> Losses:
        """The losses of rows that are in tables, [n, L - 1]."""
        out = np.empty((len(ids), self._tables[0][2].shape[1]), np.float32)
        for names, places, losses in self._tables:
            at, found = _among(names, ids)
            out[found] = losses[places[at[found]]]
        return out

    def add(self, ids: Index, losses: Losses) -> None:
        """Take the losses of rows that were not there; many together make a table."""
        self._waiting.update(zip(ids.tolist(), losses, strict=True))
        if len(self._waiting) * losses[0].nbytes >= _TABLE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Keep what waits."""
        if not self._waiting:
            return
        ids = np.fromiter(self._waiting, np.int64, len(self._waiting))
        losses = np.stack(list(self._waiting.values()))
        values = pa.FixedSizeListArray.from_arrays(column(losses.ravel()), losses.shape[1])
        table = pa.RecordBatch.from_arrays([column(ids), values], ["row", "losses"])
        self._open(cache.keep(self._folder, self._key, table))  # its memory is the system's
        self._waiting = {}

    def _open(self, table: pa.RecordBatch) -> None:
        ids, losses = view(table.column("row")), table.column("losses")
        order = np.argsort(ids, kind="stable")
        values = view(losses.values).reshape(len(ids), losses.type.list_size)
        self._tables.append((ids[order], order, values))


def _among(names: Index, ids: Index) -> tuple[Index, NDArray[np.bool_]]:
    """Where each id stands among sorted names, and whether it is there."""
    at = np.minimum(np.searchsorted(names, ids), len(names) - 1)
    return at, names[at] == ids


def _score(
    model: Model, batches: Sampler, known: _Known, name: str, precision: torch.dtype
) -> list[Index]:
    """Score the rows of the batches that are not known; the ids of each step's."""
    steps, new = batches.known_steps or 0, dict[int, NDArray[np.int64]]()  # tokens of rows
    found: list[Index] = []
    with progress.task(f"score with {name}", steps, "batches") as bar:
        for step in range(steps):
            found.append(ids := _ids(batches, step))
            if len(missing := known.missing(ids)):
                new.update(zip(ids[missing].tolist(), batches(step).tokens[missing], strict=True))
            last = step + 1 == steps
            for rows in _passes(model, new, whole=not last):
                losses = _losses(model, np.stack([new.pop(row) for row in rows]), precision)
                known.add(np.array(rows, np.int64), losses)
            bar.advance(1)
    known.flush()
    return found


def _passes(model: Model, new: Mapping[int, NDArray[np.int64]], *, whole: bool) -> list[list[int]]:
    """The rows that wait, pass by pass; with `whole` only those that fill one."""
    if not new:
        return []
    rows, size = list(new), _rows_at_once(model, len(next(iter(new.values()))))
    end = len(rows) // size * size if whole else len(rows)
    return [rows[first : first + size] for first in range(0, end, size)]


def _rows_at_once(model: Model, length: int) -> int:
    """Rows of `length` tokens that are scored in a pass."""
    return max(1, _TOKENS_AT_ONCE[model.head.device.type] // (length - 1))


def _ids(batches: Sampler, step: int) -> Index:
    """A number for each row of a batch: its domain in the upper bits, its place in the stream."""
    return (batches.domains(step) << 48) | batches.rows(step)


def _losses(model: Model, tokens: NDArray[np.int64], precision: torch.dtype) -> Losses:
    """float32[n, L - 1] of rows int64[n, L], in passes of always as many rows."""
    if not len(tokens):  # a part of batches may have none in a step
        return np.zeros((0, tokens.shape[1] - 1), np.float32)
    size = _rows_at_once(model, tokens.shape[1])
    padded = np.concatenate([tokens, np.repeat(tokens[:1], -len(tokens) % size, axis=0)])
    with computing_in(precision, model.head.device):
        parts = [row_losses(model, padded[i : i + size]) for i in range(0, len(padded), size)]
    return np.concatenate(parts)[: len(tokens)]
