"""The holdout: documents kept out of every mixture, chosen by a keyed hash of their content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.rng import Stream
from mixc.store import commit
from mixc.store.columns import column, strings, view
from mixc.store.hashes import FileRecord

FILE = "holdout.arrow"
Ids = NDArray[np.uint64]


def choose(ids: Ids, lengths: NDArray[np.int64], *, fraction: float, max_tokens: int) -> Ids:
    """Choose one domain's held-out ids, sorted. A function of the documents alone.

    `ids` and `lengths` are [n], a document each. The `fraction` of the distinct documents that
    has the smallest keyed hashes is gone through in their order, and each that still fits in
    `max_tokens` is taken; at least one of all if any fits, and never all. The hash does not
    depend on the domain, so that a document that stands in two is likely chosen in both, nor on
    the recipe's seed, so that runs under two seeds do not train on each other's validation data.
    """
    ids, first = np.unique(ids, return_index=True)
    wanted = min(max(1, int(fraction * len(ids))), len(ids) - 1)
    if fraction == 0 or wanted < 1:
        return ids[:0]
    order = np.argsort(Stream(0, "holdout").hash(ids), kind="stable")
    sizes = lengths[first][order]
    taken, left = [], max_tokens
    for i, size in zip(order[:wanted].tolist(), sizes[:wanted].tolist(), strict=True):
        if size <= left:
            taken.append(i)
            left -= size
    taken = taken or order[sizes <= max_tokens][:1].tolist()
    return np.sort(ids[taken])


def among(ids: Ids, chosen: Ids) -> NDArray[np.bool_]:
    """Which of many ids stand in a short list, which is sorted. Both are hashes of documents.

    Most that do not are told by their last bits; the rest are searched for.
    """
    found = np.zeros(len(ids), np.bool_)
    if not len(chosen):
        return found
    bits = np.uint64((1 << (16 * len(chosen)).bit_length()) - 1)
    seen = np.zeros(int(bits) + 1, np.bool_)
    seen[chosen & bits] = True
    likely = np.flatnonzero(seen[ids & bits])
    place = np.minimum(np.searchsorted(chosen, ids[likely]), len(chosen) - 1)
    found[likely] = chosen[place] == ids[likely]
    return found


def write(folder: Path, held: Mapping[str, Ids]) -> FileRecord:
    """Stage `holdout.arrow`: columns `domain` and `doc_id`, sorted by both."""
    names = sorted(held)
    table = pa.table(
        {
            "domain": strings([name for name in names for _ in held[name]]),
            "doc_id": column(np.concatenate([held[name] for name in names])),
        }
    )
    with commit.create(folder / FILE) as file, commit.arrow_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.record(FILE)


def read(path: Path) -> dict[str, Ids]:
    """Read a list of held-out ids by domain."""
    place = Place(str(path))
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)  # a damaged header may point outside the file
        names = np.array(table["domain"].to_pylist(), dtype=object)
        if str(table["doc_id"].type) != "uint64" or table["doc_id"].null_count:
            raise ValueError("its ids are not uint64")
        ids = view(table["doc_id"].combine_chunks())
    except FileNotFoundError:
        raise MixcError("MX041", "there is no such holdout list", place=place) from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise MixcError("MX040", f"the holdout list is damaged: {error}", place=place) from error
    return {str(name): ids[names == name] for name in sorted(set(names))}
