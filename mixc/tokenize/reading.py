"""An input file on its way through a worker: part by part, forward, each part read once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from mixc.errors import MixcError, Place
from mixc.readers.records import BadRecord, ReadOptions, Record
from mixc.registry import READERS
from mixc.store.hashes import hash_file
from mixc.tokenize.inputs import Input, stamp_of
from mixc.tokenize.rules import Counts, Rules, Text, select


class Reading:
    """A file being read. `ended`: no record begins at or after the last part's stop.

    `skips`: the last part that was asked for does not follow the one before it.

    Parts are stretches of a file's content, in its reader's own measure of bytes.
    """

    def __init__(self, item: Input, options: ReadOptions) -> None:
        self.item, self.options = item, options
        self.source = item.source()
        self.ended = False
        self.skips = False
        self._records = READERS[item.reader].load().read(self.source, options)
        self._held: Record | BadRecord | None = None
        self._at = 0

    def serves(self, item: Input, options: ReadOptions, start: int) -> bool:
        """Whether the part of this file that begins at `start` can still be read from here."""
        return item == self.item and options == self.options and start >= self._at

    def part(self, start: int, stop: int) -> Iterator[Record | BadRecord]:
        """The records that begin in [start, stop). Parts may be left out, not read again."""
        self.skips, self._at = start != self._at, stop
        self.source.skip_to = start
        return self._part(start, stop)

    def _part(self, start: int, stop: int) -> Iterator[Record | BadRecord]:
        held, self._held = self._held, None
        for record in chain(() if held is None else (held,), self._records):
            if record.position >= stop:
                self._held = record
                return
            if record.position >= start:
                yield record
        self.ended = True

    def whole(self) -> Iterator[Record | BadRecord]:
        """Every record of the file."""
        yield from self._records
        self.ended = True

    def check_unchanged(self, *, at_end: bool) -> None:
        """Raise MX029 if the file is not what the plan found."""
        if not self.item.is_local:
            return  # every answer of the server was checked for that
        if at_end and self.source.digest:
            unchanged = self.source.digest == self.item.digest
        else:
            try:
                unchanged = hash_file(self.item.path) == self.item.digest
            except (FileNotFoundError, NotADirectoryError):
                unchanged = False
            except OSError as error:
                if not at_end:
                    return  # what went wrong before is what there is to tell
                raise self.source.damaged("MX027", error.strerror or error) from error
        if not unchanged:
            raise self._changed()

    def check_stamp(self) -> None:
        """Raise MX029 if the disk says that the file was written since it was hashed.

        What a part gave counts as the file's before anybody has read the file to its end.
        """
        if not self.item.is_local:
            return
        try:
            unchanged = stamp_of(self.item.path) == self.item.stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise self._changed()

    def _changed(self) -> MixcError:
        return MixcError(
            "MX029",
            "the file changed while it was read",
            place=Place(self.item.name),
            help="run again once nothing writes to it",
        )


def head(item: Input, rules: Rules, budget: int) -> Iterator[str]:
    """Up to `budget` bytes of the texts at a file's start. Bad ones are left out."""
    source = item.source()
    records = READERS[item.reader].load().read(source, rules.read)
    for found in select(records, rules, Counts()):
        if budget <= 0:
            return
        if isinstance(found, Text):
            utf8 = found.text.encode()[:budget]
            budget -= len(utf8)
            yield utf8.decode(errors="ignore")
