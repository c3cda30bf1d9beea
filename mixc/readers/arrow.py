"""One document a row of an Arrow IPC file, an Arrow IPC stream, or a Feather file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from mixc.readers.codecs import Counted
from mixc.readers.columns import FAULTS, Columns, reason_of
from mixc.readers.records import BadRecord, ReadOptions, Record, Source

_MAGIC, _FEATHER_1 = b"ARROW1", b"FEA1"
_HEAD = 8  # bytes: the magic, padded
_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
_END = bytes(4)  # the length of the message after the last one


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text column's strings, batch by batch. A row's position is its batch's.

    It counts the bytes of the wanted columns, as pyarrow holds them. Errors: MX026, MX027.
    """
    source.by_row = True
    with source.open() as raw:
        try:
            yield from _read(raw, source, options)
        except (*FAULTS, EOFError) as error:
            raise source.damaged("MX026", reason_of(error)) from error


def _read(raw: BinaryIO, source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    size = raw.seek(0, io.SEEK_END)
    raw.seek(0)
    head = raw.read(_HEAD)
    if head.startswith(_FEATHER_1):
        raise source.damaged("MX026", "it is Feather version 1; write it again as version 2")
    # A file is a stream between a magic and a footer that says where its batches are. Read as a
    # stream, it is read once from end to end, and no footer is trusted.
    is_file = head.startswith(_MAGIC)
    raw.seek(_HEAD if is_file else 0)
    schema = pa.ipc.read_schema(pa.PythonFile(_Stream(Counted(raw, _scratch(source)), size), "r"))
    columns = Columns(schema, source, options)

    raw.seek(0)
    counted = Counted(raw, source)
    stream = _Stream(counted, size)
    if is_file:
        stream.read(_HEAD)
    only = pa.ipc.IpcReadOptions(included_fields=columns.top, use_threads=False)
    reader = pa.ipc.open_stream(pa.PythonFile(stream, "r"), options=only)
    row = position = 0
    for batch in _batches(reader):
        skipped = position < source.skip_to
        # Nothing may touch the values before this: headers say where buffers begin and end.
        batch.validate()
        if not skipped:
            _validate(batch)
            yield from columns.records(batch, row, position)
        row += batch.num_rows
        position += batch.nbytes
    if stream.last != _END:
        raise EOFError("it is cut: nothing marks its end")
    _check_end(counted, is_file)


def _batches(reader: pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return


def _validate(batch: pa.RecordBatch) -> None:
    """Check all that a batch says of itself, but not whether its strings are valid UTF-8."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:  # slower, then, and without strings
        for column in batch.columns:
            _validate_bytes(column)


def _validate_bytes(array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _validate_bytes(array.field(number))
    elif pa.types.is_dictionary(kind):
        _validate_bytes(array.dictionary)
        pa.DictionaryArray.from_arrays(array.indices, array.dictionary, safe=True)
    else:
        binary = _BINARY.get(kind)
        (array if binary is None else array.view(binary)).validate(full=True)


def _check_end(counted: Counted, is_file: bool) -> None:
    """Read on behind the end of the stream, where only the footer of a file may stand."""
    tail, size = b"", 0
    while block := counted.read(1 << 20):
        tail, size = (tail + block)[-10:], size + len(block)
    footer, magic = tail[-10:-6], tail[-6:]
    if is_file and (magic != _MAGIC or int.from_bytes(footer, "little") != size - 10):
        raise EOFError("it is cut: it has no footer")
    if size and not is_file:
        raise ValueError("more bytes follow the end of the stream")


def _scratch(source: Source) -> Source:
    return Source(source.path, source.name)


class _Stream:
    """A file that reads no more than there is, whatever a header asks for.

    `last` is what was read last.
    """

    closed = False

    def __init__(self, raw: Counted, size: int) -> None:
        self._raw, self._left, self.last = raw, size, b""

    def read(self, size: int) -> bytes:
        """Give `size` bytes, or fewer at the end."""
        self.last = self._raw.read(max(0, min(size, self._left)))
        self._left -= len(self.last)
        return self.last

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""
