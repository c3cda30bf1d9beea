"""`mixc verify`: hash every file again, and derive again what manifests say of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixc import progress
from mixc.build import mixture as mixtures
from mixc.build import order, provenance
from mixc.build.counts import capacity
from mixc.build.gather import block_digest, stream_hash
from mixc.build.mixture import Mixture, kind_of, open_mixture
from mixc.build.schedule import Asked, Schedule, asked_of, constant, describe, make_schedule
from mixc.build.source import store_of
from mixc.errors import MixcError, Place, raise_all
from mixc.rng import Stream
from mixc.rows.stream import DomainStream, targets
from mixc.store import store as stores
from mixc.store.hashes import FileRecord, check_file
from mixc.store.shard import ShardRecord, open_shard, token_dtype
from mixc.store.store import Store, open_store
from mixc.writers.sequences import label_dtype

SAMPLE_GROUPS, SAMPLE_ONE_IN = 8, 16
_SPAN_FIELDS = ("epoch", "document", "start", "length")
_LABELS = ".domains"


@dataclass
class Report:
    """What was checked. `traced_rows` were compared, token by token, with the store.

    They stand in `traced_groups` of the provenance's `groups` row groups.
    """

    kind: str
    path: Path
    files: int = 0
    bytes: int = 0
    documents: int = 0
    rows: int = 0
    formats: int = 0
    groups: int = 0
    traced_groups: int = 0
    traced_rows: int = 0
    problems: list[MixcError] = field(default_factory=list)

    def wrong(self, message: str, path: Path | None = None) -> None:
        """Note damage in a file."""
        self.problems.append(MixcError("MX040", message, place=Place(str(path or self.path))))


def verify(path: Path, *, store: Path | None = None, full: bool = False) -> Report:
    """Check a store or a mixture. Raises MX040, once for each thing that is wrong.

    Hashes, counts, order, and every format's stream are always checked whole. If the store is
    given or stands beside it, a mixture's rows are also derived from their seed again, and
    compared with the tokens they were cut from: all of them if `full`, or else those of a sample
    of the provenance's row groups (about 16 Mi tokens each), 8 or one in 16, whichever is more,
    drawn by the mixture's seed.
    """
    kind = kind_of(path)
    report = Report(kind, path)
    if kind == "store":
        _verify_store(open_store(path), report)
    else:
        _verify_mixture(open_mixture(path), store, full, report)
    raise_all(report.problems)
    return report


def _check_files(root: Path, files: list[FileRecord], report: Report) -> None:
    with progress.task("verify files", sum(file.bytes for file in files), "B") as task:
        for file in files:
            error = check_file(root, file, rehash=True)
            if error is not None:
                report.problems.append(error)
            report.files += 1
            report.bytes += file.bytes
            task.advance(file.bytes)


def _verify_store(store: Store, report: Report) -> None:
    _check_files(store.root, store.files(), report)
    if report.problems:
        return
    tokenizer = store.root / stores.TOKENIZER
    if sha256(tokenizer.read_bytes()).hexdigest() != store.manifest["tokenizer"]["sha256"]:
        report.wrong("the tokenizer is not the manifest's", tokenizer)
    for name, domain in store.domains.items():
        counted = {"documents": 0, "tokens": 0, "held_documents": 0, "held_tokens": 0}
        for shard in domain.shards:
            _check_shard(store, shard, counted, report)
        for what, number in counted.items():
            if getattr(domain, what) != number:
                said = getattr(domain, what)
                report.wrong(f"domain '{name}': {number} {what} found, the manifest says {said}")
        report.documents += counted["documents"]


def _check_shard(store: Store, shard: ShardRecord, counted: dict[str, int], report: Report) -> None:
    path = store.root / shard.file.path
    documents = open_shard(path, shard)
    lengths = documents.lengths
    if len(lengths) and (lengths < 1).any():
        report.wrong("a document's offsets do not rise", path)
        return
    if (documents.tokens[documents.offsets[1:] - 1] != store.eot_id).any():
        report.wrong("a document does not end with the end-of-text id", path)
    if len(documents.tokens) and int(documents.tokens.max()) >= store.vocab_size:
        report.wrong("a token is out of the vocabulary", path)
    held = np.isin(documents.doc_id, store.all_held_ids)
    counted["documents"] += len(documents)
    counted["tokens"] += int(lengths.sum())
    counted["held_documents"] += int(held.sum())
    counted["held_tokens"] += int(lengths[held].sum())


@contextmanager
def _well_formed(path: Path, report: Report) -> Iterator[None]:
    """Note as damage what cannot even be read: anyone can seal a manifest, or hash a file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError) as error:
        # Arrow's errors are among these.
        report.wrong(f"what stands there makes no sense: {type(error).__name__}: {error}", path)


