"""One document a row of a parquet file."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow.parquet as pq

from mixc.readers.columns import FAULTS, Columns, reason_of
from mixc.readers.records import BadRecord, ReadOptions, Record, Source

_ROWS, _BATCH_BYTES, _BUFFER = 1024, 16 << 20, 1 << 20


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text column's strings, batch by batch. A row's position is its row group's.

    Row groups that begin before `source.skip_to` are passed over. Errors: MX026, MX027.
    """
    source.by_row = True
    with source.open() as raw:
        try:
            size = raw.seek(0, io.SEEK_END)
            raw.seek(0)
            # Buffered in advance, a column of a row group would be held whole.
            file = pq.ParquetFile(
                raw, page_checksum_verification=True, buffer_size=_BUFFER, pre_buffer=False
            )
            yield from _groups(file, source, options, size)
            source.consumed = size
        except FAULTS as error:
            raise source.damaged("MX026", reason_of(error)) from error


def _groups(
    file: pq.ParquetFile, source: Source, options: ReadOptions, size: int
) -> Iterator[Record | BadRecord]:
    columns = Columns(file.schema_arrow, source, options)
    row = position = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        end = row + group.num_rows
        if position >= source.skip_to:
            batches = file.iter_batches(
                _batch_rows(group),
                row_groups=[number],
                columns=columns.paths,
                use_threads=False,
            )
            for batch in batches:
                yield from columns.records(batch, row, position)
                row += batch.num_rows
                source.consumed = size * row // max(file.metadata.num_rows, 1)
            if row != end:
                raise OSError(f"it holds {row} rows up to here, its footer says {end}")
        row = end
        position += max(group.total_byte_size, 0)
    if row != file.metadata.num_rows:
        raise OSError(f"its row groups hold {row} rows, its footer says {file.metadata.num_rows}")


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Rows that are held at once: fewer where the group's rows are long."""
    longest = group.total_byte_size // max(group.num_rows, 1)
    return int(max(1, min(_ROWS, _BATCH_BYTES // max(longest, 1))))
