"""Compressed files as bounded blocks of bytes; a cut or damaged stream is an error."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, cast

import xxhash
from isal import igzip_lib

from mixc.readers.records import ReadOptions, Source

BLOCK = 1 << 18
_CHUNK = 1 << 16  # of compressed bytes: small, so that a ratio is seen soon
SUFFIXES = ("", ".gz", ".zst", ".xz", ".bz2")
_FREE_BYTES = 64 << 20  # that may come out of a file whatever their ratio
_XZ_MEMORY = 256 << 20  # `xz -9` needs 65 MiB to decompress

_GZ_ERROR = cast("type[Exception]", igzip_lib.error)  # its stub says that it is an instance
_DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, _GZ_ERROR)


class Counted:
    """A file that is read from its start to its end: counted and hashed into its source."""

    closed = False

    def __init__(self, raw: BinaryIO, source: Source) -> None:
        self._raw, self._source, self._hash = raw, source, xxhash.xxh3_128()

    def read(self, size: int) -> bytes:
        """Give at most `size` bytes; none at the end, where the source gets its digest."""
        data = self._raw.read(size)
        self._hash.update(data)
        self._source.consumed += len(data)
        if size and not data:
            self._source.digest = self._hash.hexdigest()
        return data

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""


def blocks(source: Source, options: ReadOptions) -> Iterator[bytes]:
    """The decompressed bytes of a file, in blocks of at most `BLOCK`, by its name's ending.

    Errors: MX025 for damage, MX027 for a file that cannot be read, MX033 for one that expands
    beyond the caps.
    """
    size = 0
    with source.open() as raw:
        try:
            read = _decompress(Counted(raw, source), source.name.lower())
            while block := read():
                size += len(block)
                _check_caps(source, options, size)
                yield block
            if not source.consumed and codec_of(source.name):
                raise EOFError("it is empty")
        except _DAMAGE as error:
            raise source.damaged("MX025", error) from error


def codec_of(name: str) -> str:
    """The ending of a file's name that says how it is compressed: one of `SUFFIXES`."""
    return next((suffix for suffix in SUFFIXES[1:] if name.lower().endswith(suffix)), "")


def _check_caps(source: Source, options: ReadOptions, size: int) -> None:
    if size > options.max_file_bytes:
        reason = f"it expands to more than {options.max_file_bytes} bytes"
        raise source.damaged("MX033", reason)
    if size > _FREE_BYTES and size > options.max_ratio * source.consumed:
        reason = f"it expands to more than {options.max_ratio} times its size"
        raise source.damaged("MX033", reason)


class _Decompressor(Protocol):
    """What bz2, lzma and igzip agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _decompress(raw: Counted, name: str) -> Callable[[], bytes]:
    """A function that gives the next block; an empty one is the end."""
    codec = codec_of(name)
    if codec == ".zst":
        import pyarrow as pa

        # zstandard's stream reader ends without a word on a cut frame; pyarrow's says so. Both
        # refuse frames that need a window of more than 128 MiB.
        stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return lambda: stream.read(BLOCK)
    if not codec:
        return lambda: raw.read(BLOCK)
    found = filter(None, _members(raw, *_MAKE[codec]))
    return lambda: next(found, b"")


# How to start a member of a codec, and whether zeros may pad it.
_MAKE: dict[str, tuple[Callable[[], _Decompressor], bool]] = {
    ".gz": (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), True),
    ".xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), True),
    ".bz2": (bz2.BZ2Decompressor, False),
}


def _members(raw: Counted, make: Callable[[], _Decompressor], padded: bool) -> Iterator[bytes]:
    """The members of a file, end to end; file objects take damage after the first for the end."""
    stream = make()
    while held := raw.read(_CHUNK):
        while held:
            if stream.eof:
                held = held.lstrip(b"\0") if padded else held
                stream = make() if held else stream
                continue
            yield stream.decompress(held, BLOCK)
            while not (stream.eof or stream.needs_input):
                yield stream.decompress(b"", BLOCK)
            held = stream.unused_data
    if not stream.eof:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
