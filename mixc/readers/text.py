"""One document a file of plain text."""

from __future__ import annotations

from collections.abc import Iterator

from mixc.readers.codecs import blocks
from mixc.readers.records import EXCERPT, BadRecord, ReadOptions, Record, Source


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the file's whole text. It has no further fields: all are None."""
    source.by_row = True
    parts: list[bytes] = []
    size = 0
    for block in blocks(source, options):
        size += len(block)
        parts.append(block)
        if size > options.max_bytes:
            reason = f"the document is over {options.max_bytes} bytes long"
            yield BadRecord("MX024", reason, 0, 0, b"".join(parts)[:EXCERPT])
            return
    whole = b"".join(parts)
    try:
        text, replaced = whole.decode(), False
    except UnicodeDecodeError as error:
        if not options.replace_invalid:
            reason = f"the text is not valid UTF-8 at byte {error.start}"
            yield BadRecord("MX022", reason, 0, 0, whole[:EXCERPT])
            return
        text, replaced = whole.decode(errors="replace"), True
    fields = (None,) * len(options.fields)
    yield Record(0, text.removeprefix("\ufeff"), 0, fields, replaced)
