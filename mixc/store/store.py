"""The token store as later stages see it: domains, their documents, and which are held out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.store import holdout
from mixc.store.hashes import FileRecord, check_file, check_names, unseal
from mixc.store.shape import check_store
from mixc.store.shard import Documents, ShardRecord, open_shard, token_dtype

MANIFEST = "manifest.json"
SCHEMA = "mixc.store/2"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Unit:
    """A piece of tokenizing work: input files, or a part of one, and the shards made from them.

    `inputs` tells of each file what became of its records; `engine` what encoded them and how much
    of that was compared with the reference; `quarantine` lists the bad records that were left out.
    `ended`: nothing of its input follows.
    """

    key: str
    inputs: tuple[dict[str, Any], ...]
    shards: tuple[ShardRecord, ...]
    engine: dict[str, Any]
    quarantine: FileRecord | None = None
    ended: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The unit as plain data."""
        return {
            "key": self.key,
            "inputs": list(self.inputs),
            "shards": [shard.as_dict() for shard in self.shards],
            "engine": self.engine,
            "quarantine": None if self.quarantine is None else self.quarantine.as_dict(),
            "ended": self.ended,
        }

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The unit's files."""
        bad = () if self.quarantine is None else (self.quarantine,)
        return (*(shard.file for shard in self.shards), *bad)

    def moved(self, folder: Callable[[ShardRecord | None], str]) -> Unit:
        """The same unit with its files elsewhere: `folder` says where, of a shard or the rest."""
        shards = tuple(replace(one, file=_under(folder(one), one.file)) for one in self.shards)
        bad = None if self.quarantine is None else _under(folder(None), self.quarantine)
        return replace(self, shards=shards, quarantine=bad)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Unit:
        """Read plain data back."""
        shards = tuple(ShardRecord.from_dict(shard) for shard in data["shards"])
        bad = None if data["quarantine"] is None else FileRecord(**data["quarantine"])
        return Unit(data["key"], tuple(data["inputs"]), shards, data["engine"], bad, data["ended"])


def _under(folder: str, file: FileRecord) -> FileRecord:
    return replace(file, path=str(PurePosixPath(folder, PurePosixPath(file.path).name)))


def split_name(source: str, split: str) -> str:
    """The domain of a source's documents that share a value of its `split_by`."""
    if not split:
        return source
    return f"{source}.{re.sub(r'[^a-z0-9._-]+', '-', split.lower()).strip('-') or '-'}"


@dataclass(frozen=True)
class Domain:
    """A domain of the store. `held_*` count documents that no mixture may use.

    `source` is the recipe's domain that it was read as: another name only if that one is split.
    `units` are the source's, with this domain's shards alone.
    """

    name: str
    source: str
    documents: int
    tokens: int
    text_bytes: int
    held_documents: int
    held_tokens: int
    units: tuple[Unit, ...]

    @property
    def training_tokens(self) -> int:
        """Tokens that mixtures may use."""
        return self.tokens - self.held_tokens

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """All shards, in the order of documents."""
        return tuple(shard for unit in self.units for shard in unit.shards)

    def as_dict(self) -> dict[str, Any]:
        """The domain as plain data; its shards are listed with its source."""
        return {
            "source": self.source,
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "held_out": {"documents": self.held_documents, "tokens": self.held_tokens},
        }


