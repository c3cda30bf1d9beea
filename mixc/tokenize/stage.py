"""`mixc tokenize`: the recipe's corpora to a token store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc import __version__, progress
from mixc.engine import local
from mixc.errors import MixcError, Place
from mixc.readers.records import ReadOptions
from mixc.recipe import Recipe
from mixc.store import commit, holdout
from mixc.store.hashes import check_file, hash_file, key_of, seal
from mixc.store.shard import open_shard, token_dtype
from mixc.store.store import (
    MANIFEST,
    SCHEMA,
    TOKENIZER,
    Domain,
    Store,
    Unit,
    open_store,
)
from mixc.tokenize import encoder, train
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.estimate import estimate
from mixc.tokenize.inputs import Input, find, hashed
from mixc.tokenize.unit import (
    ALGORITHM,
    UnitTask,
    make_worker,
    plan_units,
    stage_unit,
    tokenize_unit,
)


@dataclass(frozen=True)
class TokenizePlan:
    """What a run of the stage would do. `fresh`: nothing. `key` names the store's whole input."""

    root: Path
    inputs: tuple[Input, ...]
    key: str
    tokenizer_key: str
    old: Store | None
    fresh: bool


def plan(recipe: Recipe) -> TokenizePlan:
    """Find and hash the inputs, and compare with the store that is there."""
    root = recipe.workdir_path / "store"
    inputs = tuple(hashed(find(recipe)))
    data = recipe.canonical()
    tokenizer_key = _tokenizer_key(recipe, inputs)
    also = recipe.holdout.also
    key = key_of(
        {
            "algorithm": ALGORITHM,
            "inputs": [[item.domain, item.name, item.reader, item.xxh3] for item in inputs],
            "tokenizer": tokenizer_key,
            "domains": data["domains"],
            "holdout": data["holdout"],
            "also": hash_file(recipe.resolve(also)) if also else None,
            "seed": recipe.seed,
        }
    )
    old = _opened(root)
    fresh = old is not None and old.manifest["key"] == key and _whole(old)
    return TokenizePlan(root, inputs, key, tokenizer_key, old, fresh)


def _opened(root: Path) -> Store | None:
    """The store that is there, if it can be read; a damaged one is made anew."""
    try:
        return open_store(root)
    except MixcError:
        return None


def _whole(store: Store) -> bool:
    return not any(check_file(store.root, record, rehash=False) for record in store.files())


def _tokenizer_key(recipe: Recipe, inputs: tuple[Input, ...]) -> str:
    options = recipe.tokenizer
    data: dict[str, Any] = {"algorithm": ALGORITHM, **recipe.canonical()["tokenizer"]}
    if options.path is not None:
        try:
            data["file"] = hash_file(recipe.resolve(options.path))
        except OSError as error:
            raise MixcError(
                "MX030",
                f"cannot read the tokenizer: {(error.strerror or str(error)).lower()}",
                place=recipe.place("tokenizer", "path"),
            ) from error
    elif options.train is not None:
        data["inputs"] = [[item.domain, item.reader, item.xxh3] for item in inputs]
        data["read"] = {name: domain.text for name, domain in recipe.domains.items()}
    return key_of(data)


def tokenize(recipe: Recipe, *, workers: int) -> Store:
    """Bring the store up to date with the recipe and its inputs, and open it."""
    root = recipe.workdir_path / "store"
    with commit.locked(root) as staging:
        todo = plan(recipe)
        if todo.fresh and todo.old is not None:
            commit.remove(staging)
            return todo.old
        file = _tokenizer(recipe, todo)
        tasks = _tasks(recipe, todo.inputs, file)
        if todo.old is not None:
            _stage_known(todo.old, tasks, staging)
        units = _tokenized(tasks, file, staging, workers)
        tree = staging / "tree"
        commit.remove(tree)
        staged = {
            name: _gather_domain(staging, tree, [t for t in tasks if t.domain == name], units[name])
            for name in sorted(recipe.domains)
        }
        _write_tree(recipe, todo, file, staged, tree)
        commit.publish_tree(tree, root)
        commit.remove(staging)
    return open_store(root)


def estimate_plan(recipe: Recipe, todo: TokenizePlan, *, workers: int) -> dict[str, Any]:
    """What a run would make, roughly, for `mixc plan`."""
    known = recipe.tokenizer.train is None or _keeps_tokenizer(todo)
    rough = estimate(recipe, todo.inputs, _tokenizer(recipe, todo) if known else None)
    total = sum(rough.tokens.values())
    return {
        "about_tokens": total,
        "about_output_bytes": 2 * total,
        "about_seconds": rough.seconds / workers,
    }


def _keeps_tokenizer(todo: TokenizePlan) -> bool:
    return todo.old is not None and todo.old.manifest["tokenizer"]["key"] == todo.tokenizer_key


