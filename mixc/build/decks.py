"""Decks kept on the disk: each domain's rows, in the order in which mixtures take them.

Other weights take more or fewer rows of the same decks. With them kept, a mixture is a merge: each
domain is read from its begin to where it ends, and only rows that no earlier mixture has taken are
gathered from documents. Nothing is trusted: rows count once the digest of their block is found.

    decks/<key>/<number>.bin    rows of the store's domain of that number
    decks/<key>/blocks.jsonl    what was written: of each block its domain, number, rows, digest
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mixc_kernels.gather_spans import make_pool
from numpy.typing import NDArray

from mixc import progress
from mixc.build.blocks import BlockTask, Builder, Finder, Origin
from mixc.build.gather import place_tokens
from mixc.build.provenance import BlockRows
from mixc.engine.threads import in_order
from mixc.rows.stream import count_up, within_rows
from mixc.store import commit, parts
from mixc.store.columns import map_numbers
from mixc.writers.sequences import StreamSpec

Index = NDArray[np.int64]
_JOURNAL = "blocks.jsonl"
_KEY, _OURS = re.compile("[0-9a-f]{32}"), re.compile(r"\d+\.bin|blocks\.jsonl")
_Written = dict[tuple[int, int], tuple[int, str]]  # rows and digest, by domain and block


class Decks:
    """The decks of all domains, in a folder that `key` names below `root`."""

    def __init__(self, root: Path, key: str, spec: StreamSpec, *, block_rows: int) -> None:
        self._folder, self._spec, self._block_rows = root / key, spec, block_rows
        self._width = spec.seq_len * spec.dtype.itemsize
        self._domains = len(spec.domains)

    def held(self, rows: Index) -> int:
        """Of the first `rows` (int64[K]) rows of each domain, those that are said to be there."""
        needed, step = rows.tolist(), self._block_rows
        return sum(
            min(count, max(0, needed[domain] - block * step))
            for (domain, block), (count, _) in self._written().items()
        )

    def growth(self, rows: Index) -> int:
        """Bytes that the disk must hold for them beside what is there; less what makes room."""
        needed = zip(map(self._path, range(self._domains)), rows.tolist(), strict=True)
        more: int = sum(max(0, count * self._width - _size(path)) for path, count in needed)
        return more - sum(_size(path) for folder in self._others() for path in folder.iterdir())

    def make_room(self) -> None:
        """Remove the decks of other rows. Raises MX043 if a link stands where decks are kept."""
        held = self._folder.iterdir() if self._folder.is_dir() else ()
        commit.refuse_links([self._folder.parent, self._folder, *held])
        for other in self._others():
            commit.remove(other)

    def fill(
        self,
        builder: Builder,
        rows: Index,
        choose: Callable[[Iterable[BlockTask]], Finder],
        *,
        workers: int,
    ) -> None:
        """Make the first `rows` (int64[K]) rows of each domain's deck, if they are not there.

        What is there beyond them stays as it is, and is not read. `choose` says how the blocks
        that are yet to be made are gathered.
        """
        written = self._written()
        total = self._upto(rows, written)
        for domain, count in enumerate(total.tolist()):
            path = self._path(domain)
            parts.reserve(path, max(_size(path), count * self._width))
        find = choose(task for task in self._tasks(total, written) if task.known is None)

        def place(task: BlockTask) -> tuple[BlockTask, str]:
            path = self._path(int(task.labels[0]))
            mine = replace(builder, path=path, published=None, windows=())  # they are read soon
            return task, place_tokens(mine, task, find)[0]

        tasks = self._tasks(total, written)
        with progress.task("fill decks", int(total.sum()), "rows") as bar:
            for task, digest in in_order(place, tasks, workers=workers):
                if digest != task.known:
                    self._note(task, digest)
                bar.advance(len(task.labels))
        for domain, count in enumerate(total.tolist()):
            if count:  # what the disk does not take must not be read as if it had
                commit.sync(self._path(domain))
        self._pool = make_pool([self._mapped(i, n) for i, n in enumerate(total.tolist())])

    def find(self, builder: Builder, task: BlockTask, rows: BlockRows) -> Origin:
        """Where the tokens of a mixture's block stand in the decks."""
        labels, spans = rows.labels, rows.spans
        rank = np.empty(len(labels), np.int64)
        counts = np.bincount(labels, minlength=len(task.positions))
        rank[np.argsort(labels, kind="stable")] = count_up(counts)
        begin = (task.positions[labels] + rank) * builder.seq_len
        at = begin[spans.row] + within_rows(spans.row, spans.length)
        files = tuple(self._path(domain) for domain in range(self._domains))
        ahead = np.zeros(self._domains, bool)
        return Origin(self._pool, labels[spans.row].astype(np.int64), at, files, ahead)

    def _mapped(self, domain: int, rows: int) -> NDArray[Any]:
        return map_numbers(self._path(domain), self._spec.dtype, rows * self._spec.seq_len)

    def _upto(self, rows: Index, written: _Written) -> Index:
        """The first `rows` rows of each domain, and what is there of the block where they end."""
        last = (rows - 1) // self._block_rows
        held = [written.get((i, block), (0, ""))[0] for i, block in enumerate(last.tolist())]
        return np.where(rows > 0, np.maximum(rows, last * self._block_rows + held), 0)

    def _tasks(self, rows: Index, written: _Written) -> Iterator[BlockTask]:
        """Blocks of one domain after the other."""
        number = 0
        for domain, count in enumerate(rows.tolist()):
            for block, first in enumerate(range(0, count, self._block_rows)):
                size = min(self._block_rows, count - first)
                positions = np.zeros(len(rows), np.int64)
                positions[domain] = first
                held, digest = written.get((domain, block), (0, ""))
                labels = np.broadcast_to(np.uint16(domain), size)
                yield BlockTask(number, first, labels, positions, digest if held == size else None)
                number += 1

    def _others(self) -> list[Path]:
        root = self._folder.parent
        there = list(root.iterdir()) if root.is_dir() else []
        return [other for other in there if other != self._folder and _are_decks(other)]

    def _written(self) -> _Written:
        """What the journal says, as far as files go."""
        found: _Written = {}
        sizes = {i: _size(self._path(i)) // self._width for i in range(self._domains)}
        path = self._folder / _JOURNAL
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                said = json.loads(line)
                domain, block, rows = (int(said[name]) for name in ("domain", "block", "rows"))
                most = min(self._block_rows, sizes.get(domain, 0) - block * self._block_rows)
                if block >= 0 and 0 < rows <= most:
                    found[domain, block] = rows, str(said["xxh3"])
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # torn by a kill: that block is made again
        return found

    def _note(self, task: BlockTask, digest: str) -> None:
        said = {
            "domain": int(task.labels[0]),
            "block": task.first // self._block_rows,
            "rows": len(task.labels),
            "xxh3": digest,
        }
        commit.append_line(self._folder / _JOURNAL, json.dumps(said).encode())

    def _path(self, domain: int) -> Path:
        return self._folder / f"{domain}.bin"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _are_decks(folder: Path) -> bool:
    """Whether a folder is one of ours, and nobody has put anything else there."""
    if folder.is_symlink() or not folder.is_dir() or not _KEY.fullmatch(folder.name):
        return False
    return all(_OURS.fullmatch(path.name) for path in folder.iterdir())
