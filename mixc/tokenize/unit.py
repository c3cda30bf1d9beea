"""The work of one unit: input files of a domain, or a part of one, encoded and staged as shards."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.engine.local import Report
from mixc.errors import MixcError
from mixc.readers.records import BadRecord
from mixc.store import commit
from mixc.store.columns import strings
from mixc.store.hashes import FileRecord, check_file, seal, unseal
from mixc.store.shard import Documents
from mixc.store.store import Unit
from mixc.tokenize.check import Mismatch, verify_engine
from mixc.tokenize.encoder import Encoder, TokenizerFile, Trust
from mixc.tokenize.engines import Encoded, Refused
from mixc.tokenize.inputs import Input
from mixc.tokenize.reading import Reading
from mixc.tokenize.rules import Counts, Rules, Text, select
from mixc.tokenize.samples import Samples
from mixc.tokenize.staged import Quarantine, Shards

BATCH_BYTES = 2 << 20
_SPELLED = "the text spells the end-of-text token, as this tokenizer reads it"
_SPECIAL = "the text spells a special token, which special_tokens: error forbids"
_UNIT_SCHEMA = "mixc.unit/3"


@dataclass(frozen=True)
class UnitTask:
    """A unit to be made. `part`: the stretch of its one file; None: all of its files whole."""

    key: str
    folder: str
    inputs: tuple[Input, ...]
    rules: Rules
    part: tuple[int, int] | None
    allow_empty: bool
    trust: Trust

    @property
    def bytes(self) -> int:
        """Bytes of the input files."""
        return sum(item.bytes for item in self.inputs)

    @property
    def first(self) -> bool:
        """Whether nothing of its files comes before it."""
        return self.part is None or self.part[0] == 0


@dataclass(frozen=True)
class Made:
    """A unit whose files are all staged, and files of samples of it that are to be verified."""

    task: UnitTask
    unit: Unit
    samples: tuple[FileRecord, ...] = ()


@dataclass
class Worker:
    """What a worker holds: the tokenizer, where to stage, its encoder, the file it is at."""

    file: TokenizerFile
    staging: Path
    made: Encoder | None = None  # for the engine trusted last
    reading: Reading | None = None

    def encoder(self, trust: Trust) -> Encoder:
        """An encoder by the engine that is trusted."""
        if self.made is None or self.made.trust != trust:
            self.made = Encoder(self.file, trust)
        return self.made

    def open(self, task: UnitTask, item: Input) -> Reading:
        """A file of a task: of a part, read on from where this worker is, if it can be.

        The worker lets go of it: where reading fails, nobody reads on.
        """
        reading, self.reading = self.reading, None
        if task.part is None or reading is None:
            return Reading(item, task.rules.read)
        if reading.serves(item, task.rules.read, task.part[0]):
            return reading
        return Reading(item, task.rules.read)


def make_worker(file: TokenizerFile, staging: Path, engine: str) -> Worker:
    """Set a worker up. It loads the engine that it will be asked for, if that can be loaded."""
    # A unit that is split holds a file open for each of its domains.
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(4096, most)), most))
    with suppress(Refused):
        file.engine(engine)
    # What is alive by now stays so: the collector need not walk through it again and again.
    gc.freeze()
    return Worker(file, staging)


def try_engine(worker: Worker, task: tuple[str, list[str], Encoded], _: Report) -> Mismatch | None:
    """Verify an engine, by its name, on texts, by the ids expected. Raises Refused."""
    name, texts, expected = task
    return verify_engine(worker.file.engine(name), texts, expected)


def tokenize_unit(worker: Worker, task: UnitTask, report: Report) -> Made:
    """Stage the shards of a unit, or adopt them if an earlier run staged them whole."""
    folder = worker.staging / task.folder
    if (made := adopt(folder, task)) is not None:
        report(task.bytes if task.first else 0)
        return made
    with closing(Shards(folder)) as shards:
        return _tokenized(worker, task, shards, report)


def _tokenized(worker: Worker, task: UnitTask, shards: Shards, report: Report) -> Made:
    folder = worker.staging / task.folder
    encoder, samples = worker.encoder(task.trust), Samples(folder)
    work = _Work(encoder, task, shards, Quarantine(folder), report)
    encoder.begin(samples)
    inputs, ended = [], True
    for number, item in enumerate(task.inputs):
        reading = worker.open(task, item)
        counts = _tokenize_file(work, number, reading)
        inputs.append({"path": item.name, "bytes": item.bytes, "digest": item.digest, **counts})
        ended = reading.ended
        worker.reading = None if ended else reading
    work.shards.flush()
    engine = {
        "name": task.trust.engine,
        "version": task.trust.version,
        "share": task.trust.share,
        "verified_documents": samples.documents,
        "verified_bytes": samples.bytes,
        "gave_up": encoder.gave_up,
    }
    bad = work.quarantine.write()
    unit = Unit(task.key, tuple(inputs), tuple(work.shards.written), engine, bad, ended)
    made = Made(task, unit, samples.write())
    stage_unit(worker.staging, made)
    return made


def stage_unit(staging: Path, made: Made) -> None:
    """Say that a unit's files are all staged, and which samples of it are yet to be verified."""
    here = made.unit.moved(lambda _: "").as_dict()
    samples = [file.as_dict() for file in made.samples]
    told = {"schema": _UNIT_SCHEMA, "unit": here, "samples": samples}
    commit.write_file(staging / made.task.folder / "unit.json", seal(told))


