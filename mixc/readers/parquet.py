"""One document a row of a parquet file."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from mixc.readers.records import BadRecord, ReadOptions, Record, Source

_ROWS, _BATCH_BYTES = 1024, 64 << 20


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text column's strings, batch by batch."""
    try:
        with pq.ParquetFile(source.path, page_checksum_verification=True) as file:
            _check_column(file, source, options.text)
            size, rows = source.path.stat().st_size, file.metadata.num_rows
            row = 0
            for batch in file.iter_batches(
                _batch_rows(file), columns=[options.text], use_threads=False
            ):
                for scalar in batch.column(0):
                    yield _record(scalar, row, options.text)
                    row += 1
                source.consumed = size * row // max(rows, 1)
            if row != rows:
                raise OSError(f"it holds {row} rows, its footer says {rows}")
            source.consumed = size
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise source.damaged("MX026", str(error).splitlines()[0]) from error


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows that are held at once: fewer where the file's rows are long."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    longest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return int(max(1, min(_ROWS, _BATCH_BYTES // max(longest, 1))))


def _check_column(file: pq.ParquetFile, source: Source, column: str) -> None:
    schema = file.schema_arrow
    index = schema.get_field_index(column)
    if index < 0:
        names = ", ".join(schema.names)
        raise source.damaged("MX026", f"no column '{column}' among: {names}")
    kind = schema.field(index).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise source.damaged("MX026", f"column '{column}' holds {kind}, not strings")


def _record(scalar: pa.Scalar, row: int, column: str) -> Record | BadRecord:
    if not scalar.is_valid:
        return BadRecord("MX021", f"no text in the column '{column}': it is null", row)
    try:
        return Record(row, scalar.as_py())
    except UnicodeDecodeError:
        return BadRecord("MX022", "the text is not valid UTF-8", row)
