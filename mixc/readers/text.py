"""One document a file of plain text."""

from __future__ import annotations

from collections.abc import Iterator

from mixc.readers.codecs import blocks
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the file's whole text."""
    parts: list[bytes] = []
    size = 0
    for block in blocks(source):
        size += len(block)
        if size > options.max_bytes:
            yield BadRecord("MX024", f"the document is over {options.max_bytes} bytes long", 0)
            return
        parts.append(block)
    try:
        yield Record(0, b"".join(parts).decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        yield BadRecord("MX022", "the text is not valid UTF-8", 0, error.start)
