"""The text and the further fields of tables: columns, or fields of columns of structs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mixc.readers.records import EXCERPT, BadRecord, ReadOptions, Record, Source

# What pyarrow raises for files that are not what they say.
FAULTS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)
_ROWS = 1024  # that are Python objects at once
_NESTED = object()  # stands for a list or an object

# The names of a column and of the fields of structs in it.
_Path = tuple[str, ...]


class Columns:
    """Where the wanted fields are in tables of a schema. Errors: MX026.

    `paths` are the columns to read, as `columns=` of pyarrow takes them; `top` the indices of
    the top-level columns that hold them.
    """

    def __init__(self, schema: pa.Schema, source: Source, options: ReadOptions) -> None:
        self.options = options
        text = _find(schema, options.text, source)
        if text is None:
            names = ", ".join(schema.names)
            raise source.damaged("MX026", f"no column '{options.text}' among: {names}")
        if not _is_string(kind := _type_at(schema, text)):
            raise source.damaged("MX026", f"column '{options.text}' holds {kind}, not strings")
        self._text = text
        self._fields = [_find(schema, name, source) for name in options.fields]
        found = dict.fromkeys(path for path in (text, *self._fields) if path)
        self.paths = [".".join(path) for path in found]
        self.top = sorted({schema.get_field_index(path[0]) for path in found})

    def records(
        self, batch: pa.RecordBatch, row: int, position: int
    ) -> Iterator[Record | BadRecord]:
        """The records of a batch whose first row is `row`, all at one position."""
        for start in range(0, batch.num_rows, _ROWS):
            part = batch.slice(start, _ROWS)
            texts = _strings(_take(part, self._text))
            fields = [
                [None] * part.num_rows if path is None else _values(_take(part, path))
                for path in self._fields
            ]
            others: Iterator[tuple[Any, ...]] = (
                zip(*fields, strict=True) if fields else iter([()] * part.num_rows)
            )
            for number, (text, values) in enumerate(zip(texts, others, strict=True), row + start):
                if type(text) is str and not values:
                    yield Record(number, text, position)
                else:
                    yield self._record(text, values, number, position)

    def _record(
        self, text: str | bytes | None, values: tuple[Any, ...], row: int, position: int
    ) -> Record | BadRecord:
        """A record of values as `_strings` and `_values` give them: bytes are invalid UTF-8."""
        if text is None:
            reason = f"no text in the column '{self.options.text}': it is null"
            return BadRecord("MX021", reason, row, position)
        excerpt = (text if isinstance(text, bytes) else text.encode())[:EXCERPT]
        for name, value in zip(self.options.fields, values, strict=True):
            if value is _NESTED:
                reason = f"the field '{name}' holds a list or an object, no text"
                return BadRecord("MX021", reason, row, position, excerpt)
        invalid = any(isinstance(value, bytes) for value in (text, *values))
        if invalid and not self.options.replace_invalid:
            return BadRecord("MX022", "the text is not valid UTF-8", row, position, excerpt)
        text, *values_ = (
            value.decode(errors="replace") if isinstance(value, bytes) else value
            for value in (text, *values)
        )
        return Record(row, text, position, tuple(values_), invalid)


def reason_of(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _find(schema: pa.Schema, name: str, source: Source) -> _Path | None:
    """The path of a wanted field: a column of exactly that name first, else through structs."""
    for path in ((name,), tuple(name.split("."))):
        indices = schema.get_all_field_indices(path[0])
        if len(indices) > 1:
            raise source.damaged("MX026", f"{len(indices)} columns are named '{path[0]}'")
        if indices and _type_at(schema, path) is not None:
            return path
    return None


def _type_at(schema: pa.Schema, path: _Path) -> pa.DataType | None:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        index = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
        if index < 0:
            return None
        kind = kind.field(index).type
    return kind


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _take(batch: pa.RecordBatch, path: _Path) -> pa.Array:
    column = batch.column(path[0])
    return pc.struct_field(column, list(path[1:])) if path[1:] else column


def _strings(column: pa.Array) -> list[Any]:
    """The values of strings or bytes: str, bytes where they are not valid UTF-8, or None."""
    if not pa.types.is_large_binary(column.type):
        try:
            texts: list[Any] = column.cast(pa.large_string()).to_pylist()
            return texts
        except (UnicodeDecodeError, pa.ArrowInvalid):  # the latter: bytes that are not UTF-8
            column = column.cast(pa.large_binary())
    return [None if value is None else _decoded(value) for value in column.to_pylist()]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _values(column: pa.Array) -> list[Any]:
    """The values of any column as text, as `_strings`; `_NESTED` where they are no single ones."""
    kind = column.type
    if pa.types.is_nested(kind):
        return [_NESTED if valid else None for valid in column.is_valid().to_pylist()]
    if pa.types.is_floating(kind):
        numbers = zip(column.to_numpy(zero_copy_only=False), column.is_valid(), strict=True)
        return [str(number) if valid.as_py() else None for number, valid in numbers]
    if not (_is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        column = column.cast(pa.string())
    return _strings(column)
