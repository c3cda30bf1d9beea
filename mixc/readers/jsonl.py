"""One JSON object a line, plain or compressed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate, count, takewhile
from operator import attrgetter

import msgspec

from mixc.readers.lines import BOM, LongLine, lines
from mixc.readers.records import EXCERPT, BadRecord, ReadOptions, Record, Source

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
# A backslash and what it escapes, so that one that is itself escaped begins no escape.
_ESCAPE = re.compile(rb"\\(?:%b\\%b|(%b|%b)|.)" % (_HIGH, _LOW, _HIGH, _LOW), re.DOTALL)
_NULL = msgspec.Raw(b"null")
_string = msgspec.json.Decoder(str).decode

# The text and the further fields of a line.
_Values = tuple[str, tuple[str | None, ...]]


class _NoTextError(Exception):
    """A field that holds a list or an object."""


_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _NoTextError)


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text of each line's object. Blank lines are no records, but count as rows."""
    # JSON may spell one byte of text as six (\u0041).
    longest = 6 * options.max_bytes + 65536
    parse = _parser(options)
    for group in lines(source, options, longest):
        if isinstance(group, LongLine):
            reason = f"a line is over {longest} bytes long"
            yield BadRecord("MX024", reason, group.row, group.position, group.excerpt)
            continue
        starts = accumulate(map(len, group.lines), _next_start, initial=group.position)
        found = group.lines
        if group.position == 0 and found[0].startswith(BOM):
            found = [found[0].removeprefix(BOM), *found[1:]]
        places = zip(count(group.row), starts, found, strict=False)
        try:
            values = [parse(line) for line in found]
        except _FAULTS:
            for row, start, line in places:
                if line and not line.isspace():
                    yield _record(parse, options, line, row, start)
        else:
            for (row, start, _), (text, fields) in zip(places, values, strict=True):
                yield Record(row, text, start, fields)


def _next_start(start: int, size: int) -> int:
    return start + size + 1


def _record(
    parse: Callable[[bytes], _Values], options: ReadOptions, line: bytes, row: int, start: int
) -> Record | BadRecord:
    """The record of a line that is not blank."""
    try:
        return Record(row, *_beside(start, parse(line)))
    except _FAULTS as error:
        code, reason = _judge(error, line, options)
    if code == "MX022" and options.replace_invalid:
        mended = _ESCAPE.sub(_replaced, line.decode(errors="replace").encode())
        try:
            return Record(row, *_beside(start, parse(mended)), replaced=True)
        except _FAULTS as error:
            code, reason = _judge(error, mended, options)
    return BadRecord(code, reason, row, start, line[:EXCERPT])


def _beside(start: int, values: _Values) -> tuple[str, int, tuple[str | None, ...]]:
    return values[0], start, values[1]


def _replaced(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[1] else escape[0]


def _judge(error: Exception, line: bytes, options: ReadOptions) -> tuple[str, str]:
    """The code and the reason for a line that gives no document."""
    if isinstance(error, _NoTextError):
        return "MX021", str(error)
    if isinstance(error, msgspec.ValidationError):
        return "MX021", f"no text in the field '{options.text}': {error}"
    if isinstance(error, UnicodeDecodeError):
        return "MX022", "the text is not valid UTF-8"
    if any(escape[1] for escape in _ESCAPE.finditer(line)):
        return "MX022", "a lone surrogate has no UTF-8 form"
    return "MX020", f"the line is not valid JSON: {error}"


def _parser(options: ReadOptions) -> Callable[[bytes], _Values]:
    """A function that decodes the wanted fields of a line, and no others."""
    path = options.text.split(".")
    beside: list[dict[str, str]] = [{} for _ in path]
    getters = [_getter(name, path, beside) for name in options.fields]
    shape: type = str
    for name, attributes in zip(reversed(path), reversed(beside), strict=True):
        shape = msgspec.defstruct(
            "Line",
            [
                ("text", shape, msgspec.field(name=name)),
                *(
                    (attribute, msgspec.Raw, msgspec.field(name=other, default=_NULL))
                    for other, attribute in attributes.items()
                ),
            ],
            gc=False,
        )
    decode: Callable[[bytes], object] = msgspec.json.Decoder(shape).decode
    text_of = attrgetter(".".join(["text"] * len(path)))
    if not getters:
        return lambda line: (text_of(decode(line)), ())

    def parse(line: bytes) -> _Values:
        found = decode(line)
        return text_of(found), tuple([get(found) for get in getters])

    return parse


def _getter(
    name: str, path: list[str], beside: list[dict[str, str]]
) -> Callable[[object], str | None]:
    """A function that finds a further field in a decoded line.

    `path` leads to the text; `beside[d]` gathers what else is wanted of the object at depth d
    of it: from the name of a field to its attribute in the decoded line.
    """
    parts = name.split(".")
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(parts, path, strict=False))
    depth = len(list(shared))
    if depth == len(path):
        text_of = attrgetter(".".join(["text"] * depth))
        return text_of if parts == path else lambda _: None
    if depth == len(parts):
        return lambda _: _as_text(msgspec.Raw(b"{}"), name)
    attribute = beside[depth].setdefault(parts[depth], f"field{len(beside[depth])}")
    value_of = attrgetter(".".join(["text"] * depth + [attribute]))
    inner = [_inner(part) for part in parts[depth + 1 :]]

    def get(found: object) -> str | None:
        raw = value_of(found)
        for decode in inner:
            raw = decode(raw)
        return _as_text(raw, name)

    return get


def _inner(name: str) -> Callable[[msgspec.Raw], msgspec.Raw]:
    """A function that takes the value of a field out of an object that is not decoded."""
    value = ("value", msgspec.Raw, msgspec.field(name=name, default=_NULL))
    decode = msgspec.json.Decoder(msgspec.defstruct("Inner", [value], gc=False)).decode
    return lambda raw: decode(raw).value if bytes(raw).startswith(b"{") else _NULL  # type: ignore[attr-defined]


def _as_text(raw: msgspec.Raw, name: str) -> str | None:
    value = bytes(raw)
    if value.startswith(b'"'):
        return _string(raw)
    if value.startswith((b"{", b"[")):
        raise _NoTextError(f"the field '{name}' holds a list or an object, no text")
    return None if value == b"null" else value.decode()
