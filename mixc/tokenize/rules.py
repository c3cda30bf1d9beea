"""Records to documents: which are taken, which are bad, and which domain each belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from mixc.readers.records import EXCERPT, BadRecord, ReadOptions, Record

if TYPE_CHECKING:  # workers do without pydantic
    from mixc.recipe import Domain

_INVALID = "MX022"
_SURROGATE = "a lone surrogate has no UTF-8 form"


class Text(msgspec.Struct, frozen=True, gc=False):
    """A document to be encoded. `size`: its bytes of UTF-8, of which `doc_id` is the XXH3-64.

    `split`: the value that chooses its domain, if values do.
    """

    row: int
    position: int
    text: str
    doc_id: int
    size: int
    id: str | None
    split: str
    replaced: bool

    def bad(self, code: str, reason: str) -> BadRecord:
        """The document as a bad record."""
        return _bad(code, reason, self.row, self.position, self.text)


@dataclass(frozen=True)
class Rules:
    """What a recipe says of a domain's records, as workers need it.

    `fields` of `read` are, in order: those of `only`, then `id`, then `split_by`.
    """

    read: ReadOptions
    skip_bad: bool
    skip_invalid: bool
    only: tuple[tuple[str, frozenset[str]], ...]
    id: str | None
    split_by: str | None

    def as_key(self) -> list[Any]:
        """The rules as plain data, for keys of work."""
        chosen = [[name, sorted(values)] for name, values in self.only]
        skips = [self.skip_bad, self.skip_invalid]
        return [asdict(self.read), skips, chosen, self.id, self.split_by]

    def skips(self, bad: BadRecord) -> bool:
        """Whether a bad record goes into quarantine, rather than stopping the run."""
        return self.skip_invalid if bad.code == _INVALID else self.skip_bad


def rules_of(domain: Domain) -> Rules:
    """The rules of a domain of a recipe."""
    only = tuple((name, frozenset(map(as_text, vs))) for name, vs in sorted(domain.only.items()))
    extra = [name for name in (domain.id, domain.split_by) if name is not None]
    invalid = domain.invalid_unicode or domain.on_bad_record
    read = ReadOptions(
        text=domain.text,
        max_bytes=domain.max_document_bytes,
        fields=(*(name for name, _ in only), *extra),
        replace_invalid=invalid == "replace",
        max_ratio=domain.max_expansion,
        max_file_bytes=domain.max_file_bytes,
    )
    return Rules(
        read,
        skip_bad=domain.on_bad_record == "skip",
        skip_invalid=invalid == "skip",
        only=only,
        id=domain.id,
        split_by=domain.split_by,
    )


def as_text(value: str | bool | int) -> str:
    """A value of a recipe as readers give the values of fields."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Counts(msgspec.Struct):
    """What became of the records of a file's part. `skipped`: by error code."""

    documents: int = 0
    replaced: int = 0
    not_selected: int = 0
    skipped: dict[str, int] = {}

    def as_dict(self) -> dict[str, Any]:
        """The counts as manifests list them."""
        return {
            "documents": self.documents,
            "replaced": self.replaced,
            "not_selected": self.not_selected,
            "skipped": dict(sorted(self.skipped.items())),
        }


def select(
    records: Iterator[Record | BadRecord], rules: Rules, counts: Counts
) -> Iterator[Text | BadRecord]:
    """The documents among the records, and the bad records; the rest is counted."""
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        fields = record.fields
        if rules.only and any(
            value not in allowed for value, (_, allowed) in zip(fields, rules.only, strict=False)
        ):
            counts.not_selected += 1
            continue
        yield _document(record, rules)


def _document(record: Record, rules: Rules) -> Text | BadRecord:
    row, position, text = record.row, record.position, record.text
    if not text:
        return BadRecord("MX023", "the document is empty", row, position)
    try:
        # Unlike `str.encode`, this leaves the UTF-8 with the text, for the engine to find.
        utf8 = msgspec.Raw(text)
    except UnicodeEncodeError:
        return _bad(_INVALID, _SURROGATE, row, position, text)
    if len(utf8) > rules.read.max_bytes:
        reason = f"the document is {len(utf8)} bytes long, the cap is {rules.read.max_bytes}"
        return _bad("MX024", reason, row, position, text)
    own_id, split = None, ""
    if rules.id is not None or rules.split_by is not None:
        rest = list(record.fields[len(rules.only) :])
        own_id = rest.pop(0) if rules.id is not None else None
        missing = rules.id if rules.id is not None and own_id is None else None
        if rules.split_by is not None:
            split = rest.pop(0) or ""
            missing = missing if split else rules.split_by
        if missing is not None:
            return _bad("MX021", f"no value in the field '{missing}'", row, position, text)
    doc_id = xxhash.xxh3_64_intdigest(utf8)
    return Text(row, position, text, doc_id, len(utf8), own_id, split, record.replaced)


def _bad(code: str, reason: str, row: int, position: int, text: str) -> BadRecord:
    excerpt = text[:EXCERPT].encode(errors="backslashreplace")[:EXCERPT]
    return BadRecord(code, reason, row, position, excerpt)
