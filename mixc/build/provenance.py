"""Provenance: for each row of a mixture, the documents that it was cut from.

In `rows.parquet`; once that is large, in `rows/00000.parquet` and so on, each of whole blocks. A
mixture may leave it out: `blocks.bin` has the blocks' digests then, and the rest can be derived.

Columns: `row: int64`, `domain: string`, `epoch: int32` (of the row's last token), `stream_row:
int64` (its number in the domain's packed stream), and `spans`, a list of `{epoch, document,
doc_id, start, length}`: `length` tokens of a document from token `start` on. `document` counts
the domain's documents in the store's order. A row group holds a block; the file's metadata has,
under `mixc.blocks`, the blocks' digests end to end, 32 hex digits each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixc.rows.stream import Spans, each_of
from mixc.store import commit
from mixc.store.columns import column, strings
from mixc.store.commit import StagedFile
from mixc.store.hashes import FileRecord

FILE, FOLDER, DIGESTS = "rows.parquet", "rows", "blocks.bin"
PART_ROWS = 1 << 22  # rows of a part, so that its footer is small
Index = NDArray[np.int64]

_SPAN = pa.struct(
    [
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("document", pa.int64(), nullable=False),
        pa.field("doc_id", pa.uint64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("stream_row", pa.int64(), nullable=False),
        pa.field("spans", pa.list_(pa.field("element", _SPAN, nullable=False)), nullable=False),
    ]
)

_DIGESTS = "mixc.blocks"

# Smaller and faster than a dictionary and zstd of everything: ids are random, the rest is narrow.
_FEW = ["domain", "epoch", "spans.list.element.epoch"]
_NUMBERS = [
    "row",
    "stream_row",
    *(f"spans.list.element.{name}" for name in ("document", "start", "length")),
]
_COMPRESSION = {
    field: "zstd" if field in _FEW else "none"
    for field in (*_FEW, *_NUMBERS, "spans.list.element.doc_id")
}


@dataclass(frozen=True)
class BlockRows:
    """The rows of a block, and their spans in the order of rows. `spans.row` counts in the block.

    `numbers` are the rows' numbers in their domains' streams, int64[rows]. Of each span: the
    document's id, and where it is copied from: `at`, int64[m], in the tokens of shard `shard`.
    """

    first: int
    labels: NDArray[np.uint16]
    numbers: Index
    spans: Spans
    doc_id: NDArray[np.uint64]
    shard: Index
    at: Index


def block_table(rows: BlockRows, domains: tuple[str, ...]) -> pa.Table:
    """The table of a block."""
    spans = rows.spans
    offsets = np.zeros(len(rows.labels) + 1, np.int32)
    np.cumsum(np.bincount(spans.row, minlength=len(rows.labels)), out=offsets[1:])
    epoch = spans.epoch.astype(np.int32)
    columns = (epoch, spans.document, rows.doc_id, spans.start, spans.length)
    span = pa.StructArray.from_arrays([column(one) for one in columns], fields=list(_SPAN))
    return pa.table(
        [
            column(np.arange(rows.first, rows.first + len(rows.labels))),
            strings(domains).cast(pa.string()).take(column(rows.labels)),
            column(epoch[offsets[1:] - 1]),
            column(rows.numbers),
            pa.ListArray.from_arrays(column(offsets), span, type=SCHEMA.field("spans").type),
        ],
        schema=SCHEMA,
    )


def taken(rows: BlockRows, domains: int) -> tuple[dict[int, int], ...]:
    """The tokens of a block by domain and epoch."""
    sums: tuple[dict[int, int], ...] = tuple({} for _ in range(domains))
    for epoch, mine in each_of(rows.spans.epoch):
        labels = rows.labels[rows.spans.row[mine]]
        tokens = np.bincount(labels, rows.spans.length[mine], domains).astype(np.int64)
        for domain in np.flatnonzero(tokens).tolist():
            sums[domain][epoch] = int(tokens[domain])
    return sums


class RowsWriter:
    """Writes provenance below `tree` block by block, and adds up the tokens by domain and epoch.

    Of a mixture of `rows` rows, a block having `block_rows`; blocks' digests alone if not `kept`.
    """

    def __init__(
        self, tree: Path, domains: Sequence[str], *, rows: int, block_rows: int, kept: bool
    ) -> None:
        self._tree, self._kept = tree, kept
        self._part_blocks = max(1, PART_ROWS // block_rows)
        self._parted = rows > self._part_blocks * block_rows
        self._open = ExitStack()
        self._part: tuple[StagedFile, pq.ParquetWriter] | None = None
        self._written: list[FileRecord] = []
        self._noted: list[str] = []  # of the part that is open
        self.taken: dict[str, dict[int, int]] = {name: {} for name in domains}
        self.digests: list[str] = []

    def add(self, table: pa.Table | None, taken: Sequence[Mapping[int, int]], digest: str) -> None:
        """Append a block's table, if it is kept, its tokens by domain and epoch, its digest."""
        if table is not None and self._kept:
            if self._part is None:
                path = self._tree / self._name()
                self._part = self._open.enter_context(_part(path, self._noted))
            self._part[1].write_table(table, row_group_size=max(1, table.num_rows))
            self._noted.append(digest)
            if len(self._noted) == self._part_blocks:
                self._end_part()
        self.digests.append(digest)
        for sums, more in zip(self.taken.values(), taken, strict=True):
            for epoch, tokens in more.items():
                sums[epoch] = sums.get(epoch, 0) + tokens

    def finish(self) -> dict[str, Any]:
        """Write what is left; what the manifest says of provenance."""
        if not self._kept:
            data = bytes.fromhex("".join(self.digests))
            return {"blocks": commit.write_file(self._tree / DIGESTS, data).as_dict()}
        self._end_part()
        parts = [one.as_dict() for one in self._written]
        return {"parts": parts, "part_blocks": self._part_blocks} if self._parted else parts[0]

    def _name(self) -> str:
        return f"{FOLDER}/{len(self._written):05}.parquet" if self._parted else FILE

    def _end_part(self) -> None:
        if self._part is not None:
            self._open.close()
            self._written.append(self._part[0].record(self._name()))
            self._part, self._noted = None, []

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave no part half written."""
        self._open.__exit__(*error)


@contextmanager
def _part(path: Path, digests: list[str]) -> Iterator[tuple[StagedFile, pq.ParquetWriter]]:
    """A file of row groups, and its writer. The footer has the digests, as they are at the end."""
    with commit.create(path) as file:
        writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            SCHEMA,
            compression=_COMPRESSION,
            use_dictionary=_FEW,
            column_encoding=dict.fromkeys(_NUMBERS, "DELTA_BINARY_PACKED"),
            write_statistics=False,
        )
        try:
            yield file, writer
            writer.add_key_value_metadata({_DIGESTS: "".join(digests)})
            writer.close()
        except BaseException:
            with suppress(Exception):  # the file is nobody's: what is said of it counts no more
                writer.close()
            raise
        finally:
            writer.is_open = False  # or it would try again, and complain, once it is collected


def listed(entry: Mapping[str, Any]) -> list[FileRecord]:
    """The files that a manifest's entry for provenance lists."""
    found = entry["parts"] if "parts" in entry else [entry.get("blocks", entry)]
    return [FileRecord(**one) for one in found]