def adopt(folder: Path, task: UnitTask) -> Made | None:
    """A unit staged by an earlier run, if its hashes prove it whole and its engine is trusted."""
    try:
        told = unseal(folder / "unit.json", _UNIT_SCHEMA)
    except MixcError:
        return None
    unit = Unit.from_dict(told["unit"])
    samples = tuple(FileRecord(**one) for one in told["samples"])
    if not task.trust.accepts(unit.engine):
        return None
    # Samples are judged as work of the engine that is trusted now.
    by = (unit.engine["name"], unit.engine["version"])
    if samples and by != (task.trust.engine, task.trust.version):
        return None
    if any(check_file(folder, file, rehash=True) for file in (*unit.files, *samples)):
        return None
    # Equal bytes may come from files of other names by now; a quarantine has them written in it.
    renamed = [old["path"] for old in unit.inputs] != [new.name for new in task.inputs]
    if renamed and unit.quarantine is not None:
        return None
    named = zip(unit.inputs, task.inputs, strict=True)
    inputs = tuple({**old, "path": new.name} for old, new in named)
    return Made(task, replace(unit, inputs=inputs), samples)


@dataclass(frozen=True)
class _Work:
    """A unit in the making."""

    encoder: Encoder
    task: UnitTask
    shards: Shards
    quarantine: Quarantine
    report: Report


def _tokenize_file(work: _Work, number: int, reading: Reading) -> dict[str, Any]:
    """Encode a file, or the task's part of it. Returns what became of its records."""
    task, item, source = work.task, reading.item, reading.source
    records = reading.whole() if task.part is None else reading.part(*task.part)
    counts, reported = Counts(), min(source.consumed, item.bytes)
    skips = reading.skips
    try:
        for batch in _batches(work, select(records, task.rules, counts), reading, counts):
            if skips:  # what was passed over is others' work
                skips, reported = False, min(source.consumed, item.bytes)
            _encode(work, number, batch, reading, counts)
            consumed = min(source.consumed, item.bytes)
            work.report(consumed - reported)
            reported = consumed
    except MixcError:
        reading.check_unchanged(at_end=False)  # half a line, because somebody is writing it?
        raise
    reading.check_stamp()
    if reading.ended:
        reading.check_unchanged(at_end=True)
        work.report(0 if skips else item.bytes - reported)
    return counts.as_dict()


