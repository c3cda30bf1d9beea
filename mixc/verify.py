"""`mixc verify`: hash every file again, and derive again what manifests say of the tokens."""

from __future__ import annotations

from collections.abc import Iterator
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
from mixc.errors import MixcError, Place, raise_all
from mixc.rows.stream import DomainStream, Spans, within_rows
from mixc.store import store as stores
from mixc.store.hashes import FileRecord, check_file
from mixc.store.shard import ShardRecord, open_shard
from mixc.store.store import Store, open_store


@dataclass
class Report:
    """What was checked. `traced_rows` were compared, token by token, with the store."""

    kind: str
    path: Path
    files: int = 0
    bytes: int = 0
    documents: int = 0
    rows: int = 0
    traced_rows: int = 0
    problems: list[MixcError] = field(default_factory=list)

    def wrong(self, message: str, path: Path | None = None) -> None:
        """Note damage in a file."""
        self.problems.append(MixcError("MX040", message, place=Place(str(path or self.path))))


def verify(path: Path, *, store: Path | None = None) -> Report:
    """Check a store or a mixture. Raises MX040, once for each thing that is wrong.

    A mixture's rows are compared with the tokens they were cut from if the store is given or
    stands beside it.
    """
    kind = kind_of(path)
    report = Report(kind, path)
    if kind == "store":
        _verify_store(open_store(path), report)
    else:
        _verify_mixture(open_mixture(path), store, report)
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


def _verify_mixture(mixture: Mixture, store: Path | None, report: Report) -> None:
    _check_files(mixture.root, mixture.files(), report)
    if report.problems:
        return
    report.rows = mixture.manifest["rows"]
    _check_ledger(mixture, report)
    if report.problems:  # what follows relies on the counts
        return
    schedule = _check_weights(mixture, report)
    if report.problems:
        return
    _check_order(mixture, schedule, report)
    _check_stream(mixture, report)
    source = _source(mixture, store)
    if source is not None:
        _check_store(mixture, source, report)
        _trace(mixture, source, report)


def _check_ledger(mixture: Mixture, report: Report) -> None:
    """Derive the ledger again from the provenance, and see that it adds up."""
    manifest, path = mixture.manifest, mixture.root / mixtures.MANIFEST
    taken: dict[str, dict[int, int]] = {name: {} for name in manifest["domains"]}
    rows = dict.fromkeys(manifest["domains"], 0)
    for table in _tables(mixture):
        provenance.add_up(table, taken)
        for pair in table["domain"].value_counts().to_pylist():
            rows[pair["values"]] += pair["counts"]
    claimed = manifest["ledger"]
    reads = {name: (entry["read"], entry["held_out"]) for name, entry in claimed.items()}
    total, row_tokens = manifest["rows"], {n: rows[n] * mixture.row_len for n in rows}
    padded = None if mixture.layout.packing == "concat" else row_tokens
    if mixtures.make_ledger(reads, taken, padded, _drawn(mixture)) != claimed:
        report.wrong("the ledger is not what the provenance adds up to", path)
    if (sum(rows.values()), sum(row_tokens.values())) != (total, manifest["tokens"]):
        report.wrong("the rows of the mixture are not what the provenance says", path)
    for name, entry in manifest["domains"].items():
        read, held = reads[name]
        derived = {
            "rows": rows[name],
            "tokens": row_tokens[name],
            "realised": rows[name] / total,
        }
        if mixture.layout.plain:
            derived["epochs"] = row_tokens[name] / max(read - held, 1)
        if derived.items() - entry.items():
            report.wrong(f"the rows of '{name}' are not what the provenance says", path)
    for message in mixtures.check_ledger(claimed, row_tokens):
        report.wrong(message, path)


