"""`mixc inspect`: what is in a store or a mixture, down to one row or document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.build.derived import provenance_of
from mixc.build.mixture import Mixture, kind_of, open_mixture
from mixc.build.source import store_of
from mixc.errors import MixcError, Place
from mixc.store.shard import Documents
from mixc.store.store import TOKENIZER, Store, Unit, open_store
from mixc.store.summary import store_details
from mixc.tokenize.encoder import load

_AROUND = 48  # tokens of the document shown on either side of one


def inspect(
    path: Path,
    *,
    row: int | None = None,
    token: int | None = None,
    doc: int | None = None,
    decode: bool = False,
    store: Path | None = None,
) -> dict[str, Any]:
    """Plain data about a store or a mixture, or about one row, token or document of it.

    `token` counts the tokens of the mixture's stream. `store` is a mixture's, if it does not
    stand beside it; what cannot be told without it is named under `not_shown`. `decode` adds a
    document's text. Raises MX070 if there is no such row, token or document, and MX041 or MX045
    if `store` is given and is not the mixture's, or is needed and not there.
    """
    if kind_of(path) == "store":
        opened = open_store(path)
        if row is not None or token is not None:
            raise _none("a store has documents, not rows", path, "use --doc ID")
        return store_details(opened) if doc is None else _document(opened, doc, decode)
    mixture = open_mixture(path)
    if doc is not None:
        raise _none("a mixture has rows, not documents", path, "use --row N, or name the store")
    if row is not None:
        return _row(mixture, row, _Source.of(mixture, store))
    if token is not None:
        return _token(mixture, token, _Source.of(mixture, store))
    return mixture_summary(mixture)


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
                        **_input(unit, documents, int(i)),
                        "tokens": len(tokens),
                        "text_bytes": int(documents.n_bytes[i]),
                        "held_out": bool(np.isin(np.uint64(doc), store.all_held_ids)),
                    }
                    if tokenizer is not None:
                        entry["text"] = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
                    found.append(entry)
                number += len(documents)
    if not found:
        raise _none(f"no document has the id {doc}", store.root)
    return {"kind": "document", "doc_id": doc, "copies": found}


def _input(unit: Unit, documents: Documents, number: int) -> dict[str, Any]:
    """Where a document of a shard was read: file, record, and its own id if the store has it."""
    found: dict[str, Any] = {
        "file": unit.inputs[int(documents.source[number])]["path"],
        "record": int(documents.row[number]),
    }
    if documents.id is not None:
        found["id"] = documents.own_id(number)
    return found


@dataclass(frozen=True)
class _Source:
    """What is at hand to explain a mixture's tokens; `missing` says in words what is not."""

    store: Store | None
    tokenizer: Any
    missing: tuple[str, ...]

    @staticmethod
    def of(mixture: Mixture, given: Path | None) -> _Source:
        """The store that a mixture came from, and its tokenizer, as far as they are there."""
        store = store_of(mixture, given)
        if store is not None:
            return _Source(store, load((store.root / TOKENIZER).read_bytes(), TOKENIZER), ())
        beside = mixture.root.parent / "store"
        why = f"the mixture's own store is not at {beside}: name it with --store"
        try:
            other = open_store(beside)
        except MixcError:
            other = None
        sha256 = mixture.manifest["tokenizer"]["sha256"]
        if other is None or other.manifest["tokenizer"]["sha256"] != sha256:
            return _Source(None, None, (f"files, records and text: {why}",))
        tokenizer = load((other.root / TOKENIZER).read_bytes(), TOKENIZER)
        return _Source(None, tokenizer, (f"files and records: {why}",))

    def input(self, domain: str, document: int) -> dict[str, Any]:
        """Where a document was read, or nothing."""
        if self.store is None:
            return {}
        unit, documents, number = _locate(self.store, domain, document)
        return _input(unit, documents, number)

    def tokens(self, domain: str, document: int) -> NDArray[Any] | None:
        """A document's tokens."""
        if self.store is None:
            return None
        _, documents, i = _locate(self.store, domain, document)
        found: NDArray[Any] = documents.tokens[documents.offsets[i] : documents.offsets[i + 1]]
        return found

    def text(self, key: str, tokens: NDArray[Any]) -> dict[str, str]:
        """The text of tokens under a key, or nothing."""
        if self.tokenizer is None:
            return {}
        return {key: self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)}