def _batches(
    work: _Work, found: Iterator[Text | BadRecord], reading: Reading, counts: Counts
) -> Iterator[list[Text]]:
    """The documents of a file, many at once; bad records raise, or go into quarantine."""
    forbidden = work.encoder.forbidden
    batch: list[Text] = []
    size = 0
    for one in found:
        if isinstance(one, BadRecord):
            _refuse(work, one, reading, counts)
            continue
        if forbidden is not None and forbidden.search(one.text):
            _refuse(work, one.bad("MX032", _SPECIAL), reading, counts)
            continue
        batch.append(one)
        size += one.size
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _refuse(work: _Work, bad: BadRecord, reading: Reading, counts: Counts) -> None:
    """Count a bad record and put it in quarantine, or raise it, as the recipe says."""
    if not work.task.rules.skips(bad):
        raise bad.error(reading.source)
    counts.skipped[bad.code] = counts.skipped.get(bad.code, 0) + 1
    work.quarantine.add(reading.item.name, bad)


def _encode(work: _Work, number: int, batch: list[Text], reading: Reading, counts: Counts) -> None:
    """Encode documents and hand them to their shards; what spells the end-of-text is refused."""
    documents = _documents(work.encoder, number, batch, work.task.rules)
    if work.encoder.refuses_eot:
        spelled = _spell_eot(documents, work.encoder.eot_id)
        if spelled.any():
            _judge_spelling(work.encoder, batch, documents, np.flatnonzero(spelled))
            for text, wrong in zip(batch, spelled, strict=True):
                if wrong:
                    _refuse(work, text.bad("MX032", _SPELLED), reading, counts)
            kept = np.flatnonzero(~spelled)
            batch, documents = [batch[i] for i in kept], documents.select(kept)
    counts.documents += len(batch)
    counts.replaced += sum(text.replaced for text in batch)
    if work.task.rules.split_by is None:
        work.shards.add("", documents)
        return
    numbers: dict[str, list[int]] = {}
    for i, text in enumerate(batch):
        numbers.setdefault(text.split, []).append(i)
    for split, mine in numbers.items():
        work.shards.add(split, documents.select(np.array(mine, np.int64)))


def _judge_spelling(
    encoder: Encoder, batch: list[Text], documents: Documents, found: NDArray[np.int64]
) -> None:
    """Raise EngineMismatch where it is the engine, not the text, that makes an end-of-text."""
    parts = documents.select(found)
    inside = np.ones(len(parts.tokens), np.bool_)
    inside[parts.offsets[1:] - 1] = False  # the end-of-text that closes each
    ids = parts.tokens[inside].astype(np.uint32)
    encoder.judge([batch[i].text for i in found], (ids, parts.lengths - 1))


def _spell_eot(documents: Documents, eot_id: int) -> NDArray[np.bool_]:
    """Which documents hold the end-of-text id before their end, bool[n].

    Models of whole pieces (WordLevel, Unigram) may find it in a text even as ordinary text.
    """
    if np.count_nonzero(documents.tokens == eot_id) == len(documents):
        return np.zeros(len(documents), np.bool_)
    found = np.cumsum(documents.tokens == eot_id)[documents.offsets[1:] - 1]
    return np.asarray(np.diff(found, prepend=0) != 1)


def _documents(encoder: Encoder, number: int, batch: list[Text], rules: Rules) -> Documents:
    n = len(batch)
    doc_id: NDArray[np.uint64] = np.fromiter((text.doc_id for text in batch), np.uint64, n)
    n_bytes = np.fromiter((text.size for text in batch), np.uint32, n)
    tokens, lengths = encoder.encode([text.text for text in batch], doc_id, n_bytes)
    return Documents(
        tokens=tokens,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        doc_id=doc_id,
        source=np.full(n, number, np.uint32),
        row=np.fromiter((text.row for text in batch), np.uint64, n),
        n_bytes=n_bytes,
        id=strings([text.id or "" for text in batch]) if rules.id else None,
    )
