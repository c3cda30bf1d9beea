"""`mixc diff`: what two mixtures have in common, down to the row.

It relies on the manifests and the provenance; whether these are true is for `mixc verify`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mixc.build.derived import provenance_of
from mixc.build.mixture import Mixture, check_algorithm, open_mixture
from mixc.build.provenance import Provenance, listed
from mixc.build.source import store_of
from mixc.errors import MixcError, Place
from mixc.rng import Stream

_PASS_ROWS = 1 << 21  # rows of one mixture that are in memory at a time
_ENTRY = ("weight", "realised", "rows", "tokens", "epochs", "capped")
_SETTINGS = ("name", "seed", "seq_len", "rows", "tokens", "dtype", "stream_hash", "store_hash")


def diff(a: Path, b: Path) -> dict[str, Any]:
    """Plain data about what tells two mixtures apart.

    `equal` is whether rows and stream are: the same tokens, cut in rows of the same length, of
    the same counts by domain. Rows in common have one domain, one number in its stream, and the
    same pieces of the same texts; `in_place` counts those that stand at the same row in both.
    Raises MX044 if another version laid out the rows of one: their numbers mean other rows.
    """
    pair = open_mixture(a), open_mixture(b)
    for one in pair:
        check_algorithm(one)
    said = [one.manifest | {"row_len": one.row_len} for one in pair]
    names = sorted({*said[0]["domains"], *said[1]["domains"]})
    notes, comparable = _notes(said)
    found = [provenance_of(one, store_of(one)) for one in pair] if comparable else []
    for one in (one for one, there in zip(pair, found, strict=False) if there is None):
        notes.append(f"{one.root}: neither provenance nor the store that it follows from")
        comparable = False
    a_and_b = [(one, there) for one, there in zip(pair, found, strict=False) if there is not None]
    rows = _common(a_and_b, names) if comparable else dict.fromkeys(names, (None, None))
    same = {
        "stream": said[0]["stream_hash"] == said[1]["stream_hash"]
        and said[0]["row_len"] == said[1]["row_len"],
        "rows": _rows(said[0]) == _rows(said[1]),
    }
    return {
        "kind": "diff",
        "equal": all(same.values()),
        "stream_equal": same["stream"],
        "a": _settings(pair[0]),
        "b": _settings(pair[1]),
        "domains": {
            name: {
                "a": _entry(said[0], name),
                "b": _entry(said[1], name),
                "common": rows[name][0],
                "in_place": rows[name][1],
            }
            for name in names
        },
        "notes": notes,
    }


def _notes(said: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """What limits the comparison, in words, and whether rows can be compared at all."""
    notes, comparable = [], True
    if said[0]["store_hash"] != said[1]["store_hash"]:
        notes.append("other stores: rows are told to be equal by the hashes of their texts")
    for what, differ in (
        ("tokenizers", said[0]["tokenizer"]["sha256"] != said[1]["tokenizer"]["sha256"]),
        ("row lengths", said[0]["row_len"] != said[1]["row_len"]),
    ):
        if differ:
            notes.append(f"other {what}: rows cannot be compared, nor can streams be equal")
            comparable = False
    return notes, comparable


def _settings(mixture: Mixture) -> dict[str, Any]:
    found = {name: mixture.manifest[name] for name in _SETTINGS}
    found["shuffle_block"] = mixture.manifest["order"]["shuffle_block"]
    return {"path": str(mixture.root), **found, "formats": list(mixture.manifest["formats"])}


def _entry(manifest: dict[str, Any], name: str) -> dict[str, Any] | None:
    entry = manifest["domains"].get(name)
    return None if entry is None else {key: entry[key] for key in _ENTRY}


def _rows(manifest: dict[str, Any]) -> dict[str, int]:
    return {name: entry["rows"] for name, entry in manifest["domains"].items() if entry["rows"]}


def _common(pair: list[tuple[Mixture, Provenance]], names: list[str]) -> dict[str, tuple[int, int]]:
    """Rows in common and rows in place, by domain.

    In passes over the provenance, each of a share of the domains' streams, so that memory does
    not grow with the mixtures.
    """
    found = np.zeros((len(names), 2), np.int64)
    passes = max(1, *(-(-one.manifest["rows"] // _PASS_ROWS) for one, _ in pair))
    for number in range(passes):
        a, b = (_keys(one, found_in, names, number, passes) for one, found_in in pair)
        for domain in range(len(names)):
            mine, theirs = a[a["domain"] == domain], b[b["domain"] == domain]
            _, i, j = np.intersect1d(mine["stream_row"], theirs["stream_row"], return_indices=True)
            equal = mine["hash"][i] == theirs["hash"][j]
            placed = equal & (mine["row"][i] == theirs["row"][j])
            found[domain] += int(equal.sum()), int(placed.sum())
    return {name: (int(c), int(p)) for name, (c, p) in zip(names, found, strict=True)}


_KEY = np.dtype([("domain", "u2"), ("stream_row", "i8"), ("row", "i8"), ("hash", "u8")])


def _keys(
    mixture: Mixture, rows: Provenance, names: list[str], number: int, passes: int
) -> NDArray[Any]:
    """What tells rows apart, of those whose number in the stream falls to this pass.

    Raises MX040 if the provenance cannot be read.
    """
    parts = [np.zeros(0, _KEY)]
    try:
        for table in rows.tables():
            key = _keys_of(table, names)
            parts.append(key[key["stream_row"] % passes == number])
    except (pa.ArrowException, OSError, LookupError, ValueError) as error:
        place = Place(str(mixture.root / listed(mixture.manifest["provenance"])[0].path))
        raise MixcError("MX040", "the provenance cannot be read", place=place) from error
    return np.concatenate(parts)


def _keys_of(table: pa.Table, names: list[str]) -> NDArray[Any]:
    key = np.empty(table.num_rows, _KEY)
    key["domain"] = pc.index_in(table["domain"], value_set=pa.array(names)).to_numpy()
    key["stream_row"], key["row"] = table["stream_row"], table["row"]
    key["hash"] = _hashes(table["spans"].combine_chunks())
    return key


def _hashes(spans: Any) -> NDArray[np.uint64]:
    """A hash of each row's pieces: texts, starts and lengths, in order, uint64[n]."""
    flat, counts = spans.flatten(), spans.value_lengths().to_numpy()
    ends = np.cumsum(counts, dtype=np.int64)
    mixed = np.zeros(len(flat), np.uint64)
    place = np.arange(len(flat)) - np.repeat(ends - counts, counts)
    fields = [flat.field(name).to_numpy() for name in ("doc_id", "start", "length")]
    for number, values in enumerate([*fields, place]):
        mixed = Stream(number, "diff").hash(mixed ^ values.astype(np.uint64))
    # Sums wrap around, alike for equal rows.
    upto = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return np.asarray(upto[ends] - upto[ends - counts], np.uint64)
