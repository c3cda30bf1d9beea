"""`mixc verify`: hash every file again, and derive again what manifests say of the tokens."""

from __future__ import annotations

from pathlib import Path

from mixc.build.mixture import kind_of, open_mixture
from mixc.errors import raise_all
from mixc.store.store import open_store
from mixc.verify.mixtures import verify_mixture
from mixc.verify.report import Report
from mixc.verify.stores import verify_store

__all__ = ["Report", "verify"]


def verify(path: Path, *, store: Path | None = None, full: bool = False) -> Report:
    """Check a store or a mixture. Raises MX040, once for each thing that is wrong, and MX044 of a
    mixture whose files are whole, but were made by another version that laid out rows otherwise.

    Hashes, counts, order, and every format's stream are always checked whole. If the store is
    given or stands beside it, a mixture's rows are also derived from their seed again, and
    compared with the tokens they were cut from: all of them if `full`, or else those of a sample
    of the provenance's row groups (about 16 Mi tokens each), 8 or one in 16, whichever is more,
    drawn by the mixture's seed.
    """
    kind = kind_of(path)
    report = Report(kind, path)
    if kind == "store":
        verify_store(open_store(path), report)
    else:
        verify_mixture(open_mixture(path), store, full, report)
    raise_all(report.problems)
    return report
