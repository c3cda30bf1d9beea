"""What readers take and give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixc.errors import MixcError, Place


@dataclass(frozen=True)
class ReadOptions:
    """How a domain's records become documents. `max_bytes` caps one document."""

    text: str
    max_bytes: int


@dataclass
class Source:
    """An input file. Readers keep `consumed` (bytes of the file) current, for progress."""

    path: Path
    name: str
    consumed: int = 0

    def damaged(self, code: str, reason: object) -> MixcError:
        """The error for a file that cannot be read any further."""
        return MixcError(
            code,
            f"cannot read the file: {reason}",
            place=Place(self.name, detail=f"after byte {self.consumed}"),
            help="restore the file, or take it out of the domain's paths",
        )


@dataclass(frozen=True)
class Record:
    """One document's text. `row` is its record number in the file, from 0."""

    row: int
    text: str
    offset: int | None = None


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no document: an error code, why, and where."""

    code: str
    reason: str
    row: int
    offset: int | None = None

    def error(self, source: Source) -> MixcError:
        """The record as an error."""
        where = f"record {self.row}"
        if self.offset is not None:
            where += f", byte {self.offset}"
        return MixcError(
            self.code,
            self.reason,
            place=Place(source.name, detail=where),
            help="mend the record, or set on_bad_record: skip to count and leave out such records",
        )
