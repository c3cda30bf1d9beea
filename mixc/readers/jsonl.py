"""One JSON object a line: plain, gz, zst or xz."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from mixc.readers.codecs import blocks
from mixc.readers.records import BadRecord, ReadOptions, Record, Source

_HIGH, _LOW = rb"\\u[dD][89abAB]..", rb"\\u[dD][c-fC-F].."
_LONE_SURROGATE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_BOM = b"\xef\xbb\xbf"


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text of each line's object. Blank lines are no records."""
    shape = msgspec.defstruct("Line", [("text", str, msgspec.field(name=options.text))])
    decoder = msgspec.json.Decoder(shape)
    # JSON may spell one byte of text as six (\u0041).
    longest = 6 * options.max_bytes + 65536
    row = 0
    for offset, line in _lines(source, longest):
        if line is None:
            yield BadRecord("MX024", f"a line is over {longest} bytes long", row, offset)
        elif line.isspace():
            continue
        else:
            yield _decode(decoder, line, row, offset, options.text)
        row += 1


def _decode(
    decoder: msgspec.json.Decoder[msgspec.Struct], line: bytes, row: int, offset: int, field: str
) -> Record | BadRecord:
    try:
        return Record(row, decoder.decode(line).text, offset)  # type: ignore[attr-defined]
    except msgspec.ValidationError as error:
        reason = f"no text in the field '{field}': {error}"
        return BadRecord("MX021", reason, row, offset)
    except UnicodeDecodeError:
        return BadRecord("MX022", "the text is not valid UTF-8", row, offset)
    except (msgspec.DecodeError, RecursionError) as error:
        if _LONE_SURROGATE.search(line):
            return BadRecord("MX022", "a lone surrogate has no UTF-8 form", row, offset)
        return BadRecord("MX020", f"the line is not valid JSON: {error}", row, offset)


def _lines(source: Source, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (byte offset, line), with None for a line that is too long to hold."""
    offset, held, size = 0, [b""], 0
    for block in blocks(source):
        *whole, rest = block.split(b"\n")
        for part in whole:
            yield from _line(offset, held, part, size + len(part) > longest)
            offset += size + len(part) + 1
            held, size = [], 0
        size += len(rest)
        if size <= longest:
            held.append(rest)
        else:
            held.clear()
    yield from _line(offset, held, b"", size > longest)


def _line(
    offset: int, held: list[bytes], end: bytes, too_long: bool
) -> Iterator[tuple[int, bytes | None]]:
    if too_long:
        yield offset, None
        return
    line = b"".join((*held, end))
    if offset == 0:
        line = line.removeprefix(_BOM)
    if line:
        yield offset, line
