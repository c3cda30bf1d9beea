"""Of a mixture whose store is at hand: that its tokens are the store's, from where it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc import progress
from mixc.build.mixture import Mixture
from mixc.build.provenance import Provenance
from mixc.rng import Stream
from mixc.rows.stream import DomainStream, within_rows
from mixc.store.store import Store
from mixc.verify.report import Report, files_of

SAMPLE_GROUPS, SAMPLE_ONE_IN = 8, 16
_SPAN_FIELDS = ("epoch", "document", "start", "length")


def source_checks(
    mixture: Mixture,
    store: Store,
    found: Provenance,
    labels: NDArray[np.uint16],
    full: bool,
    report: Report,
) -> list[Callable[[], None]]:
    """What to check against the store; `labels` is the domain of each row, uint16[R]."""
    return [
        lambda: _check_store(mixture, store, report),
        lambda: _check_held(mixture, store, report),
        lambda: _trace(mixture, store, found, labels, full, report),
    ]


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
            for file in files_of(formats, ".bin")
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
    mixture: Mixture,
    store: Store,
    found: Provenance,
    labels: NDArray[np.uint16],
    full: bool,
    report: Report,
) -> None:
    """Derive rows' sources again, and compare their tokens with theirs."""
    manifest, step = mixture.manifest, mixture.manifest["block_rows"]
    counts = np.bincount(labels, minlength=len(manifest["domains"]))
    opened = mixture.streams(store)
    if not mixture.layout.plain:
        _check_room(mixture, opened, report)
    streams = {n: stream for n, stream in enumerate(opened.values()) if counts[n]}
    report.groups = -(-len(labels) // step)
    chosen = range(report.groups) if full else sample(report.groups, manifest["seed"])
    done, upto, before = np.zeros_like(counts), 0, len(report.problems)
    size = sum(min(step, len(labels) - group * step) for group in chosen)
    with progress.task("trace rows", size, "rows") as task:
        for group, table in zip(chosen, found.tables(chosen), strict=True):
            first = group * step
            done = done + np.bincount(labels[upto:first], minlength=len(counts))
            upto = first
            mine = labels[first : first + step]
            _trace_group(mixture, table, mine, streams, done, report)
            if len(report.problems) > before:
                return
            report.traced_groups += 1
            report.traced_rows += table.num_rows
            task.advance(table.num_rows)


def _check_room(mixture: Mixture, streams: Mapping[str, DomainStream], report: Report) -> None:
    """See that the rows of each domain, at most and in fact, are as many epochs as it says."""
    cap = mixture.manifest["max_epochs"] or np.inf
    for name, entry in mixture.manifest["domains"].items():
        room = streams[name].rows_within(cap, mixture.manifest["rows"])
        if (room, streams[name].epochs_of(entry["rows"])) != (entry.get("room"), entry["epochs"]):
            report.wrong(f"the rows of '{name}' are not the epochs that the manifest says")
    if mixture.layout.weighted:
        _check_drawn(mixture, streams, report)


def drawn_of(mixture: Mixture) -> dict[str, dict[int, int]] | None:
    """What the ledger says of the tokens drawn by documents' weights, by domain and epoch."""
    if not mixture.layout.weighted:
        return None
    ledger = mixture.manifest["ledger"]
    return {
        name: {number: epoch.get("drawn", 0) for number, epoch in enumerate(entry["epochs"])}
        for name, entry in ledger.items()
    }


def _check_drawn(mixture: Mixture, streams: Mapping[str, DomainStream], report: Report) -> None:
    """See that each epoch has the tokens that the weights of documents give it."""
    for name, said in (drawn_of(mixture) or {}).items():
        if any(streams[name].drawn(number) != size for number, size in said.items()):
            report.wrong(f"the tokens drawn of '{name}' are not those of its documents' weights")
    known = sum(stream.weighted for stream in streams.values())
    if known != mixture.manifest["document_weights"]["known"]:
        report.wrong(f"{known} documents of the store have weights, not what the manifest says")


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
    row, numbers = np.repeat(np.arange(len(labels)), counts), table["stream_row"].to_numpy()
    said = {name: flat.field(name).to_numpy() for name in (*_SPAN_FIELDS, "doc_id")}
    owner, places = labels[row], row * mixture.row_len + within_rows(row, said["length"])
    shape = len(labels), mixture.row_len
    out = np.full(shape, mixture.manifest["eot_id"], mixture.manifest["dtype"])  # as padding is
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
