"""A shard: documents of one domain as an Arrow IPC file of one record batch.

Columns: `tokens: large_list<uint16|uint32>` (each document closed by the end-of-text id),
`doc_id: uint64` (xxh3-64 of the text), `source: uint32` (which input file of the shard's unit),
`row: uint64` (record number in that file), `n_bytes: uint32` (UTF-8 bytes of the text), and, where
the recipe names a field for it, `id: large_string` (the document's own id).
Tokens are reached as flat numpy views, never as Arrow scalars.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.store import commit
from mixc.store.columns import column, view
from mixc.store.hashes import FileRecord

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
_COLUMNS = ("tokens", "doc_id", "source", "row", "n_bytes")
_KINDS = ("uint64", "uint32", "uint64", "uint32")  # of the columns after the tokens
_ID = "id"


@dataclass(frozen=True)
class Documents:
    """Documents end to end. `offsets` is int64[n+1] into `tokens`; the rest is [n]."""

    tokens: Tokens
    offsets: NDArray[np.int64]
    doc_id: NDArray[np.uint64]
    source: NDArray[np.uint32]
    row: NDArray[np.uint64]
    n_bytes: NDArray[np.uint32]
    id: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.doc_id)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, end-of-text included, int64[n]."""
        return np.diff(self.offsets)

    def own_id(self, number: int) -> str | None:
        """The own id of a document, where the store keeps them."""
        value = None if self.id is None else self.id[number].as_buffer()
        return None if value is None else value.to_pybytes().decode(errors="replace")

    def select(self, numbers: NDArray[np.int64]) -> Documents:
        """A copy of some of the documents, by their numbers."""
        pieces = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in numbers]
        return Documents(
            tokens=np.concatenate([self.tokens[:0], *pieces]),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[numbers])]),
            doc_id=self.doc_id[numbers],
            source=self.source[numbers],
            row=self.row[numbers],
            n_bytes=self.n_bytes[numbers],
            id=None if self.id is None else self.id.take(pa.array(numbers)),
        )


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the manifest lists it. `values_offset` is where in the file its tokens start.

    `split` is the value of the recipe's `split_by` that its documents share.
    """

    file: FileRecord
    documents: int
    tokens: int
    text_bytes: int
    values_offset: int
    split: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            **self.file.as_dict(),
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "values_offset": self.values_offset,
            **({"split": self.split} if self.split else {}),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ShardRecord:
        """Read plain data back."""
        file = FileRecord(data["path"], data["bytes"], data["xxh3"])
        names = ("documents", "tokens", "text_bytes", "values_offset")
        numbers: dict[str, int] = {name: data[name] for name in names}
        return ShardRecord(file=file, split=data.get("split", ""), **numbers)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 exactly when every id fits."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_shard(
    folder: Path, documents: Documents, spool: commit.Spool | None = None
) -> ShardRecord:
    """Stage a shard in `folder`, named by its content; the record's path is that name.

    With a spool, that holds the tokens, and `documents.tokens` is empty but for its type.
    """
    values, spliced = column(documents.tokens), None
    if spool is not None:
        spliced = spool, spool.stand_in()
        kind, count = values.type, spool.size // documents.tokens.itemsize
        values = pa.Array.from_buffers(kind, count, [None, spliced[1]])
    columns = [
        pa.LargeListArray.from_arrays(column(documents.offsets), values),
        column(documents.doc_id),
        column(documents.source),
        column(documents.row),
        column(documents.n_bytes),
    ]
    names = [*_COLUMNS]
    if documents.id is not None:
        columns.append(documents.id)
        names.append(_ID)
    fields = [
        pa.field(name, column.type, nullable=False)
        for name, column in zip(names, columns, strict=True)
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    unnamed = folder / "unnamed.arrow"
    with commit.create(unnamed) as file, commit.arrow_file(file, batch.schema, spliced) as writer:
        writer.write_batch(batch)
    record = file.record("")
    name = f"{record.xxh3[:16]}.arrow"
    commit.rename(unnamed, folder / name)
    return ShardRecord(
        FileRecord(name, record.bytes, record.xxh3),
        documents=len(documents),
        tokens=len(values),
        text_bytes=int(documents.n_bytes.sum(dtype=np.int64)),
        values_offset=_values_offset(folder / name),
    )


def _values_offset(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        start = file.read_buffer(1).address  # an empty buffer has none
        values = pa.ipc.open_file(file).get_batch(0).column(0).values
        return int(values.buffers()[1].address - start)


def open_shard(path: Path, record: ShardRecord) -> Documents:
    """Map a shard. Raises MX040 if it is not the shard that the record describes."""
    place = Place(str(path))
    try:
        if path.stat().st_size != record.file.bytes:
            raise MixcError("MX040", "the shard's size is not what its manifest says", place=place)
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate()  # a damaged header may point outside the file
        columns = [batch.column(name) for name in _COLUMNS]
        if tuple(str(column.type) for column in columns[1:]) != _KINDS:
            raise ValueError("its columns are not those of a shard")
        tokens = columns[0]
        documents = Documents(
            view(tokens.values),
            view(tokens.offsets),
            **{name: view(batch.column(name)) for name in _COLUMNS[1:]},
            id=_own_ids(batch),
        )
    except FileNotFoundError:
        raise MixcError("MX040", "a shard of the manifest is missing", place=place) from None
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        raise MixcError("MX040", f"the shard is damaged: {error}", place=place) from error
    bounds = documents.offsets[[0, -1]]
    if len(documents) != record.documents or list(bounds) != [0, record.tokens]:
        raise MixcError("MX040", "the shard's counts are not its manifest's", place=place)
    if (documents.offsets[1:] < documents.offsets[:-1]).any():  # differences may wrap around
        raise MixcError("MX040", "a document's offsets do not rise", place=place)
    return documents


def _own_ids(batch: pa.RecordBatch) -> pa.LargeStringArray | None:
    if batch.schema.names == list(_COLUMNS):
        return None
    ids = batch.column(_ID)
    if ids.type != pa.large_string():
        raise ValueError("its columns are not those of a shard")
    offsets = np.frombuffer(ids.buffers()[1], np.int64)[: len(ids) + 1]
    if (np.diff(offsets) < 0).any():  # pyarrow would read outside the file
        raise ValueError("its own ids do not follow each other")
    return ids
