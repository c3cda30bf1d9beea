"""What a build takes over from the mixture that is there: blocks, and whole files of formats.

What a block holds follows from the store, the layout of rows, and for each of its rows the domain
and the place in that domain's deck. Nothing is trusted: a block counts once its digest is found
again, a file once its hash is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pyarrow as pa

from mixc import __version__
from mixc.build.blocks import BlockTask
from mixc.build.mixture import Mixture, open_mixture
from mixc.build.plan import BuildPlan
from mixc.build.provenance import block_labels
from mixc.errors import MixcError
from mixc.registry import WRITERS
from mixc.store import commit
from mixc.store.hashes import FileRecord, check_file
from mixc.store.store import Store

_UNREADABLE = (MixcError, OSError, ValueError, LookupError, pa.ArrowException)


@dataclass(frozen=True)
class Reuse:
    """A mixture of the same store and layout, and what of it a plan would make again.

    `blocks`: the digests of the unchanged blocks, by their numbers. `all`: they are all blocks of
    both, so that files of the stream are unchanged too.
    """

    mixture: Mixture
    blocks: Mapping[int, str]
    all: bool

    def formats(self, plan: BuildPlan) -> list[str]:
        """The formats whose files of the stream are unchanged."""
        there = self.mixture.manifest["formats"]
        return [name for name in plan.formats if name in there] if self.all else []

    def stage(self, plan: BuildPlan, stream: Path) -> None:
        """Put unchanged blocks where the stream is staged; those that cannot be read are made."""
        if self.all and (flat := self._flat(plan)) is not None:
            commit.link(flat, stream)
            return
        part = stream.with_suffix(".part")
        commit.reserve(part, plan.bytes)
        said, width = self.mixture.manifest["formats"], plan.row_len * plan.spec.dtype.itemsize
        easiest = min(said, key=lambda name: int(WRITERS[name].load().disk_bytes(plan.spec)))
        for number in self.blocks:
            first = number * plan.block_rows
            count = min(plan.block_rows, plan.rows - first)
            try:
                rows = np.ascontiguousarray(self.mixture.read(first, count, of=easiest))
            except _UNREADABLE:
                continue
            commit.write_at(part, first * width, rows.data.cast("B"))
        commit.rename(part, stream)

    def _flat(self, plan: BuildPlan) -> Path | None:
        """A file that is the stream and nothing else, if a format has one."""
        for name, entry in self.mixture.manifest["formats"].items():
            if WRITERS[name].load().disk_bytes(plan.spec) < plan.bytes // 2:
                for file in entry["files"]:
                    path = self.mixture.root / str(file["path"])
                    if _size(path) == plan.bytes:
                        return path
        return None

    def files(self, entry: Mapping[str, Any] | None) -> list[FileRecord] | None:
        """The files of a format's entry in the manifest, if they are all as they were."""
        if entry is None:
            return None
        records = [FileRecord(**one) for one in entry["files"]]
        root = self.mixture.root
        return None if any(check_file(root, one, rehash=True) for one in records) else records


def _size(path: Path) -> int | None:
    """The size of a file, if it is one and no link."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_size if S_ISREG(status.st_mode) else None
    return None


def find(root: Path, plan: BuildPlan, store: Store, tasks: Iterable[BlockTask]) -> Reuse | None:
    """Compare the mixture at `root`, if there is one, with a plan, block by block."""
    try:
        mixture = open_mixture(root)
        if not _same_rows(mixture, plan, store):
            return None
        record = FileRecord(**mixture.manifest["provenance"])
        if check_file(root, record, rehash=True) is not None:
            return None
        blocks = _same_blocks(root / record.path, plan, tasks)
        every = mixture.manifest["rows"] == plan.rows
    except _UNREADABLE:
        return None
    return Reuse(mixture, blocks, every and len(blocks) == -(-plan.rows // plan.block_rows))


def _same_rows(mixture: Mixture, plan: BuildPlan, store: Store) -> bool:
    """Whether each domain's deck is the same, and what writes it too."""
    said = mixture.manifest
    weights, theirs = plan.supply.weights, mixture.document_weights
    return (
        said["mixc_version"] == __version__
        and said["store_hash"] == store.store_hash
        and tuple(said["domains"]) == plan.domains
        and mixture.layout == plan.layout
        and said["block_rows"] == plan.block_rows
        and (theirs and theirs.digest()) == (weights and weights.digest())
    )


def _same_blocks(path: Path, plan: BuildPlan, tasks: Iterable[BlockTask]) -> dict[int, str]:
    blocks: dict[int, str] = {}
    positions = np.zeros(len(plan.domains), np.int64)
    for task, (digest, labels) in zip(tasks, block_labels(path, plan.domains), strict=False):
        if np.array_equal(positions, task.positions) and np.array_equal(labels, task.labels):
            blocks[task.number] = digest
        positions = positions + np.bincount(labels, minlength=len(positions))
    return blocks