def _tokenizer(recipe: Recipe, todo: TokenizePlan) -> TokenizerFile:
    options, old = recipe.tokenizer, todo.old
    if old is not None and _keeps_tokenizer(todo):
        raw, known = (old.root / TOKENIZER).read_bytes(), old.manifest["tokenizer"]
        return encoder.describe(raw, eot=known["eot"], source=known["source"], key=known["key"])
    describe = partial(encoder.describe, eot=options.eot, key=todo.tokenizer_key)
    if options.path is not None:
        return describe(recipe.resolve(options.path).read_bytes(), source=options.path)
    if options.hub is not None:
        return describe(_from_hub(options.hub), source=f"hub:{options.hub}")
    assert options.train is not None
    raw = train.train(
        todo.inputs,
        {name: _read_options(recipe, name) for name in recipe.domains},
        vocab_size=options.train.vocab_size,
        sample_bytes=options.train.sample_bytes,
    )
    return describe(raw, source="trained on the recipe's domains")


def _from_hub(name: str) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, TOKENIZER)).read_bytes()
    except Exception as error:  # the hub's errors have many roots
        raise MixcError(
            "MX030",
            f"cannot get the tokenizer from the hub: {type(error).__name__}",
            place=Place(f"hub:{name}"),
            help="check the name and the network, or give tokenizer.path a local tokenizer.json",
        ) from error


def _read_options(recipe: Recipe, domain: str) -> ReadOptions:
    options = recipe.domains[domain]
    return ReadOptions(options.text, options.max_document_bytes)


def _tasks(recipe: Recipe, inputs: tuple[Input, ...], file: TokenizerFile) -> list[UnitTask]:
    tasks: list[UnitTask] = []
    for name, domain in sorted(recipe.domains.items()):
        tasks += plan_units(
            [item for item in inputs if item.domain == name],
            _read_options(recipe, name),
            skip_bad=domain.on_bad_record == "skip",
            tokenizer=file,
        )
    return tasks


def _tokenized(
    tasks: list[UnitTask], file: TokenizerFile, staging: Path, workers: int
) -> dict[str, tuple[Unit, ...]]:
    """Every task's unit, by domain: tokenized now, or adopted from staging."""
    units: dict[str, tuple[Unit, ...]] = {}
    with progress.task("tokenize", sum(task.bytes for task in tasks), "B") as bar:
        made = local.run(
            tokenize_unit,
            tasks,
            setup=make_worker,
            arguments=(file, staging),
            workers=workers,
            report=bar.advance,
        )
        for task, unit in zip(tasks, made, strict=True):
            units[task.domain] = (*units.get(task.domain, ()), unit)
    return units


def _stage_known(old: Store, tasks: list[UnitTask], staging: Path) -> None:
    """Stage again what the old store holds of this work; each is then adopted by its hash."""
    known = {
        (domain.name, unit.key): unit for domain in old.domains.values() for unit in domain.units
    }
    for task in tasks:
        folder = staging / task.folder
        unit = known.get((task.domain, task.key))
        if unit is None or folder.exists():
            continue
        for shard in unit.shards:
            source = old.root / shard.file.path
            if source.exists():
                commit.link(source, folder / source.name)
        stage_unit(folder, unit)


@dataclass(frozen=True)
class _Staged:
    """A domain whose shards are all staged, and what the holdout needs to know of them."""

    units: tuple[Unit, ...]
    doc_id: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    text_bytes: int


def _gather_domain(
    staging: Path, tree: Path, tasks: list[UnitTask], units: tuple[Unit, ...]
) -> _Staged:
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
    text_bytes = sum(shard.text_bytes for unit in placed for shard in unit.shards)
    return _Staged(tuple(placed), np.concatenate(ids), np.concatenate(lengths), text_bytes)


def _choose_holdout(recipe: Recipe, staged: Mapping[str, _Staged]) -> dict[str, NDArray[np.uint64]]:
    options = recipe.holdout
    earlier = holdout.read(recipe.resolve(options.also)) if options.also else {}
    held = {}
    for name, domain in staged.items():
        chosen = holdout.choose(
            domain.doc_id,
            domain.lengths,
            fraction=options.fraction,
            max_tokens=options.max_tokens,
            seed=recipe.seed,
        )
        held[name] = np.union1d(chosen, earlier.pop(name, chosen[:0]))
    # Domains that are no more keep their list: what was held out once stays out.
    return {**earlier, **held}


def _write_tree(
    recipe: Recipe,
    todo: TokenizePlan,
    file: TokenizerFile,
    staged: Mapping[str, _Staged],
    tree: Path,
) -> None:
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
        "key": todo.key,
        "store_hash": key_of(identity),
        "seed": recipe.seed,
        "dtype": str(token_dtype(file.vocab_size)),
        "tokenizer": file.as_dict(),
        "overrides": list(recipe.overrides),
        "files": [record.as_dict() for record in files],
        "domains": domains,
    }
    commit.write_file(tree / MANIFEST, seal(manifest))


def _domain(name: str, staged: _Staged, every_id: NDArray[np.uint64]) -> Domain:
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
