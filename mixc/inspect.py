"""`mixc inspect`: what is in a store or a mixture, down to one row or document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mixc.build import provenance
from mixc.build.mixture import Mixture, kind_of, open_mixture
from mixc.errors import MixcError, Place
from mixc.store.store import TOKENIZER, Store, open_store
from mixc.store.summary import store_details
from mixc.tokenize.encoder import load


def inspect(
    path: Path, *, row: int | None = None, doc: int | None = None, decode: bool = False
) -> dict[str, Any]:
    """Plain data about a store or a mixture, or about one row or document of it.

    Raises MX070 if there is no such row or document.
    """
    if kind_of(path) == "store":
        store = open_store(path)
        if row is not None:
            raise _none("a store has documents, not rows", path, "use --doc ID")
        return store_details(store) if doc is None else _document(store, doc, decode)
    mixture = open_mixture(path)
    if doc is not None:
        raise _none("a mixture has rows, not documents", path, "use --row N, or name the store")
    return mixture_summary(mixture) if row is None else _row(mixture, row, decode)


def mixture_summary(mixture: Mixture) -> dict[str, Any]:
    """What a mixture holds, by domain."""
    names = ("name", "rows", "tokens", "seq_len", "dtype", "domains", "order", "ledger")
    manifest = mixture.manifest
    return {
        "kind": "mixture",
        "path": str(mixture.root),
        "stream_hash": manifest["stream_hash"],
        **{name: manifest[name] for name in names},
        "formats": {
            name: {
                **entry,
                "how_to_load": entry["how_to_load"].replace("PATH", _where(mixture, name)),
            }
            for name, entry in manifest["formats"].items()
        },
    }


def _where(mixture: Mixture, format_name: str) -> str:
    return (mixture.root / format_name).as_posix()


def _none(message: str, path: Path, help: str | None = None) -> MixcError:
    return MixcError("MX070", message, place=Place(str(path)), help=help)


def _document(store: Store, doc: int, decode: bool) -> dict[str, Any]:
    """Every copy of the document with this id."""
    if not 0 <= doc < 1 << 64:
        raise _none(f"no document has the id {doc}", store.root)
    found = []
    tokenizer = load((store.root / TOKENIZER).read_bytes(), TOKENIZER) if decode else None
    for name, domain in store.domains.items():
        number = 0
        for unit in domain.units:
            for shard in unit.shards:
                documents = store.open(shard)
                for i in np.flatnonzero(documents.doc_id == np.uint64(doc)):
                    tokens = documents.tokens[documents.offsets[i] : documents.offsets[i + 1]]
                    entry = {
                        "domain": name,
                        "document": number + int(i),
                        "file": unit.inputs[int(documents.source[i])]["path"],
                        "record": int(documents.row[i]),
                        "tokens": len(tokens),
                        "text_bytes": int(documents.n_bytes[i]),
                        "held_out": bool(np.isin(np.uint64(doc), store.all_held_ids)),
                    }
                    if documents.id is not None:
                        entry["id"] = documents.own_id(int(i))
                    if tokenizer is not None:
                        entry["text"] = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
                    found.append(entry)
                number += len(documents)
    if not found:
        raise _none(f"no document has the id {doc}", store.root)
    return {"kind": "document", "doc_id": doc, "copies": found}


def _row(mixture: Mixture, row: int, decode: bool) -> dict[str, Any]:
    rows = mixture.manifest["rows"]
    if not 0 <= row < rows:
        raise _none(f"there is no row {row}: rows are 0 to {rows - 1}", mixture.root)
    with pq.ParquetFile(mixture.root / provenance.FILE) as file:
        group, local = divmod(row, mixture.manifest["block_rows"])
        entry: dict[str, Any] = file.read_row_group(group).slice(local, 1).to_pylist()[0]
    entry["tokens"] = mixture.read(row, 1)[0].tolist()
    if decode:
        entry["text"] = _decode(mixture, entry["tokens"])
    return {"kind": "row", **entry}


def _decode(mixture: Mixture, tokens: list[int]) -> str:
    """The row's text, by the tokenizer of the store beside the mixture."""
    store = open_store(mixture.root.parent / "store")
    if store.manifest["tokenizer"]["sha256"] != mixture.manifest["tokenizer"]["sha256"]:
        raise _none("the store beside the mixture has another tokenizer", mixture.root)
    tokenizer = load((store.root / TOKENIZER).read_bytes(), TOKENIZER)
    return str(tokenizer.decode(tokens, skip_special_tokens=False))