def _check_weights(mixture: Mixture, report: Report) -> Schedule:
    """Derive the rows again from the weights, the cap on epochs and the tokens there are."""
    manifest = mixture.manifest
    domains, ledger, total = manifest["domains"], manifest["ledger"], manifest["rows"]
    tokens = [ledger[name]["read"] - ledger[name]["held_out"] for name in domains]
    room = (
        capacity(
            np.array(tokens, np.int64),
            rows=total,
            seq_len=mixture.row_len,
            max_epochs=manifest["max_epochs"],
        )
        if mixture.layout.plain
        else np.array([entry.get("room", 0) for entry in domains.values()], np.int64)
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


def _check_order(mixture: Mixture, schedule: Schedule, report: Report) -> None:
    manifest = mixture.manifest
    names = {name: i for i, name in enumerate(manifest["domains"])}
    labels = np.concatenate(
        [np.array([names[n] for n in t["domain"].to_pylist()], np.uint16) for t in _tables(mixture)]
    )
    said, block = manifest["order"], manifest["order"]["shuffle_block"]
    error, bound = order.schedule_error(labels, schedule, shuffle_block=block)
    if error != said["max_prefix_error"] or error > bound:
        report.wrong(f"the order is {error:.3f} rows off its weights, not what it claims")


def _tables(mixture: Mixture) -> Iterator[pa.Table]:
    with pq.ParquetFile(mixture.root / provenance.FILE) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _check_stream(mixture: Mixture, report: Report) -> None:
    """See that every format holds the stream, to the last token."""
    total, step = mixture.manifest["rows"], mixture.manifest["block_rows"]
    for name in mixture.manifest["formats"]:
        digests = [
            block_digest(mixture.read(i, min(step, total - i), of=name).reshape(-1))
            for i in range(0, total, step)
        ]
        if stream_hash(digests) != mixture.manifest["stream_hash"]:
            report.wrong("the tokens are not those of the stream hash", mixture.root / name)


def _source(mixture: Mixture, given: Path | None) -> Store | None:
    """The store that a mixture was built from; one that is given must be it."""
    try:
        store = open_store(given or mixture.root.parent / "store")
    except MixcError:
        if given is not None:
            raise
        return None
    if store.store_hash == mixture.manifest["store_hash"]:
        return store
    if given is not None:
        raise MixcError(
            "MX045",
            "the mixture was not built from this store",
            place=Place(str(given)),
        )
    return None


def _check_store(mixture: Mixture, store: Store, report: Report) -> None:
    """See that what the mixture says of its store is so."""
    manifest = mixture.manifest
    for what, said, found in (
        ("eot_id", manifest["eot_id"], store.eot_id),
        ("dtype", manifest["dtype"], str(store.dtype)),
        ("tokenizer", manifest["tokenizer"]["sha256"], store.manifest["tokenizer"]["sha256"]),
    ):
        if said != found:
            report.wrong(f"the {what} is {said}, the store's is {found}")
    for name, entry in manifest["ledger"].items():
        domain = store.domains[name]
        if (entry["read"], entry["held_out"]) != (domain.tokens, domain.held_tokens):
            report.wrong(f"the ledger of '{name}' does not begin with the tokens of the store")


def _trace(mixture: Mixture, store: Store, report: Report) -> None:
    """Derive every row's sources again, and compare its tokens with theirs."""
    manifest = mixture.manifest
    streams = mixture.streams(store)
    if not mixture.layout.plain:
        _check_room(mixture, streams, report)
    done = dict.fromkeys(streams, 0)
    with progress.task("trace rows", manifest["rows"], "rows") as task:
        for table in _tables(mixture):
            first = table["row"][0].as_py()
            for name, stream in streams.items():
                mine = table.filter(pc.field("domain") == name)
                if not _same_sources(mine, stream, done[name]):
                    report.wrong(f"rows of '{name}' do not come from where their plan says")
                    return
                done[name] += len(mine)
            size = table.num_rows * mixture.row_len
            out = np.full(size, manifest["eot_id"], manifest["dtype"])
            for name, stream in streams.items():
                _refill(table, name, stream, mixture.row_len, out)
            bad = (out.reshape(-1, mixture.row_len) != mixture.read(first, len(table))).any(1)
            for number in first + np.flatnonzero(bad)[:3]:
                report.wrong(f"row {number} does not hold the tokens that its provenance names")
            report.traced_rows += table.num_rows
            task.advance(table.num_rows)


def _check_room(mixture: Mixture, streams: dict[str, DomainStream], report: Report) -> None:
    """See that the rows of each domain, at most and in fact, are as many epochs as it says."""
    cap = mixture.manifest["max_epochs"] or np.inf
    for name, entry in mixture.manifest["domains"].items():
        room = streams[name].rows_within(cap, mixture.manifest["rows"])
        if (room, streams[name].epochs_of(entry["rows"])) != (entry.get("room"), entry["epochs"]):
            report.wrong(f"the rows of '{name}' are not the epochs that the manifest says")
    if mixture.layout.weighted:
        _check_drawn(mixture, streams, report)


def _drawn(mixture: Mixture) -> dict[str, dict[int, int]] | None:
    """What the ledger says of the tokens drawn by documents' weights, by epoch."""
    if not mixture.layout.weighted:
        return None
    ledger = mixture.manifest["ledger"]
    return {
        name: {number: epoch.get("drawn", 0) for number, epoch in enumerate(entry["epochs"])}
        for name, entry in ledger.items()
    }


def _check_drawn(mixture: Mixture, streams: dict[str, DomainStream], report: Report) -> None:
    """See that each epoch has the tokens that the weights of documents give it."""
    for name, said in (_drawn(mixture) or {}).items():
        if any(streams[name].drawn(number) != size for number, size in said.items()):
            report.wrong(f"the tokens drawn of '{name}' are not those of its documents' weights")
    known = sum(stream.weighted for stream in streams.values())
    if known != mixture.manifest["document_weights"]["known"]:
        report.wrong(f"{known} documents of the store have weights, not what the manifest says")


def _same_sources(rows: pa.Table, stream: DomainStream, first: int) -> bool:
    """Whether rows of a domain are those of its deck from `first` on, cut as they say."""
    numbers = stream.deck(first + np.arange(len(rows)))
    spans, said = stream.spans(numbers), rows["spans"].combine_chunks().flatten()
    return (
        np.array_equal(rows["stream_row"], numbers)
        and np.array_equal(said.field("doc_id"), stream.doc_ids(spans.document))
        and all(np.array_equal(said.field(name), getattr(spans, name)) for name in _SPAN_FIELDS)
    )


def _refill(
    table: pa.Table, name: str, stream: DomainStream, row_len: int, out: NDArray[Any]
) -> None:
    """Put a domain's rows of a table together again, from its documents."""
    spans = table["spans"].combine_chunks()
    row = np.repeat(np.arange(len(table)), spans.value_lengths().to_numpy())
    flat = spans.flatten()
    column = {field: flat.field(field).to_numpy().astype(np.int64) for field in _SPAN_FIELDS}
    place = row * row_len + within_rows(row, column["length"])
    mine = np.array(table["domain"].to_pylist(), dtype=object)[row] == name
    fields = (column[field][mine] for field in _SPAN_FIELDS)
    stream.fill(Spans(row[mine], *fields), place[mine], out)


_SPAN_FIELDS = ("epoch", "document", "start", "length")
