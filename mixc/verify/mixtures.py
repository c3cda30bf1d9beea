"""Of a mixture: its ledger, weights, order and labels, and the stream in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mixc import progress
from mixc.build import mixture as mixtures
from mixc.build import order, provenance
from mixc.build.derived import labels_of, provenance_of, schedule_of
from mixc.build.gather import block_digest, stream_hash
from mixc.build.mixture import Mixture
from mixc.build.provenance import Provenance
from mixc.build.schedule import Schedule, describe
from mixc.build.source import store_of
from mixc.store.shard import token_dtype
from mixc.verify.report import Report, check_files, files_of, well_formed
from mixc.verify.sources import drawn_of, source_checks
from mixc.writers.sequences import label_dtype

_SUFFIX = ".domains"


def verify_mixture(mixture: Mixture, store: Path | None, full: bool, report: Report) -> None:
    """See that a mixture is what it says; with `full`, trace every row to its source."""
    check_files(mixture.root, mixture.files(), report)
    if report.problems:
        return
    mixtures.check_algorithm(mixture)
    source = store_of(mixture, store)
    with well_formed(mixture.root / mixtures.MANIFEST, report):
        report.rows = mixture.manifest["rows"]
        found = provenance_of(mixture, source)
        report.derived = found is not None
        labels = _check_ledger(mixture, found, report)
    if report.problems:  # what follows relies on the counts
        return
    with well_formed(mixture.root / mixtures.MANIFEST, report):
        schedule = _check_weights(mixture, report)
    if report.problems:
        return
    checks: list[Callable[[], None]] = [
        lambda: _check_order(mixture, labels, schedule, report),
        lambda: _check_labels(mixture, labels, report),
    ]
    checks += [_stream_check(mixture, name, report) for name in mixture.manifest["formats"]]
    if source is not None and found is not None:
        checks += source_checks(mixture, source, found, labels, full, report)
    for check in checks:
        with well_formed(mixture.root, report):
            check()


def _check_ledger(mixture: Mixture, found: Provenance | None, report: Report) -> NDArray[np.uint16]:
    """Derive the ledger again from the provenance, and see that it adds up.

    Returns the domain of each row, uint16[R]. Without provenance it follows from the seed, and of
    the ledger there are but the sums to check.
    """
    manifest, path = mixture.manifest, mixture.root / mixtures.MANIFEST
    taken: dict[str, dict[int, int]] = {name: {} for name in manifest["domains"]}
    every = _add_up(mixture, found, taken, report)
    if report.problems:
        return every
    counts = np.bincount(every, minlength=len(taken)).tolist()
    rows = dict(zip(manifest["domains"], counts, strict=True))
    claimed = manifest["ledger"]
    reads = {name: (entry["read"], entry["held_out"]) for name, entry in claimed.items()}
    total, row_tokens = manifest["rows"], {n: rows[n] * mixture.row_len for n in rows}
    padded = None if mixture.layout.packing == "concat" else row_tokens
    if mixtures.make_ledger(reads, taken, padded, drawn_of(mixture)) != claimed:
        report.wrong("the ledger is not what the provenance adds up to", path)
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
        }
        if mixture.layout.plain:
            derived["epochs"] = row_tokens[name] / max(read - held, 1)
        if derived.items() - entry.items():
            report.wrong(f"the rows of '{name}' are not what the provenance says", path)
    for message in mixtures.check_ledger(claimed, row_tokens):
        report.wrong(message, path)
    return every


def _add_up(
    mixture: Mixture, found: Provenance | None, taken: dict[str, dict[int, int]], report: Report
) -> NDArray[np.uint16]:
    """Add up the tokens of all rows, by domain and epoch; the domain of each row, uint16[R].

    Without provenance they are what the ledger says.
    """
    if found is None:
        for name, entry in mixture.manifest["ledger"].items():
            taken[name] = {i: epoch["in_rows"] for i, epoch in enumerate(entry["epochs"])}
        return labels_of(mixture)
    labels = np.zeros(mixture.manifest["rows"], np.uint16)
    first = 0
    for table in found.tables():
        _check_rows(mixture, table, first, report)
        if report.problems:
            return labels
        provenance.add_up(table, taken)
        labels[first : first + table.num_rows] = _labels(mixture, table)
        first += table.num_rows
    return labels[:first]


def _labels(mixture: Mixture, table: pa.Table) -> NDArray[np.uint16]:
    """The number of each row's domain. Raises ValueError if one is not of the mixture."""
    number = pc.index_in(table["domain"], value_set=pa.array(list(mixture.manifest["domains"])))
    if number.null_count:
        raise ValueError("a row of the provenance is of a domain that the mixture does not have")
    found: NDArray[np.uint16] = number.to_numpy().astype(np.uint16)
    return found


def _check_rows(mixture: Mixture, table: pa.Table, first: int, report: Report) -> None:
    """See that a row group holds the rows from `first` on, each cut to its full length."""
    manifest, path = mixture.manifest, mixture.root / _first_file(mixture)
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
    held, least = np.diff(upto, prepend=0), mixture.row_len if mixture.layout.plain else 1
    if (
        not (least <= held.min() <= held.max() <= mixture.row_len)
        or min(length.min(), start.min() + 1) < 1
        or not np.array_equal(table["epoch"].to_numpy(), epoch[ends - 1])
    ):
        report.wrong(f"rows from {first} on: their spans do not make whole rows", path)


def _first_file(mixture: Mixture) -> str:
    return provenance.listed(mixture.manifest["provenance"])[0].path


def _check_weights(mixture: Mixture, report: Report) -> Schedule:
    """Derive the rows again from the weights, the cap on epochs and the tokens there are."""
    manifest, domains = mixture.manifest, mixture.manifest["domains"]
    schedule = schedule_of(mixture)
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
        for file in files_of(formats, _SUFFIX):
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
