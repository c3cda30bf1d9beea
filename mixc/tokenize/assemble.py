"""Staged units to a whole store: shards in place, the holdout chosen, the manifest written."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc import __version__
from mixc.errors import MixcError
from mixc.recipe import Recipe
from mixc.recipe_types import DOMAIN_NAME, RESERVED_NAMES
from mixc.store import commit, holdout
from mixc.store.hashes import hash_file, key_of, seal
from mixc.store.shard import ShardRecord, open_shard, token_dtype
from mixc.store.store import MANIFEST, SCHEMA, TOKENIZER, Domain, Unit, open_store, split_name
from mixc.tokenize.encoder import MAX_FILE_BYTES, TokenizerFile
from mixc.tokenize.staged import MAX_SPLITS, SPLIT_HELP
from mixc.tokenize.unit import Made
from mixc.tokenize.units import ALGORITHM


@dataclass(frozen=True)
class StagedDomain:
    """A domain whose shards are all staged, and what the holdout needs to know of them."""

    source: str
    shards: tuple[ShardRecord, ...]
    doc_id: NDArray[np.uint64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class StagedSource:
    """A domain of the recipe, tokenized: its units, and the domains that they became."""

    units: tuple[Unit, ...]
    domains: dict[str, StagedDomain]


def gather_source(staging: Path, tree: Path, source: str, done: list[Made]) -> StagedSource:
    """Link a source's files into the new tree, and read the columns of its documents."""
    placed: list[Unit] = []
    shards: list[ShardRecord] = []
    for made in done:
        unit = made.unit
        moved = unit.moved(lambda shard: split_name(source, shard.split) if shard else source)
        for before, after in zip(unit.files, moved.files, strict=True):
            commit.link(staging / made.task.folder / Path(before.path).name, tree / after.path)
        placed.append(moved)
        shards += moved.shards
    if not shards:
        raise MixcError(
            "MX028", f"no document in domain '{source}'", help="check its paths, format and text"
        )
    values = _values(source, shards)
    return StagedSource(
        tuple(placed), {name: _gather(tree, source, name, shards) for name in sorted(values)}
    )


def _gather(tree: Path, source: str, name: str, shards: list[ShardRecord]) -> StagedDomain:
    mine = [shard for shard in shards if split_name(source, shard.split) == name]
    documents = [open_shard(tree / shard.file.path, shard) for shard in mine]
    return StagedDomain(
        source,
        tuple(mine),
        np.concatenate([one.doc_id for one in documents]),
        np.concatenate([one.lengths for one in documents]),
    )


def _values(source: str, shards: list[ShardRecord]) -> dict[str, str]:
    """The domains of a source, each with the value of `split_by` that makes it. Raises MX049."""
    values: dict[str, str] = {}
    for shard in shards:
        name = split_name(source, shard.split)
        if values.setdefault(name, shard.split) != shard.split:
            reason = f"'{values[name]}' and '{shard.split}' both make the domain '{name}'"
        elif not re.fullmatch(DOMAIN_NAME, name) or name in RESERVED_NAMES:
            reason = f"'{name:.100}' is no domain name"
        elif len(values) > MAX_SPLITS:
            reason = f"they make more than {MAX_SPLITS} domains"
        else:
            continue
        raise MixcError(
            "MX049",
            f"the values of split_by in domain '{source}' cannot be domains: {reason}",
            help=SPLIT_HELP,
        )
    return values


def _choose_holdout(
    recipe: Recipe, staged: Mapping[str, StagedDomain]
) -> dict[str, NDArray[np.uint64]]:
    options = recipe.holdout
    earlier = _earlier(recipe)
    held = {}
    for name, domain in staged.items():
        chosen = holdout.choose(
            domain.doc_id,
            domain.lengths,
            fraction=options.fraction,
            max_tokens=options.max_tokens,
        )
        held[name] = np.union1d(chosen, earlier.pop(name, chosen[:0]))
    # Domains that are no more keep their list: what was held out once stays out.
    return {**earlier, **held}