def _verify_mixture(mixture: Mixture, store: Path | None, full: bool, report: Report) -> None:
    _check_files(mixture.root, mixture.files(), report)
    if report.problems:
        return
    with _well_formed(mixture.root / mixtures.MANIFEST, report):
        report.rows = mixture.manifest["rows"]
        labels = _check_ledger(mixture, report)
    if report.problems:  # what follows relies on the counts
        return
    with _well_formed(mixture.root / mixtures.MANIFEST, report):
        schedule = _check_weights(mixture, report)
    if report.problems:
        return
    checks: list[Callable[[], None]] = [
        lambda: _check_order(mixture, labels, schedule, report),
        lambda: _check_labels(mixture, labels, report),
    ]
    checks += [_stream_check(mixture, name, report) for name in mixture.manifest["formats"]]
    source = store_of(mixture, store)
    if source is not None:
        checks += [
            lambda: _check_store(mixture, source, report),
            lambda: _check_held(mixture, source, report),
            lambda: _trace(mixture, source, labels, full, report),
        ]
    for check in checks:
        with _well_formed(mixture.root, report):
            check()


# ---- the ledger, the weights and the order, from the provenance ----


def _check_ledger(mixture: Mixture, report: Report) -> NDArray[np.uint16]:
    """Derive the ledger again from the provenance, and see that it adds up.

    Returns the domain of each row, uint16[R].
    """
    manifest, path = mixture.manifest, mixture.root / mixtures.MANIFEST
    taken: dict[str, dict[int, int]] = {name: {} for name in manifest["domains"]}
    labels = [np.zeros(0, np.uint16)]
    first = 0
    for table in _tables(mixture):
        _check_rows(mixture, table, first, report)
        if report.problems:
            return labels[0]
        provenance.add_up(table, taken)
        labels.append(_labels(mixture, table))
        first += table.num_rows
    every = np.concatenate(labels)
    counts = np.bincount(every, minlength=len(taken)).tolist()
    rows = dict(zip(manifest["domains"], counts, strict=True))
    claimed = manifest["ledger"]
    reads = {name: (entry["read"], entry["held_out"]) for name, entry in claimed.items()}
    if mixtures.make_ledger(reads, taken) != claimed:
        report.wrong("the ledger is not what the provenance adds up to", path)
    total, row_tokens = manifest["rows"], {n: rows[n] * mixture.row_len for n in rows}
    if (sum(rows.values()), sum(row_tokens.values())) != (total, manifest["tokens"]):
        report.wrong("the rows of the mixture are not what the provenance says", path)
    if manifest["dtype"] != str(token_dtype(manifest["tokenizer"]["vocab_size"])):
        report.wrong("the type of the tokens is not that of the vocabulary", path)
    for name, entry in manifest["domains"].items():
        read, held = reads[name]
        derived = {
            "rows": rows[name],
            "tokens": row_tokens[name],
            "realised": rows[name] / total,
            "epochs": row_tokens[name] / max(read - held, 1),
        }
        if derived.items() - entry.items():
            report.wrong(f"the rows of '{name}' are not what the provenance says", path)
    for message in mixtures.check_ledger(claimed, row_tokens):
        report.wrong(message, path)
    return every


