"""`rows.parquet`: for each row of a mixture, the documents that it was cut from.

Columns: `row: int64`, `domain: string`, `epoch: int32` (of the row's last token), `stream_row:
int64` (its number in the domain's packed stream), and `spans`, a list of `{epoch, document,
doc_id, start, length}`: `length` tokens of a document from token `start` on. `document` counts
the domain's documents in the store's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixc.rows.stream import DomainStream, Spans
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


@dataclass(frozen=True)
class BlockRows:
    """The rows of a block by domain: places in the block, numbers in the stream, spans.

    `spans[d].row` counts the rows of domain d in the block.
    """

    first: int
    labels: NDArray[np.uint16]
    places: tuple[Index, ...]
    numbers: tuple[Index, ...]
    spans: tuple[Spans, ...]


def block_table(
    rows: BlockRows, domains: tuple[str, ...], streams: tuple[DomainStream, ...]
) -> bytes:
    """The table of a block, as Arrow IPC bytes."""
    numbers = np.empty(len(rows.labels), np.int64)
    parts: dict[str, list[NDArray[np.generic]]] = {
        name: [] for name in ("place", "epoch", "document", "doc_id", "start", "length")
    }
    for place, number, spans, stream in zip(
        rows.places, rows.numbers, rows.spans, streams, strict=True
    ):
        numbers[place] = number
        parts["place"].append(place[spans.row])
        parts["doc_id"].append(stream.doc_ids(spans.document))
        for name in ("epoch", "document", "start", "length"):
            parts[name].append(getattr(spans, name))
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    order = np.argsort(columns["place"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    table = _table(rows, domains, numbers, columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _table(
    rows: BlockRows,
    domains: tuple[str, ...],
    numbers: Index,
    columns: dict[str, NDArray[np.generic]],
) -> pa.Table:
    count = np.bincount(columns["place"], minlength=len(rows.labels))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    span = pa.StructArray.from_arrays(
        [pa.array(columns[field.name]).cast(field.type) for field in _SPAN], fields=list(_SPAN)
    )
    return pa.table(
        [
            pa.array(np.arange(rows.first, rows.first + len(rows.labels))),
            pa.array(domains).take(pa.array(rows.labels)),
            pa.array(columns["epoch"][offsets[1:] - 1]).cast(pa.int32()),
            pa.array(numbers),
            pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), span, type=SCHEMA.field("spans").type
            ),
        ],
        schema=SCHEMA,
    )


class RowsWriter:
    """Writes `rows.parquet` block by block, and adds up what was read, by domain and epoch."""

    def __init__(self, file: StagedFile, domains: Sequence[str]) -> None:
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, mode="w"), SCHEMA, compression="zstd", write_statistics=False
        )
        self.taken: dict[str, dict[int, int]] = {name: {} for name in domains}

    def add(self, block: bytes) -> None:
        """Append a block's table."""
        table = pa.ipc.open_stream(block).read_all()
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        add_up(table, self.taken)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def add_up(table: pa.Table, taken: dict[str, dict[int, int]]) -> None:
    """Add a table's tokens to `taken[domain][epoch]`."""
    spans = table["spans"].combine_chunks()
    counts = spans.value_lengths()
    domain = (
        table["domain"]
        .combine_chunks()
        .take(pa.array(np.repeat(np.arange(table.num_rows), counts.to_numpy())))
    )
    flat = spans.flatten()
    pieces = pa.table({"domain": domain, "epoch": flat.field("epoch"), "n": flat.field("length")})
    sums = pieces.group_by(["domain", "epoch"]).aggregate([("n", "sum")])
    for name, epoch, tokens in zip(
        *(sums[column].to_pylist() for column in ("domain", "epoch", "n_sum")), strict=True
    ):
        by_epoch = taken.setdefault(name, {})
        by_epoch[epoch] = by_epoch.get(epoch, 0) + tokens
