"""Compressed files as bounded blocks of bytes; a cut or damaged stream is an error."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import BinaryIO

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
            stream = _decompress(raw, source.name.lower())
            while block := stream.read(BLOCK):
                source.consumed = raw.tell()
                yield block
        except _DAMAGE as error:
            raise source.damaged("MX025", error) from error
        source.consumed = raw.tell()


def _decompress(raw: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        import pyarrow as pa

        # zstandard's stream reader ends without a word on a cut frame; pyarrow's says so.
        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")  # type: ignore[no-any-return]
    return raw
