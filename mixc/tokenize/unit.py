"""The work of one unit: a few input files of a domain, read, encoded and staged as shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mixc.engine.local import Report
from mixc.errors import MixcError, Place
from mixc.readers.records import BadRecord, ReadOptions, Record, Source
from mixc.recipe import Domain
from mixc.registry import READERS
from mixc.store import commit
from mixc.store.hashes import check_file, hash_file, key_of, seal, unseal
from mixc.store.shard import Documents, ShardRecord, write_shard
from mixc.store.store import Unit
from mixc.tokenize.encoder import Encoder, TokenizerFile
from mixc.tokenize.inputs import Input

ALGORITHM = 1  # a change of what shards hold, from the same inputs and options, raises it
SHARD_BYTES = 256 << 20
_BATCH_BYTES = 1 << 20
_SPELLED = "the text spells the end-of-text token, as this tokenizer reads it"
_UNIT_SCHEMA = "mixc.unit/1"
_LARGE_BYTES, _BUNDLE_BYTES, _BUNDLE_FILES = 4 << 20, 64 << 20, 64


@dataclass(frozen=True)
class UnitTask:
    """Input files of one domain that are tokenized together."""

    key: str
    folder: str
    inputs: tuple[Input, ...]
    options: ReadOptions
    skip_bad: bool

    @property
    def domain(self) -> str:
        """The domain that the files belong to."""
        return self.inputs[0].domain

    @property
    def bytes(self) -> int:
        """Bytes of the input files."""
        return sum(item.bytes for item in self.inputs)


@dataclass(frozen=True)
class Worker:
    """What a worker process holds: the encoder, and where to stage."""

    encoder: Encoder
    staging: Path


def make_worker(file: TokenizerFile, staging: Path) -> Worker:
    """Set a worker up."""
    return Worker(Encoder(file), staging)


def read_options(domain: Domain) -> ReadOptions:
    """How a domain of a recipe is read."""
    return ReadOptions(domain.text, domain.max_document_bytes)


def plan_units(
    inputs: list[Input], options: ReadOptions, *, skip_bad: bool, tokenizer: TokenizerFile
) -> list[UnitTask]:
    """Cut one domain's files into units: a large file alone, neighbouring small ones together."""
    tasks: list[UnitTask] = []
    twins: Counter[str] = Counter()
    for bundle in _bundles(inputs):
        key = _key(bundle, options, skip_bad, tokenizer)
        # Two units of equal bytes stage apart, so that two workers never share a folder.
        twin, twins[key] = twins[key], twins[key] + 1
        folder = f"{bundle[0].domain}.{twin}.{key}"
        tasks.append(UnitTask(key, folder, tuple(bundle), options, skip_bad))
    return tasks


def _bundles(inputs: list[Input]) -> list[list[Input]]:
    """Cuts fall at large files and where a name's hash says so: a file more moves few of them."""
    bundles: list[list[Input]] = []
    size, last_large = 0, True
    for item in inputs:
        large = item.bytes >= _LARGE_BYTES
        marked = xxhash.xxh3_64_intdigest(item.name.encode()) % _BUNDLE_FILES == 0
        if large or last_large or marked or size + item.bytes > _BUNDLE_BYTES:
            bundles.append([])
            size = 0
        bundles[-1].append(item)
        size += item.bytes
        last_large = large
    return bundles


def _key(
    inputs: list[Input], options: ReadOptions, skip_bad: bool, tokenizer: TokenizerFile
) -> str:
    return key_of(
        {
            "algorithm": ALGORITHM,
            "inputs": [[item.reader, Path(item.name).suffix, item.xxh3] for item in inputs],
            "tokenizer": [tokenizer.sha256, tokenizer.eot_id],
            "options": [options.text, options.max_bytes, skip_bad, SHARD_BYTES],
        }
    )


def tokenize_unit(worker: Worker, task: UnitTask, report: Report) -> Unit:
    """Stage the shards of a unit, or adopt them if an earlier run staged them whole."""
    folder = worker.staging / task.folder
    if (unit := _adopt(folder, task)) is not None:
        report(task.bytes)
        return unit
    staged = _Staged(folder)
    inputs = []
    for number, item in enumerate(task.inputs):
        counts = _tokenize_file(worker.encoder, task, number, item, staged, report)
        inputs.append({"path": item.name, "bytes": item.bytes, "xxh3": item.xxh3, **counts})
    staged.flush()
    unit = Unit(task.key, tuple(inputs), tuple(staged.shards))
    stage_unit(folder, unit)
    return unit


def stage_unit(folder: Path, unit: Unit) -> None:
    """Say that a unit's shards are all staged in `folder`."""
    under = unit.under("")
    commit.write_file(folder / "unit.json", seal({"schema": _UNIT_SCHEMA, **under.as_dict()}))


def _adopt(folder: Path, task: UnitTask) -> Unit | None:
    """A unit staged by an earlier run, if its hashes prove it whole."""
    try:
        unit = Unit.from_dict(unseal(folder / "unit.json", _UNIT_SCHEMA))
    except MixcError:
        return None
    if any(check_file(folder, shard.file, rehash=True) for shard in unit.shards):
        return None
    # Equal bytes may come from files of other names by now.
    named = zip(unit.inputs, task.inputs, strict=True)
    return replace(unit, inputs=tuple({**old, "path": new.name} for old, new in named))


