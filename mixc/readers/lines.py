"""Files as lines, many at once; no line is held that is over a cap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mixc.readers.codecs import blocks
from mixc.readers.records import EXCERPT, ReadOptions, Source

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Consecutive lines without their ends, the first one's number, and its byte offset."""

    row: int
    position: int
    lines: list[bytes]


@dataclass(frozen=True)
class LongLine:
    """A line over the cap: its number, its offset, its first bytes, and the quotes in it."""

    row: int
    position: int
    excerpt: bytes
    quotes: int


def lines(
    source: Source, options: ReadOptions, longest: int, *, skips: bool = True
) -> Iterator[Lines | LongLine]:
    """Every line of a file, in order. The first one may begin with a mark of byte order.

    With `skips`, lines that begin before `source.skip_to` may be counted only.
    """
    row = start = end = 0
    held = _Held(longest)
    for block in blocks(source, options):
        end += len(block)
        if skips and end <= source.skip_to:
            if newlines := block.count(b"\n"):
                row += newlines
                start = end - len(block) + block.rfind(b"\n") + 1
            held = _Held(longest, gone=start < end, size=end - start)
            continue
        first, *whole = block.split(b"\n")
        held.add(first)
        if whole:
            *whole, rest = whole
            yield from _groups(row, start, held, whole)
            row += 1 + len(whole)
            start = end - len(rest)
            held = _Held(longest)
            held.add(rest)
    if held.size:
        yield from _groups(row, start, held, [])


@dataclass
class _Held:
    """The line that the last block cut: its parts as long as it is under the cap."""

    longest: int
    gone: bool = False
    size: int = 0
    quotes: int = 0
    parts: list[bytes] = field(default_factory=list)
    excerpt: bytes = b""

    def add(self, part: bytes) -> None:
        was_over = self.size > self.longest
        self.size += len(part)
        if self.gone:
            return
        if self.size <= self.longest:
            self.parts.append(part)
            return
        if not was_over:
            begun = b"".join(self.parts)
            self.excerpt, self.quotes = (begun + part[:EXCERPT])[:EXCERPT], begun.count(b'"')
            self.parts.clear()
        self.quotes += part.count(b'"')


def _groups(row: int, start: int, held: _Held, whole: list[bytes]) -> Iterator[Lines | LongLine]:
    """The held line and those after it, cut where a line is over the cap."""
    if held.gone or held.size > held.longest:
        if not held.gone:
            yield LongLine(row, start, held.excerpt, held.quotes)
        row, start = row + 1, start + held.size + 1
    else:
        whole = [b"".join(held.parts), *whole]
    if max(map(len, whole), default=0) <= held.longest:
        if whole:
            yield Lines(row, start, whole)
        return
    for line in whole:
        if len(line) <= held.longest:
            yield Lines(row, start, [line])
        else:
            yield LongLine(row, start, line[:EXCERPT], line.count(b'"'))
        row, start = row + 1, start + len(line) + 1