def write_tree(
    recipe: Recipe,
    key: str,
    file: TokenizerFile,
    sources: Mapping[str, StagedSource],
    tree: Path,
) -> None:
    """Stage the tokenizer, the holdout and the manifest beside the shards. Raises MX049."""
    staged: dict[str, StagedDomain] = {}
    for name, source in sources.items():
        if twice := staged.keys() & source.domains.keys():
            message = f"the values of split_by in domain '{name}' make another, '{min(twice)}'"
            raise MixcError("MX049", message, help="rename one of the two domains")
        staged |= source.domains
    staged = dict(sorted(staged.items()))
    held = _choose_holdout(recipe, staged)
    every_id = np.unique(np.concatenate(list(held.values())))
    domains = {name: _domain(name, one, every_id).as_dict() for name, one in staged.items()}
    files = [commit.write_file(tree / TOKENIZER, file.json), holdout.write(tree, held)]
    identity = {
        "tokenizer": [file.sha256, file.eot_id],
        "holdout": files[1].xxh3,
        "shards": {name: [shard.file.xxh3 for shard in one.shards] for name, one in staged.items()},
    }
    manifest = {
        "schema": SCHEMA,
        "mixc_version": __version__,
        "key": key,
        "options_key": options_key(recipe),
        "store_hash": key_of(identity),
        "dtype": str(token_dtype(file.vocab_size)),
        "tokenizer": file.as_dict(),
        "overrides": recipe.overrides_of("tokenizer", "domains", "holdout"),
        "files": [record.as_dict() for record in files],
        "domains": domains,
        "sources": {
            name: [unit.as_dict() for unit in source.units] for name, source in sources.items()
        },
    }
    commit.write_file(tree / MANIFEST, seal(manifest))


def _domain(name: str, staged: StagedDomain, every_id: NDArray[np.uint64]) -> Domain:
    out = np.isin(staged.doc_id, every_id)
    return Domain(
        name,
        source=staged.source,
        documents=len(staged.doc_id),
        tokens=int(staged.lengths.sum()),
        text_bytes=sum(shard.text_bytes for shard in staged.shards),
        held_documents=int(out.sum()),
        held_tokens=int(staged.lengths[out].sum()),
        units=(),
    )


def options_key(recipe: Recipe) -> str:
    """The key of what a recipe says of its store, without the corpora: those take long to hash."""
    data, path = recipe.canonical(), recipe.tokenizer.path
    overrides = recipe.overrides_of("tokenizer", "domains", "holdout")
    return key_of(
        {
            "algorithm": ALGORITHM,
            "tokenizer": tokenizer_options(recipe),
            "recipe": {name: data[name] for name in ("domains", "holdout")},
            "overrides": [text for text in overrides if not _of_engine(text)],
            "also": also_hash(recipe),
            "file": None if path is None else file_hash(recipe, path),
        }
    )


_ENGINE_OPTIONS = ("engine", "verify")


def tokenizer_options(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of its tokenizer. How it is encoded with changes no token."""
    options = recipe.canonical()["tokenizer"]
    return {name: value for name, value in options.items() if name not in _ENGINE_OPTIONS}


def _of_engine(override: str) -> bool:
    path = override.partition("=")[0].replace(" ", "")
    return path in [f"tokenizer.{name}" for name in _ENGINE_OPTIONS]


def file_hash(recipe: Recipe, path: str) -> str:
    """The hash of the tokenizer's file. Raises MX030."""
    try:
        status = recipe.resolve(path).stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(f"it is over {MAX_FILE_BYTES} bytes long")
        return hash_file(recipe.resolve(path))
    except OSError as error:
        raise MixcError(
            "MX030",
            f"cannot read the tokenizer: {(error.strerror or str(error)).lower()}",
            place=recipe.place("tokenizer", "path"),
            help="the path is relative to the recipe's folder",
        ) from error


def _earlier(recipe: Recipe) -> dict[str, NDArray[np.uint64]]:
    """The earlier list of held-out ids that the recipe names; of a store, held against its hash."""
    path = recipe.also_path
    if path is None:
        return {}
    return dict(open_store(path).held_ids) if path.is_dir() else holdout.read(path)


def also_hash(recipe: Recipe) -> str | None:
    """The hash of the earlier list of held-out ids that the recipe names, if it names one."""
    path = also_path(recipe)
    if path is None:
        return None
    if not path.is_file():
        raise MixcError(
            "MX041",
            "there is no holdout list here",
            place=recipe.place("holdout", "also"),
            help=f"name a store, or its {holdout.FILE}",
        )
    return hash_file(path)


def also_path(recipe: Recipe) -> Path | None:
    """The earlier list of held-out ids that the recipe names: a store, or the file itself."""
    path = recipe.also_path
    return path / holdout.FILE if path is not None and path.is_dir() else path
