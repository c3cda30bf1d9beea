"""What readers take and give."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mixc.errors import MixcError, Place

EXCERPT = 200  # bytes


@dataclass(frozen=True)
class ReadOptions:
    """How a domain's records become documents.

    `text` names the field of the text, and `fields` further fields to give with each record;
    dots lead into nested objects, as in `content.body`. `max_bytes` caps one document, in bytes
    of UTF-8. With `replace_invalid`, invalid UTF-8 and lone surrogates become U+FFFD instead of
    a bad record. `max_ratio` caps the decompressed bytes for each compressed byte (past the
    first 64 MiB), `max_file_bytes` the decompressed bytes of one file.
    """

    text: str
    max_bytes: int
    fields: tuple[str, ...] = ()
    replace_invalid: bool = False
    max_ratio: int = 1000
    max_file_bytes: int = 1 << 50


@dataclass
class Source:
    """An input file, and how far a reader is.

    Readers keep `consumed` (bytes of the file that are read) current, for progress, and may
    pass over records whose position is below `skip_to`; it may rise while they read. `digest`
    is the XXH3-128 of the file (32 hex digits), set at its end by readers that read it from end
    to end. `opener` gives a seekable binary file where the file is not at `path`. Readers whose
    positions are no byte offsets set `by_row`: errors then name the record alone.
    """

    path: Path
    name: str
    consumed: int = 0
    skip_to: int = 0
    digest: str = ""
    opener: Callable[[], BinaryIO] | None = None
    by_row: bool = False

    def open(self) -> BinaryIO:
        """Open the file at its start. Errors, here and in reading: MX027."""
        try:
            return _File(_open_regular(self.path) if self.opener is None else self.opener(), self)
        except OSError as error:
            raise self.damaged("MX027", error.strerror or error) from error

    def damaged(self, code: str, reason: object) -> MixcError:
        """The error for a file that cannot be read any further."""
        return MixcError(
            code,
            f"cannot read the file: {reason}",
            place=Place(self.name, detail=f"{self.consumed} bytes read"),
            help="restore the file, or take it out of the domain's paths",
        )


class _File(io.BufferedReader):
    """A file that gives all that it is asked for, as parsers count on, or says why not."""

    def __init__(self, raw: Any, source: Source) -> None:
        super().__init__(raw)
        self._source = source

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(size)
        except OSError as error:
            raise self._source.damaged("MX027", error.strerror or error) from error


def _open_regular(path: Path) -> Any:
    """Open a file of the disk; a pipe or a device is an error, where it would hang."""
    # Unbuffered, as `_File` buffers.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is not a regular file")
    return os.fdopen(number, "rb", buffering=0)


class Record(msgspec.Struct, frozen=True, gc=False):
    """One document's text.

    `row` is its record number in the file, from 0: the number of its line in formats of lines
    (blank lines count), of its row in tables. `position` is where it begins in the file's
    content, in the reader's own measure of bytes; it never decreases from record to record.
    `fields` are the values of `ReadOptions.fields` as text: strings as they are, true and
    false, numbers as JSON writes them, None for null or nothing. `replaced` says that invalid
    text was replaced.
    """

    row: int
    text: str
    position: int
    fields: tuple[str | None, ...] = ()
    replaced: bool = False


class BadRecord(msgspec.Struct, frozen=True, gc=False):
    """A record that gives no document: an error code, why, where, and its first raw bytes."""

    code: str
    reason: str
    row: int
    position: int
    excerpt: bytes = b""

    def error(self, source: Source) -> MixcError:
        """The record as an error."""
        byte = "" if source.by_row else f", byte {self.position}"
        return MixcError(
            self.code,
            self.reason,
            place=Place(source.name, detail=f"record {self.row}{byte}"),
            help="mend the record, or set on_bad_record: skip to count and leave out such records",
        )