def _tables(mixture: Mixture) -> Iterator[pa.Table]:
    with pq.ParquetFile(mixture.root / provenance.FILE) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _labels(mixture: Mixture, table: pa.Table) -> NDArray[np.uint16]:
    """The number of each row's domain. Raises ValueError if one is not of the mixture."""
    number = pc.index_in(table["domain"], value_set=pa.array(list(mixture.manifest["domains"])))
    if number.null_count:
        raise ValueError("a row of the provenance is of a domain that the mixture does not have")
    found: NDArray[np.uint16] = number.to_numpy().astype(np.uint16)
    return found


def _check_rows(mixture: Mixture, table: pa.Table, first: int, report: Report) -> None:
    """See that a row group holds the rows from `first` on, each cut to its full length."""
    manifest, path = mixture.manifest, mixture.root / provenance.FILE
    if not table.schema.equals(provenance.SCHEMA):
        report.wrong("the columns are not those of a mixture's provenance", path)
        return
    expected = min(manifest["block_rows"], manifest["rows"] - first)
    numbers = first + np.arange(table.num_rows)
    if table.num_rows != expected or not np.array_equal(table["row"].to_numpy(), numbers):
        report.wrong(f"the rows from {first} on are not all there, each in its place", path)
        return
    spans = table["spans"].combine_chunks()
    ends = np.cumsum(spans.value_lengths().to_numpy(), dtype=np.int64)
    length, start, epoch = (
        spans.flatten().field(name).to_numpy() for name in ("length", "start", "epoch")
    )
    upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])[ends]
    if (
        not np.array_equal(upto, mixture.row_len * (1 + np.arange(len(ends))))
        or min(length.min(), start.min() + 1) < 1
        or not np.array_equal(table["epoch"].to_numpy(), epoch[ends - 1])
    ):
        report.wrong(f"rows from {first} on: their spans do not make whole rows", path)


def _check_weights(mixture: Mixture, report: Report) -> Schedule:
    """Derive the rows again from the weights, the cap on epochs and the tokens there are."""
    manifest = mixture.manifest
    domains, ledger, total = manifest["domains"], manifest["ledger"], manifest["rows"]
    tokens = [ledger[name]["read"] - ledger[name]["held_out"] for name in domains]
    room = capacity(
        np.array(tokens, np.int64),
        rows=total,
        seq_len=mixture.row_len,
        max_epochs=manifest["max_epochs"],
    )
    schedule = make_schedule(_asked(mixture), total, room)
    counts = zip(schedule.counts.rows.tolist(), schedule.counts.capped.tolist(), strict=True)
    if list(counts) != [(entry["rows"], entry["capped"]) for entry in domains.values()]:
        report.wrong("the rows of the domains are not those of their weights")
    if schedule.weights.tolist() != [entry["weight"] for entry in domains.values()]:
        report.wrong("the weights of the domains are not those of the stages")
    if describe(schedule, list(domains)) != manifest.get(
        "stages", describe(schedule, list(domains))
    ):
        report.wrong("the rows of the stages are not those of their weights")
    return schedule


def _asked(mixture: Mixture) -> tuple[Asked, ...]:
    """The stages' weights; earlier manifests list none."""
    if "stages" in mixture.manifest:
        return asked_of(mixture.manifest["stages"])
    domains = mixture.manifest["domains"].values()
    return constant(np.array([entry["weight"] for entry in domains], np.float64))


def _check_order(
    mixture: Mixture, labels: NDArray[np.uint16], schedule: Schedule, report: Report
) -> None:
    """Measure the order against its bound, and derive it again from the seed."""
    said, names = mixture.manifest["order"], list(mixture.manifest["domains"])
    block = said["shuffle_block"]
    error, bound = order.schedule_error(labels, schedule, shuffle_block=block)
    if (error, bound) != (said["max_prefix_error"], said["bound"]) or error > bound:
        report.wrong(f"the order is {error:.3f} rows off its weights, not what it claims")
    derived = order.schedule_order(schedule, shuffle_block=block, seed=mixture.manifest["seed"])
    for row in np.flatnonzero(derived != labels)[:1]:
        wanted, found = names[derived[row]], names[labels[row]]
        report.wrong(f"row {row} is of '{found}', and by the order's seed of '{wanted}'")


# ---- the files of the formats ----