def _locate(store: Store, domain: str, document: int) -> tuple[Unit, Documents, int]:
    """The unit and shard of a domain's document, and its number there."""
    for unit in store.domains[domain].units:
        for shard in unit.shards:
            if document < shard.documents:
                return unit, store.open(shard), document
            document -= shard.documents
    place = Place(str(store.root))
    raise MixcError("MX040", f"domain '{domain}' lacks a document of the mixture", place=place)


def _row(mixture: Mixture, row: int, source: _Source) -> dict[str, Any]:
    """A row, the documents it was cut from, and its text."""
    entry = _provenance(mixture, row, source.store)
    tokens = mixture.read(row, 1)[0]
    at = 0
    for span in entry["spans"]:
        span |= source.input(entry["domain"], span["document"])
        span |= source.text("text", tokens[at : at + span["length"]])
        at += span["length"]
    entry |= {"tokens": tokens.tolist(), **source.text("text", tokens)}
    return {"kind": "row", **entry, "not_shown": list(source.missing)}


def _token(mixture: Mixture, token: int, source: _Source) -> dict[str, Any]:
    """One token of the stream: its row, its document, and the text around it."""
    total = mixture.manifest["tokens"]
    if not 0 <= token < total:
        raise _none(f"there is no token {token}: tokens are 0 to {total - 1}", mixture.root)
    row, place = divmod(token, mixture.row_len)
    entry, tokens = _provenance(mixture, row, source.store), mixture.read(row, 1)[0]
    found = {
        "kind": "token",
        "token": token,
        "id": int(tokens[place]),
        "row": row,
        "place": place,
        "domain": entry["domain"],
        "epoch": entry["epoch"],
        "padding": False,
    }
    begin = 0  # of the span that holds the token
    for span in entry["spans"]:
        if place < begin + span["length"]:
            break
        begin += span["length"]
    else:
        return {**found, "padding": True, "not_shown": []}
    at = span["start"] + place - begin
    document = source.tokens(entry["domain"], span["document"])
    if document is None:  # what the row itself holds of it
        document, here = tokens[begin : begin + span["length"]], place - begin
    else:
        here = at
    return {
        **found,
        "epoch": span["epoch"],
        "document": span["document"],
        "doc_id": span["doc_id"],
        "place_in_document": at,
        "source": source.input(entry["domain"], span["document"]),
        **source.text("before", document[max(here - _AROUND, 0) : here]),
        **source.text("text", document[here : here + 1]),
        **source.text("after", document[here + 1 : here + 1 + _AROUND]),
        "not_shown": list(source.missing),
    }


def _provenance(mixture: Mixture, row: int, store: Store | None) -> dict[str, Any]:
    rows = mixture.manifest["rows"]
    if not 0 <= row < rows:
        raise _none(f"there is no row {row}: rows are 0 to {rows - 1}", mixture.root)
    found = provenance_of(mixture, store)
    if found is None:
        raise MixcError(
            "MX041",
            "the mixture was built without provenance, and its store, from which that follows, is "
            "not at hand",
            place=Place(str(mixture.root)),
            help="name the store with --store",
        )
    group, local = divmod(row, mixture.manifest["block_rows"])
    try:
        (table,) = found.tables([group])
        entry: dict[str, Any] = table.slice(local, 1).to_pylist()[0]
    except (OSError, ValueError, LookupError) as error:
        raise MixcError(
            "MX040",
            f"the provenance is damaged: {error}",
            place=Place(str(mixture.root)),
            help="run `mixc verify` on the mixture",
        ) from error
    return entry
