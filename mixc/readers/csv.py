"""One document a row of a CSV or TSV file, plain or compressed; its first row names the fields."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from mixc.readers.lines import BOM, Lines, LongLine, lines
from mixc.readers.records import EXCERPT, BadRecord, ReadOptions, Record, Source

_SPARE = 65536  # bytes of a row for other columns than the text


class _TooLongError(Exception):
    """A row over the cap."""


def read(source: Source, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """Yield the text of each row. Rows count from 0 behind the header; blank lines are none.

    Quotes are as RFC 4180 has them, so fields may hold newlines. pyarrow's reader is several
    times as fast, but says of no row where it begins, and ends at one that is longer than its
    block. Errors of the header: MX026.
    """
    longest = 2 * options.max_bytes + _SPARE  # a text of quotes alone doubles
    csv.field_size_limit(max(csv.field_size_limit(), longest))
    feed = _Feed(lines(source, options, longest, skips=False), longest)
    rows = _rows(feed, "\t" if ".tsv" in source.name.lower()[-8:] else ",")
    header = next(rows, None)
    if header is None:
        return
    columns = _columns(header, source, options)
    for row, values in enumerate(rows):
        if feed.position < source.skip_to:
            continue
        if isinstance(values, _Bad):
            yield feed.bad(values.code, values.reason, row)
        elif len(values) != columns.count:
            reason = f"the row has {len(values)} fields, the header {columns.count}"
            yield feed.bad("MX034", reason, row)
        else:
            text = values[columns.text]
            fields = tuple([None if i is None else values[i] for i in columns.fields])
            if feed.invalid:
                yield _mended(feed, options, row, (text, *fields))
            else:
                yield Record(row, text, feed.position, fields)


@dataclass(frozen=True)
class _Bad:
    """A row that cannot be parsed: the code of the error, and why."""

    code: str
    reason: str


@dataclass(frozen=True)
class _Columns:
    """How many columns there are, and which of them are wanted."""

    count: int
    text: int
    fields: tuple[int | None, ...]


def _columns(header: list[str] | _Bad, source: Source, options: ReadOptions) -> _Columns:
    if isinstance(header, _Bad):
        raise source.damaged("MX026", f"its first row names no columns: {header.reason}")
    if options.text not in header:
        names = ", ".join(header)[:1000].encode(errors="replace").decode()
        raise source.damaged("MX026", f"no column '{options.text}' among: {names}")
    for name in (options.text, *options.fields):
        if header.count(name) > 1:
            raise source.damaged("MX026", f"{header.count(name)} columns are named '{name}'")
    fields = tuple(header.index(name) if name in header else None for name in options.fields)
    return _Columns(len(header), header.index(options.text), fields)


def _rows(feed: _Feed, delimiter: str) -> Iterator[list[str] | _Bad]:
    """The rows that are not blank. One that cannot be parsed costs no other."""
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            values = _row(reader, feed)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Bad("MX034", f"the row is not valid CSV: {error}")
        except _TooLongError:
            feed.pass_over()
            yield _Bad("MX024", f"a row is over {feed.longest} bytes long")
        else:
            if values:
                yield values


def _row(reader: Iterator[list[str]], feed: _Feed) -> list[str]:
    try:
        return next(reader)
    except (csv.Error, _TooLongError):
        if not feed.guessed:
            raise
    feed.begin_again()
    return next(reader)


class _Feed:
    """The lines of a file as `csv.reader` takes them, and what it took for the current row.

    It is given many lines at once where they seem to be those of one quoted field. A wrong
    guess makes an error in it, never another row; the row is then read again, line by line.

    `position` is where the row begins, and `invalid` says that it is no UTF-8: what is not is
    kept as lone surrogates, as `surrogateescape` does.
    """

    def __init__(self, groups: Iterator[Lines | LongLine], longest: int) -> None:
        self.longest = longest
        self._groups = groups
        self._queue: deque[bytes] = deque()
        self._long: LongLine | None = None  # behind the lines in the queue
        self._next = 0  # the position of the first line in the queue
        self.begin()

    def begin(self) -> None:
        """Begin a row."""
        self.position, self._size, self._odd = self._next, 0, False
        self._taken: list[bytes] = []
        self.guessed, self._guesses, self.invalid = False, True, False

    def begin_again(self) -> None:
        """Begin the current row once more, line by line."""
        self._queue.extendleft(reversed(self._taken))
        self._next = self.position
        self.begin()
        self._guesses = False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if not self._queue and (long := self._fill()):
            if self.guessed:
                self._long = long  # for the second reading
            else:
                self._odd ^= bool(long.quotes % 2)
                self._taken.append(long.excerpt)
            raise _TooLongError
        taken = self._take()
        self._taken += taken
        data = b"\n".join(taken)
        self._next += len(data) + 1
        if self.position == 0 == self._size:
            data = data.removeprefix(BOM)
        self._size += len(data) + 1
        if self._size > self.longest + 1:
            raise _TooLongError
        try:
            return data.decode() + "\n"
        except UnicodeDecodeError:
            self.invalid = True
            return data.decode(errors="surrogateescape") + "\n"

    def _fill(self) -> LongLine | None:
        group = self._long or next(self._groups)
        self._long = None
        self._next = group.position
        if not self._taken:
            self.position = group.position
        if isinstance(group, LongLine):
            return group
        self._queue.extend(group.lines)
        return None

    def _take(self) -> list[bytes]:
        """A line; where a quote is open, those up to the one that seems to close it."""
        taken = []
        inside = bool(self._taken)
        while self._queue:
            line = self._queue.popleft()
            taken.append(line)
            odd = line.count(b'"') % 2 == 1
            self._odd ^= odd
            if odd == inside or not self._guesses:
                break
            inside = True
        self.guessed |= len(taken) > 1
        return taken

    def pass_over(self) -> None:
        """Go to the end of a row that is too long: the line that closes its last quote."""
        while self._odd:
            try:
                long = None if self._queue else self._fill()
            except StopIteration:
                return
            if long:
                self._odd ^= bool(long.quotes % 2)
            else:
                line = self._queue.popleft()
                self._next += len(line) + 1
                self._odd ^= line.count(b'"') % 2 == 1

    def bad(self, code: str, reason: str, row: int) -> BadRecord:
        """The current row as a bad record."""
        # Blank lines behind it may have been taken along.
        lines = b"\n".join(self._taken[:EXCERPT]).rstrip(b"\r\n")
        return BadRecord(code, reason, row, self.position, lines[:EXCERPT])


def _mended(
    feed: _Feed, options: ReadOptions, row: int, values: tuple[str | None, ...]
) -> Record | BadRecord:
    """The record of a row with invalid UTF-8, which may be in columns that nobody wants."""
    raw = [None if one is None else one.encode(errors="surrogateescape") for one in values]
    text, *fields = [None if one is None else one.decode(errors="replace") for one in raw]
    replaced = (text, *fields) != values
    if replaced and not options.replace_invalid:
        return feed.bad("MX022", "the text is not valid UTF-8", row)
    return Record(row, text or "", feed.position, tuple(fields), replaced)