def _files(formats: Mapping[str, Any], suffix: str) -> list[FileRecord]:
    listed = [FileRecord(**file) for one in formats.values() for file in one["files"]]
    return [file for file in listed if file.path.endswith(suffix)]


def _check_labels(mixture: Mixture, labels: NDArray[np.uint16], report: Report) -> None:
    """See that the files of domains say of each sequence what provenance and holdout say."""
    manifest, held = mixture.manifest, mixture.manifest["holdout"]
    numbers = {name: i for i, name in enumerate(manifest["domains"])}
    domains = {name: held["domains"][name] for name in numbers if name in held["domains"]}
    documents = [one["documents"] for one in domains.values()]
    together = np.repeat([numbers[name] for name in domains], documents)
    expected = [(manifest["formats"], labels), (held["formats"], together)]
    expected += [
        (one["formats"], np.full(one["documents"], numbers[name])) for name, one in domains.items()
    ]
    for formats, wanted in expected:
        for file in _files(formats, _LABELS):
            found = np.fromfile(mixture.root / file.path, label_dtype(len(numbers)))
            if not np.array_equal(found, wanted):
                report.wrong("the domains are not those of the sequences", mixture.root / file.path)


def _stream_check(mixture: Mixture, name: str, report: Report) -> Callable[[], None]:
    """A check that a format holds the stream, to the last token."""
    total, step = mixture.manifest["rows"], mixture.manifest["block_rows"]

    def check() -> None:
        digests = []
        with progress.task(f"read {name}", total, "rows") as task:
            for first in range(0, total, step):
                count = min(step, total - first)
                rows = mixture.read(first, count, of=name)
                if rows.shape != (count, mixture.row_len):
                    report.wrong("rows are missing", mixture.root / name)
                    return
                digests.append(block_digest(rows.reshape(-1)))
                task.advance(count)
        if stream_hash(digests) != mixture.manifest["stream_hash"]:
            report.wrong("the tokens are not those of the stream hash", mixture.root / name)
        report.formats += 1

    return check


# ---- what came from the store ----


def _check_store(mixture: Mixture, store: Store, report: Report) -> None:
    """See that what the mixture says of its store is so."""
    manifest = mixture.manifest
    for what, said, found in (
        ("eot_id", manifest["eot_id"], store.eot_id),
        ("dtype", manifest["dtype"], str(store.dtype)),
        ("vocab_size", manifest["tokenizer"]["vocab_size"], store.vocab_size),
        ("tokenizer", manifest["tokenizer"]["sha256"], store.manifest["tokenizer"]["sha256"]),
    ):
        if said != found:
            report.wrong(f"the {what} is {said}, the store's is {found}")
    for name, entry in manifest["ledger"].items():
        domain = store.domains[name]
        if (entry["read"], entry["held_out"]) != (domain.tokens, domain.held_tokens):
            report.wrong(f"the ledger of '{name}' does not begin with the tokens of the store")


def _check_held(mixture: Mixture, store: Store, report: Report) -> None:
    """See that the held-out documents are the store's: their counts, and raw files of them."""
    held = mixture.manifest["holdout"]
    tokens_of = {name: one["tokens"] for name, one in held["domains"].items()}
    together = _Raw(mixture, held["formats"], sum(tokens_of.values()), report)
    for name in mixture.manifest["domains"]:
        said = held["domains"].get(name, {"documents": 0, "tokens": 0, "formats": {}})
        apart = _Raw(mixture, said["formats"], said["tokens"], report)
        documents = tokens = 0
        for part in store.held_out(name):
            documents, tokens = documents + len(part), tokens + len(part.tokens)
            apart.compare(part.tokens)
            together.compare(part.tokens)
        if (documents, tokens) != (said["documents"], said["tokens"]):
            report.wrong(f"the held-out documents of '{name}' are not as many as the store's")


