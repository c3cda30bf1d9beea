"""What a build takes over from the mixture that is there: blocks, and whole files of formats.

What a block holds follows from the store, the layout of rows, and for each of its rows the domain
and the place in that domain's deck. Nothing is trusted: a block counts once its digest is found
again, a file once its hash is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc import __version__
from mixc.build.blocks import BlockTask
from mixc.build.derived import labels_of, written_of
from mixc.build.gather import block_digest
from mixc.build.mixture import Mixture, libraries, open_mixture
from mixc.build.plan import ALGORITHM, BuildPlan
from mixc.build.provenance import DIGESTS, listed
from mixc.errors import MixcError
from mixc.registry import WRITERS
from mixc.store import commit, parts
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

    def stream(self, plan: BuildPlan) -> Path | None:
        """A file that is the whole stream and nothing else, if it is unchanged and a format has
        one: it need not be staged again, but must not be written to.
        """
        whole = (one for one in self.streams(plan) if self._is_stream(one, plan))
        return next((self.mixture.root / one.path for one in whole), None)

    def streams(self, plan: BuildPlan) -> list[FileRecord]:
        """The files that are the stream, by their size alone, if it is unchanged."""
        entries = self.mixture.manifest["formats"].values() if self.all else ()
        files = (FileRecord(**one) for entry in entries for one in entry["files"])
        return [one for one in files if one.bytes == plan.bytes]

    def _is_stream(self, record: FileRecord, plan: BuildPlan) -> bool:
        if not self._whole([record]):
            return False
        count = min(plan.block_rows, plan.rows) * plan.row_len
        begin = np.fromfile(self.mixture.root / record.path, plan.spec.dtype, count)
        return block_digest(begin) == self.blocks[0]

    def stage(self, plan: BuildPlan, stream: Path) -> None:
        """Put unchanged blocks where the stream is staged; those that cannot be read are made."""
        part = part_of(stream)
        parts.reserve(part, plan.bytes)
        said, width = self.mixture.manifest["formats"], plan.row_len * plan.spec.dtype.itemsize
        easiest = min(said, key=lambda name: int(WRITERS[name].load().disk_bytes(plan.spec)))
        for number in self.blocks:
            first = number * plan.block_rows
            count = min(plan.block_rows, plan.rows - first)
            # A damaged file may end in any error of the library that reads it.
            with suppress(Exception):
                rows = np.ascontiguousarray(self.mixture.read(first, count, of=easiest))
                if rows.shape == (count, plan.row_len) and rows.dtype == plan.spec.dtype:
                    parts.write_at(part, first * width, rows.data.cast("B"))
        commit.rename(part, stream)

    def files(self, entry: Mapping[str, Any] | None) -> list[FileRecord] | None:
        """The files of a format's entry in the manifest, if they are all as they were."""
        if entry is None:
            return None
        records = [FileRecord(**one) for one in entry["files"]]
        return records if self._whole(records) else None

    def _whole(self, records: Sequence[FileRecord]) -> bool:
        """Whether files are as they were, and the mixture's own: no link leads to them."""
        root = self.mixture.root
        return all(
            (root / one.path).resolve() == root.resolve() / one.path
            and check_file(root, one, rehash=True) is None
            for one in records
        )


def part_of(stream: Path) -> Path:
    """Where `Reuse.stage` puts blocks until they are all there."""
    return stream.with_suffix(".part")


def find(root: Path, plan: BuildPlan, store: Store, tasks: Iterable[BlockTask]) -> Reuse | None:
    """Compare the mixture at `root`, if there is one, with a plan, block by block."""
    try:
        mixture = open_mixture(root)
        if not _same_rows(mixture, plan, store):
            return None
        records = listed(mixture.manifest["provenance"])
        if any(check_file(root, one, rehash=True) is not None for one in records):
            return None
        blocks = _same_blocks(_there(mixture, plan), plan, tasks)
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
        and said.get("algorithm") == ALGORITHM
        and said.get("libraries") == libraries()
        and said["store_hash"] == store.store_hash
        and tuple(said["domains"]) == plan.domains
        and mixture.layout == plan.layout
        and said["block_rows"] == plan.block_rows
        and (theirs and theirs.digest()) == (weights and weights.digest())
    )


def _there(mixture: Mixture, plan: BuildPlan) -> Iterator[tuple[str, NDArray[np.integer[Any]]]]:
    """Of each block of a mixture, its digest and the numbers of its rows' domains."""
    if (written := written_of(mixture)) is not None:
        yield from written.labels(plan.domains)
        return
    digests = (mixture.root / DIGESTS).read_bytes()
    labels = labels_of(mixture)
    for number, first in enumerate(range(0, len(labels), plan.block_rows)):
        digest = digests[16 * number : 16 * number + 16].hex()
        yield digest, labels[first : first + plan.block_rows]


def _same_blocks(
    there: Iterable[tuple[str, NDArray[np.integer[Any]]]],
    plan: BuildPlan,
    tasks: Iterable[BlockTask],
) -> dict[int, str]:
    blocks: dict[int, str] = {}
    positions = np.zeros(len(plan.domains), np.int64)
    for task, (digest, labels) in zip(tasks, there, strict=False):
        if np.array_equal(positions, task.positions) and np.array_equal(labels, task.labels):
            blocks[task.number] = digest
        positions = positions + np.bincount(labels, minlength=len(positions))
    return blocks