@dataclass(frozen=True)
class Store:
    """An opened store. Nothing of it is read until it is asked for.

    `sources` are the units of work by the recipe's domains; `domains` what they became.
    """

    root: Path
    manifest: dict[str, Any]
    sources: dict[str, tuple[Unit, ...]]
    domains: dict[str, Domain]

    @property
    def store_hash(self) -> str:
        """The identity of the tokens, documents and holdout."""
        return str(self.manifest["store_hash"])

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return int(self.manifest["tokenizer"]["vocab_size"])

    @property
    def eot_id(self) -> int:
        """The id that closes each document."""
        return int(self.manifest["tokenizer"]["eot_id"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the tokens."""
        return token_dtype(self.vocab_size)

    @cached_property
    def held_ids(self) -> dict[str, NDArray[np.uint64]]:
        """Held-out ids by the domain that chose them. Raises MX040 if a bit of them changed."""
        for record in self.files():
            if record.path == holdout.FILE and (
                error := check_file(self.root, record, rehash=True)
            ):
                raise error
        return holdout.read(self.root / holdout.FILE)

    @cached_property
    def all_held_ids(self) -> NDArray[np.uint64]:
        """Every held-out id, sorted; a document of any of them is kept out of every domain."""
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *self.held_ids.values()]))

    def documents(self, domain: str) -> Iterator[Documents]:
        """The documents of a domain, shard by shard."""
        for shard in self.domains[domain].shards:
            yield self.open(shard)

    def open(self, shard: ShardRecord) -> Documents:
        """The documents of a shard."""
        documents = open_shard(self.root / shard.file.path, shard)
        if documents.tokens.dtype != self.dtype:
            message = f"the shard's tokens are {documents.tokens.dtype}, the store's {self.dtype}"
            raise MixcError("MX040", message, place=Place(str(self.root / shard.file.path)))
        return documents

    def held_out(self, domain: str) -> Iterator[Documents]:
        """The documents that a domain holds out, each text once, shard by shard."""
        wanted = np.sort(self.held_ids.get(domain, np.zeros(0, np.uint64)))
        for documents in self.documents(domain):
            found = np.flatnonzero(holdout.among(documents.doc_id, wanted))
            ids, first = np.unique(documents.doc_id[found], return_index=True)
            wanted = wanted[~holdout.among(wanted, ids)]
            yield documents.select(found[np.sort(first)])

    def files(self) -> list[FileRecord]:
        """Every file of the store but the manifest."""
        fixed = [FileRecord(**record) for record in self.manifest["files"]]
        made = [file for units in self.sources.values() for unit in units for file in unit.files]
        return fixed + list({record.path: record for record in made}.values())

    def check_sizes(self) -> None:
        """Raise MX040 if a file is missing or cut."""
        for record in self.files():
            if error := check_file(self.root, record, rehash=False):
                raise error


def open_store(root: Path) -> Store:
    """Open a store. Raises MX041 if there is none, MX040 if it is damaged."""
    try:
        manifest = unseal(root / MANIFEST, SCHEMA)
    except MixcError as error:
        if error.code == "MX041":
            error.message, error.help = "there is no token store here", "run `mixc tokenize` first"
        raise
    try:
        check_store(manifest)
        sources = {
            name: tuple(Unit.from_dict(unit) for unit in units)
            for name, units in manifest["sources"].items()
        }
        domains = {name: _domain(name, data, sources) for name, data in manifest["domains"].items()}
        store = Store(root, manifest, sources, domains)
        check_names(root / MANIFEST, [*store.files(), *(FileRecord(n, 0, "") for n in domains)])
        return store
    except (msgspec.ValidationError, ValueError, KeyError, TypeError) as error:
        place = Place(str(root / MANIFEST))
        raise MixcError("MX040", f"the manifest is not a store's: {error}", place=place) from error


def _domain(name: str, data: dict[str, Any], sources: dict[str, tuple[Unit, ...]]) -> Domain:
    return Domain(
        name,
        source=data["source"],
        documents=data["documents"],
        tokens=data["tokens"],
        text_bytes=data["text_bytes"],
        held_documents=data["held_out"]["documents"],
        held_tokens=data["held_out"]["tokens"],
        units=tuple(of_domain(unit, data["source"], name) for unit in sources[data["source"]]),
    )


def of_domain(unit: Unit, source: str, domain: str) -> Unit:
    """A source's unit with the shards of one domain alone."""
    mine = (shard for shard in unit.shards if split_name(source, shard.split) == domain)
    return replace(unit, shards=tuple(mine))