@dataclass
class _Staged:
    """Documents on their way to shards."""

    folder: Path
    shards: list[ShardRecord] = field(default_factory=list)
    parts: list[Documents] = field(default_factory=list)
    size: int = 0

    def add(self, part: Documents) -> None:
        self.parts.append(part)
        self.size += part.tokens.nbytes
        if self.size >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.parts:
            self.shards.append(write_shard(self.folder, _join(self.parts)))
            self.parts, self.size = [], 0


def _join(parts: list[Documents]) -> Documents:
    lengths = np.concatenate([part.lengths for part in parts])
    return Documents(
        tokens=np.concatenate([part.tokens for part in parts]),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        doc_id=np.concatenate([part.doc_id for part in parts]),
        source=np.concatenate([part.source for part in parts]),
        row=np.concatenate([part.row for part in parts]),
        n_bytes=np.concatenate([part.n_bytes for part in parts]),
    )


def _tokenize_file(
    encoder: Encoder, task: UnitTask, number: int, item: Input, staged: _Staged, report: Report
) -> dict[str, Any]:
    source = Source(item.path, item.name)
    skipped: dict[str, int] = {}
    documents = reported = 0
    try:
        for batch in _batches(_texts(source, task, item.reader, skipped)):
            encoded = _encode(encoder, number, batch)
            spelled = _spell_eot(encoded, encoder.eot_id)
            for i in np.flatnonzero(spelled):
                _refuse(batch[i].bad("MX032", _SPELLED), source, task, skipped)
            staged.add(encoded.select(np.flatnonzero(~spelled)) if spelled.any() else encoded)
            documents += len(batch) - int(spelled.sum())
            report(min(source.consumed, item.bytes) - reported)
            reported = min(source.consumed, item.bytes)
    except MixcError:
        _check_unchanged(item)  # half a line, because somebody is writing it?
        raise
    report(item.bytes - reported)
    _check_unchanged(item)
    if not documents and (skipped or not task.skip_bad):
        raise MixcError(
            "MX028",
            f"no document in '{item.name}' of domain '{item.domain}'",
            place=Place(
                item.name, detail=", ".join(f"{v} skipped as {k}" for k, v in skipped.items())
            ),
            help="check the domain's format and text; "
            "on_bad_record: skip allows files without records",
        )
    return {"documents": documents, "skipped": dict(sorted(skipped.items()))}


def _check_unchanged(item: Input) -> None:
    try:
        unchanged = hash_file(item.path) == item.xxh3
    except OSError:
        unchanged = False
    if not unchanged:
        raise MixcError(
            "MX029",
            "the file changed while it was read",
            place=Place(item.name),
            help="run again once nothing writes to it",
        )


@dataclass(frozen=True)
class _Text:
    row: int
    offset: int | None
    text: str
    utf8: bytes

    def bad(self, code: str, reason: str) -> BadRecord:
        return BadRecord(code, reason, self.row, self.offset)


def _texts(source: Source, task: UnitTask, reader: str, skipped: dict[str, int]) -> Iterator[_Text]:
    """The documents of a file; bad records raise, or are counted by their code."""
    for record in READERS[reader].load().read(source, task.options):
        found = _check(record, task.options.max_bytes)
        if isinstance(found, _Text):
            yield found
        else:
            _refuse(found, source, task, skipped)


def _refuse(bad: BadRecord, source: Source, task: UnitTask, skipped: dict[str, int]) -> None:
    """Count a bad record, or raise it, as the recipe says."""
    if not task.skip_bad:
        raise bad.error(source)
    skipped[bad.code] = skipped.get(bad.code, 0) + 1


def _check(record: Record | BadRecord, max_bytes: int) -> _Text | BadRecord:
    if isinstance(record, BadRecord):
        return record
    try:
        utf8 = record.text.encode()
    except UnicodeEncodeError:
        return BadRecord("MX022", "a lone surrogate has no UTF-8 form", record.row, record.offset)
    if not utf8:
        return BadRecord("MX023", "the document is empty", record.row, record.offset)
    if len(utf8) > max_bytes:
        reason = f"the document is {len(utf8)} bytes long, the cap is {max_bytes}"
        return BadRecord("MX024", reason, record.row, record.offset)
    return _Text(record.row, record.offset, record.text, utf8)


def _spell_eot(documents: Documents, eot_id: int) -> NDArray[np.bool_]:
    """Which documents hold the end-of-text id before their end, bool[n].

    Models of whole pieces (WordLevel, Unigram) may find it in a text even as ordinary text.
    """
    found = np.cumsum(documents.tokens == eot_id)[documents.offsets[1:] - 1]
    return np.asarray(np.diff(found, prepend=0) != 1)


def _batches(texts: Iterator[_Text]) -> Iterator[list[_Text]]:
    batch: list[_Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.utf8)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(encoder: Encoder, number: int, batch: list[_Text]) -> Documents:
    tokens, lengths = encoder.encode([text.text for text in batch])
    ids: NDArray[np.uint64] = np.array(
        [xxhash.xxh3_64_intdigest(text.utf8) for text in batch], np.uint64
    )
    return Documents(
        tokens=tokens,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        doc_id=ids,
        source=np.full(len(batch), number, np.uint32),
        row=np.array([text.row for text in batch], np.uint64),
        n_bytes=np.array([len(text.utf8) for text in batch], np.uint32),
    )
