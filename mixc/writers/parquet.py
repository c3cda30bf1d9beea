"""Parquet: files `<split>/00000-of-00001.parquet`, ... of `input_ids` and `domain`.

`input_ids` is a list of uint16 or int32, of a fixed size in rows; `domain` is the domain's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers import columns
from mixc.writers.sequences import Folder, Sequences, StreamSpec, parts, stacked

_GROUP_BYTES = 1 << 25  # of tokens: a row group
_FILE_GROUPS = 16


def check(spec: StreamSpec) -> None:
    """Raise MX062 if an id may not fit in int32."""
    columns.check("parquet", spec)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes // 100  # zstd finds that much in the most repetitive of texts


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    total = -(-len(columns.runs(sequences, _GROUP_BYTES)) // _FILE_GROUPS)
    names, tables = [], _tables(sequences)
    for number, table in enumerate(tables):
        names.append(f"{split}/{number:05}-of-{total:05}.parquet")
        mine = chain([table], islice(tables, _FILE_GROUPS - 1))
        folder.write(names[-1], lambda file, mine=mine: _fill(file, mine))  # type: ignore[misc]
    return names


def _tables(sequences: Sequences) -> Iterator[pa.Table]:
    """A table for each row group."""
    domains = pa.array(sequences.domains, pa.string())
    for first, stop, tokens in columns.token_columns(sequences, _GROUP_BYTES):
        labels = domains.take(pa.array(sequences.labels[first:stop]))
        yield pa.table({"input_ids": tokens, "domain": labels})


def _fill(file: StagedFile, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pq.ParquetWriter(
        pa.PythonFile(file, mode="w"),
        first.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["domain"],  # tokens are too many for one
        write_statistics=False,
    ) as writer:
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    said = pq.read_metadata(files[0])
    each = said.row_group(0).num_rows
    found = []
    for part, start, stop in parts(first, count, said.num_rows):
        with pq.ParquetFile(files[part]) as file:
            for group, a, b in parts(start, stop - start, each):
                table = file.read_row_group(group, columns=["input_ids"])
                values = table["input_ids"].combine_chunks().flatten().to_numpy()
                found.append(values.reshape(-1, spec.seq_len)[a:b])
    return stacked(found, spec)


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# Or: datasets.load_dataset('PATH'), which copies everything into its cache first.\n"
        "import pyarrow.parquet as pq\n"
        "tokens = pq.read_table('PATH/train')['input_ids'].combine_chunks()\n"
        f"rows = tokens.flatten().to_numpy().reshape(-1, {spec.seq_len})\n"
    )