class _Raw:
    """Files of a format that are tokens and nothing else, compared with the store in order."""

    def __init__(
        self, mixture: Mixture, formats: Mapping[str, Any], tokens: int, report: Report
    ) -> None:
        dtype = np.dtype(mixture.manifest["dtype"])
        paths = [
            mixture.root / file.path
            for file in _files(formats, ".bin")
            if file.bytes == tokens * dtype.itemsize > 0
        ]
        self._files = {path: np.memmap(path, dtype, mode="r") for path in paths}
        self._at, self._report = 0, report

    def compare(self, tokens: NDArray[Any]) -> None:
        """Compare the next tokens; a file that differs is reported once."""
        for path, data in list(self._files.items()):
            if not np.array_equal(data[self._at : self._at + len(tokens)], tokens):
                self._report.wrong("the tokens are not those of the held-out documents", path)
                del self._files[path]
        self._at += len(tokens)


def sample(groups: int, seed: int) -> list[int]:
    """The row groups whose rows are traced unless all are, in order."""
    count = max(SAMPLE_GROUPS, -(-groups // SAMPLE_ONE_IN))
    drawn: list[int] = np.sort(Stream(seed, "verify").permutation(groups)[:count]).tolist()
    return drawn


def _trace(
    mixture: Mixture, store: Store, labels: NDArray[np.uint16], full: bool, report: Report
) -> None:
    """Derive rows' sources again, and compare their tokens with theirs."""
    manifest, step = mixture.manifest, mixture.manifest["block_rows"]
    counts = np.bincount(labels, minlength=len(manifest["domains"]))
    streams = {
        number: DomainStream(store, name, seq_len=mixture.row_len, seed=manifest["seed"])
        for number, name in enumerate(manifest["domains"])
        if counts[number]
    }
    report.groups = -(-len(labels) // step)
    chosen = range(report.groups) if full else sample(report.groups, manifest["seed"])
    done, upto, before = np.zeros_like(counts), 0, len(report.problems)
    size = sum(min(step, len(labels) - group * step) for group in chosen)
    with (
        progress.task("trace rows", size, "rows") as task,
        pq.ParquetFile(mixture.root / provenance.FILE) as file,
    ):
        for group in chosen:
            first = group * step
            done = done + np.bincount(labels[upto:first], minlength=len(counts))
            upto = first
            table, mine = file.read_row_group(group), labels[first : first + step]
            _trace_group(mixture, table, mine, streams, done, report)
            if len(report.problems) > before:
                return
            report.traced_groups += 1
            report.traced_rows += table.num_rows
            task.advance(table.num_rows)


def _trace_group(
    mixture: Mixture,
    table: pa.Table,
    labels: NDArray[np.uint16],
    streams: Mapping[int, DomainStream],
    done: NDArray[np.int64],
    report: Report,
) -> None:
    """Derive the rows of one row group, whose decks begin at `done`, int64[K]."""
    names, first = list(mixture.manifest["domains"]), table["row"][0].as_py()
    spans = table["spans"].combine_chunks()
    counts, flat = spans.value_lengths().to_numpy(), spans.flatten()
    owner = np.repeat(labels, counts)
    said = {name: flat.field(name).to_numpy() for name in (*_SPAN_FIELDS, "doc_id")}
    places, numbers = targets(said["length"]), table["stream_row"].to_numpy()
    out = np.empty((len(labels), mixture.row_len), mixture.manifest["dtype"])
    for domain, stream in streams.items():
        rows, mine = labels == domain, owner == domain
        wanted = stream.deck(done[domain] + np.arange(int(rows.sum())))
        derived = stream.spans(wanted)
        if not (
            np.array_equal(numbers[rows], wanted)
            and np.array_equal(counts[rows], np.bincount(derived.row, minlength=len(wanted)))
            and all(np.array_equal(said[n][mine], getattr(derived, n)) for n in _SPAN_FIELDS)
            and np.array_equal(said["doc_id"][mine], stream.doc_ids(derived.document))
        ):
            report.wrong(f"rows of '{names[domain]}' do not come from where their plan says")
            return
        stream.fill(derived, places[mine], out.reshape(-1))
    bad = (out != mixture.read(first, len(labels))).any(axis=1)
    for number in first + np.flatnonzero(bad)[:3]:
        report.wrong(f"row {number} does not hold the tokens that its provenance names")
