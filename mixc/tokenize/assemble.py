"""Staged units to a whole store: shards in place, the holdout chosen, the manifest written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc import __version__
from mixc.errors import MixcError
from mixc.recipe import Recipe
from mixc.store import commit, holdout
from mixc.store.hashes import hash_file, key_of, seal
from mixc.store.shard import open_shard, token_dtype
from mixc.store.store import MANIFEST, SCHEMA, TOKENIZER, Domain, Unit, open_store
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.unit import ALGORITHM, UnitTask


@dataclass(frozen=True)
class StagedDomain:
    """A domain whose shards are all staged, and what the holdout needs to know of them."""

    units: tuple[Unit, ...]
    doc_id: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    text_bytes: int


def gather_domain(
    staging: Path, tree: Path, tasks: list[UnitTask], units: list[Unit]
) -> StagedDomain:
    """Link a domain's shards into the new tree and read their columns."""
    placed, ids, lengths = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for task, unit in zip(tasks, units, strict=True):
        for shard in unit.shards:
            name = Path(shard.file.path).name
            commit.link(staging / task.folder / name, tree / task.domain / name)
            documents = open_shard(tree / task.domain / name, shard)
            ids.append(documents.doc_id)
            lengths.append(documents.lengths)
        placed.append(unit.under(task.domain))
    if len(ids) == 1:
        raise MixcError(
            "MX028",
            f"no document in domain '{tasks[0].domain}'",
            help="check its paths, format and text",
        )
    text_bytes = sum(shard.text_bytes for unit in placed for shard in unit.shards)
    return StagedDomain(tuple(placed), np.concatenate(ids), np.concatenate(lengths), text_bytes)


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
    staged: Mapping[str, StagedDomain],
    tree: Path,
) -> None:
    """Stage the tokenizer, the holdout and the manifest beside the shards."""
    held = _choose_holdout(recipe, staged)
    every_id = np.unique(np.concatenate(list(held.values())))
    domains = {name: _domain(name, one, every_id).as_dict() for name, one in staged.items()}
    files = [commit.write_file(tree / TOKENIZER, file.json), holdout.write(tree, held)]
    identity = {
        "tokenizer": [file.sha256, file.eot_id],
        "holdout": files[1].xxh3,
        "shards": {
            name: [shard.file.xxh3 for unit in one.units for shard in unit.shards]
            for name, one in staged.items()
        },
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
        "engine": {"name": "tokenizers", "version": version("tokenizers")},
        "files": [record.as_dict() for record in files],
        "domains": domains,
    }
    commit.write_file(tree / MANIFEST, seal(manifest))


def _domain(name: str, staged: StagedDomain, every_id: NDArray[np.uint64]) -> Domain:
    out = np.isin(staged.doc_id, every_id)
    return Domain(
        name,
        documents=len(staged.doc_id),
        tokens=int(staged.lengths.sum()),
        text_bytes=staged.text_bytes,
        held_documents=int(out.sum()),
        held_tokens=int(staged.lengths[out].sum()),
        units=staged.units,
    )


def options_key(recipe: Recipe) -> str:
    """The key of what a recipe says of its store, without the corpora: those take long to hash."""
    data, path = recipe.canonical(), recipe.tokenizer.path
    return key_of(
        {
            "algorithm": ALGORITHM,
            "recipe": {name: data[name] for name in ("tokenizer", "domains", "holdout")},
            "overrides": recipe.overrides_of("tokenizer", "domains", "holdout"),
            "also": also_hash(recipe),
            "tokenizer": None if path is None else file_hash(recipe, path),
        }
    )


def file_hash(recipe: Recipe, path: str) -> str:
    """The hash of the tokenizer's file. Raises MX030."""
    try:
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
