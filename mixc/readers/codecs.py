"""Compressed files as bounded blocks of bytes; a cut or damaged stream is an error."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mixc.readers.records import Source

BLOCK = 1 << 20

_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error)


def blocks(source: Source) -> Iterator[bytes]:
    """The decompressed bytes of a file, in blocks of at most `BLOCK`, by its name's ending."""
    try:
        raw = source.path.open("rb")
    except OSError as error:
        raise source.damaged("MX027", error.strerror) from error
    with raw:
        try:
            read = _decompress(raw, source.name.lower())
            while block := read():
                source.consumed = raw.tell()
                yield block
        except _DAMAGE as error:
            raise source.damaged("MX025", error) from error
        source.consumed = raw.tell()


def _decompress(raw: BinaryIO, name: str) -> Callable[[], bytes]:
    """A function that gives the next block; an empty one is the end."""
    if name.endswith(".xz"):
        found = filter(None, _xz(raw))
        return lambda: next(found, b"")
    stream: Any = raw
    if name.endswith(".gz"):
        stream = gzip.GzipFile(fileobj=raw)
    if name.endswith(".zst"):
        import pyarrow as pa

        # zstandard's stream reader ends without a word on a cut frame; pyarrow's says so.
        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return lambda: stream.read(BLOCK)


def _xz(raw: BinaryIO) -> Iterator[bytes]:
    """The streams of an xz file; `lzma.LZMAFile` takes damage after the first for the end."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    while held := raw.read(BLOCK):
        while held:
            if stream.eof:
                held = held.lstrip(b"\0")  # the format's padding between streams
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if held else stream
                continue
            yield stream.decompress(held, BLOCK)
            while not (stream.eof or stream.needs_input):
                yield stream.decompress(b"", BLOCK)
            held = stream.unused_data
    if not stream.eof:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