class Provenance(Protocol):
    """Where the rows of a mixture come from: written, or derived."""

    def tables(self, numbers: Iterable[int] | None = None) -> Iterator[pa.Table]:
        """The tables of blocks, of rising numbers; of all that are there."""


@dataclass(frozen=True)
class Written:
    """Provenance in files, each of `part_blocks` row groups but the last."""

    paths: tuple[Path, ...]
    part_blocks: int

    def tables(self, numbers: Iterable[int] | None = None) -> Iterator[pa.Table]:
        """The tables of blocks, of rising numbers; of all that are there.

        Raises OSError, ValueError or LookupError if they cannot be read.
        """
        for file, groups in self._groups(numbers):
            for group in groups:
                yield file.read_row_group(group)

    def labels(self, domains: Sequence[str]) -> Iterator[tuple[str, Index]]:
        """Of each block, its digest and the numbers of its rows' domains; none of an earlier file.

        Raises as `tables`.
        """
        names = strings(domains).cast(pa.string())
        for file, groups in self._groups(None):
            said = (file.metadata.metadata or {}).get(_DIGESTS.encode(), b"").decode()
            for group in groups[: len(said) // 32]:
                column = file.read_row_group(group, columns=["domain"])["domain"].combine_chunks()
                labels = pc.index_in(column, value_set=names).fill_null(-1)
                yield said[32 * group : 32 * group + 32], labels.to_numpy().astype(np.int64)

    def _groups(
        self, numbers: Iterable[int] | None
    ) -> Iterator[tuple[pq.ParquetFile, Sequence[int]]]:
        """The files, one open at a time, and which row groups of each."""
        if self.part_blocks < 1:
            raise ValueError("the manifest says that parts hold no blocks")
        asked = None if numbers is None else [divmod(one, self.part_blocks) for one in numbers]
        for number, path in enumerate(self.paths):
            mine = None if asked is None else [group for part, group in asked if part == number]
            if mine == []:
                continue
            with pq.ParquetFile(path) as file:
                last = number == len(self.paths) - 1
                if not last and file.num_row_groups != self.part_blocks:
                    raise ValueError(f"{path.name} has {file.num_row_groups} row groups")
                yield file, range(file.num_row_groups) if mine is None else mine


def add_up(table: pa.Table, taken: dict[str, dict[int, int]]) -> None:
    """Add a table's tokens to `taken[domain][epoch]`."""
    spans = table["spans"].combine_chunks()
    counts = spans.value_lengths()
    domain = (
        table["domain"]
        .combine_chunks()
        .take(column(np.repeat(np.arange(table.num_rows), counts.to_numpy())))
    )
    flat = spans.flatten()
    pieces = pa.table({"domain": domain, "epoch": flat.field("epoch"), "n": flat.field("length")})
    sums = pieces.group_by(["domain", "epoch"]).aggregate([("n", "sum")])
    for name, epoch, tokens in zip(
        *(sums[name].to_pylist() for name in ("domain", "epoch", "n_sum")), strict=True
    ):
        by_epoch = taken.setdefault(name, {})
        by_epoch[epoch] = by_epoch.get(epoch, 0) + tokens
