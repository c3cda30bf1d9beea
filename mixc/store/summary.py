"""What a store holds, as plain data: its domains, and the sources that they were read from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store.store import Domain, Store, Unit


def store_summary(store: Store) -> dict[str, Any]:
    """What the manifest says of a store: its domains, and the sources that they were read from."""
    return {
        "kind": "store",
        "path": str(store.root),
        "store_hash": store.store_hash,
        "tokenizer": store.manifest["tokenizer"],
        "dtype": store.manifest["dtype"],
        "domains": {name: _domain(domain) for name, domain in store.domains.items()},
        "sources": {name: _source(units) for name, units in store.sources.items()},
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {
        "source": domain.source,
        "documents": domain.documents,
        "tokens": domain.tokens,
        "text_bytes": domain.text_bytes,
        "bytes_per_token": domain.text_bytes / max(domain.tokens, 1),
        "held_documents": domain.held_documents,
        "held_tokens": domain.held_tokens,
        "shards": len(domain.shards),
    }


def _source(units: tuple[Unit, ...]) -> dict[str, Any]:
    """What became of a source's records, and how much of its encoding was verified."""
    inputs = [one for unit in units for one in unit.inputs]
    skipped: dict[str, int] = {}
    for one in inputs:
        for code, count in one["skipped"].items():
            skipped[code] = skipped.get(code, 0) + count
    engines = [unit.engine for unit in units]
    return {
        "files": len({one["path"] for one in inputs}),
        "documents": sum(one["documents"] for one in inputs),
        "not_selected": sum(one["not_selected"] for one in inputs),
        "replaced": sum(one["replaced"] for one in inputs),
        "skipped": dict(sorted(skipped.items())),
        "quarantine": [unit.quarantine.path for unit in units if unit.quarantine is not None],
        "engines": sorted({f"{one['name']} {one['version']}" for one in engines}),
        "verified_documents": sum(one["verified_documents"] for one in engines),
        "verified_bytes": sum(one["verified_bytes"] for one in engines),
        "gave_up": sum(one["gave_up"] for one in engines),
    }


def store_details(store: Store) -> dict[str, Any]:
    """The summary of a store, and what its documents' columns tell beyond the manifest.

    `lengths` of a domain counts documents by tokens, end-of-text included: each key is the
    largest number of tokens of its bin. `duplicates` are documents of a text that stood in the
    domain before; `elsewhere` those whose text stands in another domain too.
    """
    summary = store_summary(store)
    columns = {name: _columns(store, name) for name in store.domains}
    ids = {name: np.unique(doc_id) for name, (doc_id, _) in columns.items()}
    together, count = np.unique(np.concatenate(list(ids.values())), return_counts=True)
    shared = together[count > 1]
    for name, (doc_id, lengths) in columns.items():
        bins = np.ceil(np.log2(lengths.clip(1))).astype(int)
        percentiles = np.percentile(lengths, [0, 50, 99, 100], method="nearest").tolist()
        summary["domains"][name] |= {
            "lengths": {str(1 << int(i)): int(n) for i, n in enumerate(np.bincount(bins)) if n},
            "tokens_per_document": dict(
                zip(("min", "median", "p99", "max"), map(int, percentiles), strict=True)
            ),
            "duplicates": len(doc_id) - len(ids[name]),
            "elsewhere": int(np.isin(doc_id, shared).sum()),
        }
    return summary


def _columns(store: Store, domain: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids and lengths of a domain's documents."""
    shards = list(store.documents(domain))
    return np.concatenate([s.doc_id for s in shards]), np.concatenate([s.lengths for s in shards])
