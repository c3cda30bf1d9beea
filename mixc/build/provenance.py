"""`rows.parquet`: for each row of a mixture, the documents that it was cut from.

Columns: `row: int64`, `domain: string`, `epoch: int32` (of the row's last token), `stream_row:
int64` (its number in the domain's packed stream), and `spans`, a list of `{epoch, document,
doc_id, start, length}`: `length` tokens of a document from token `start` on. `document` counts
the domain's documents in the store's order. A row group holds a block; the file's metadata has,
under `mixc.blocks`, the blocks' digests end to end, 32 hex digits each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixc.rows.stream import Spans, each_of
from mixc.store.columns import column, strings
from mixc.store.commit import StagedFile

FILE = "rows.parquet"
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
    """Writes `rows.parquet` block by block, and adds up what was read, by domain and epoch."""

    def __init__(self, file: StagedFile, domains: Sequence[str]) -> None:
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            SCHEMA,
            compression=_COMPRESSION,
            use_dictionary=_FEW,
            column_encoding=dict.fromkeys(_NUMBERS, "DELTA_BINARY_PACKED"),
            write_statistics=False,
        )
        self.taken: dict[str, dict[int, int]] = {name: {} for name in domains}
        self.digests: list[str] = []

    def add(self, table: pa.Table, taken: Sequence[Mapping[int, int]], digest: str) -> None:
        """Append a block's table, its tokens by domain and epoch, and its digest."""
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.digests.append(digest)
        for sums, more in zip(self.taken.values(), taken, strict=True):
            for epoch, tokens in more.items():
                sums[epoch] = sums.get(epoch, 0) + tokens

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Write the footer. After an error the file is nobody's: what it says counts no more."""
        with suppress(*(() if error is None else (Exception,))):
            self._writer.add_key_value_metadata({_DIGESTS: "".join(self.digests)})
            self._writer.close()
        self._writer.is_open = False  # or it would try again, and complain, once it is collected


def block_labels(path: Path, domains: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Of each block, its digest and the number of each row's domain; none of an earlier file.

    Raises OSError or ValueError if it cannot be read.
    """
    names = strings(domains).cast(pa.string())
    with pq.ParquetFile(path) as file:
        said = (file.metadata.metadata or {}).get(_DIGESTS.encode(), b"").decode()
        for group in range(min(file.num_row_groups, len(said) // 32)):
            column = file.read_row_group(group, columns=["domain"])["domain"].combine_chunks()
            labels = pc.index_in(column, value_set=names).fill_null(-1)
            yield said[32 * group : 32 * group + 32], labels.to_numpy().astype(np.int64)


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
