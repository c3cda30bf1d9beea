"""`mixc tokenize`: the recipe's corpora to a token store."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from mixc import progress
from mixc.engine import local
from mixc.errors import MixcError
from mixc.recipe import Recipe
from mixc.store import commit
from mixc.store.hashes import check_file, key_of
from mixc.store.shard import token_dtype
from mixc.store.store import MANIFEST, Store, Unit, open_store
from mixc.tokenize.assemble import gather_domain, options_key, write_tree
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.estimate import estimate
from mixc.tokenize.inputs import Input, find, hashed
from mixc.tokenize.tokenizer import obtain, stored_tokenizer, tokenizer_key
from mixc.tokenize.unit import (
    ALGORITHM,
    UnitTask,
    make_worker,
    plan_units,
    read_options,
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
    tokenizer = tokenizer_key(recipe, inputs)
    key = key_of(
        {
            "algorithm": ALGORITHM,
            "inputs": [[item.domain, item.name, item.reader, item.xxh3] for item in inputs],
            "tokenizer": tokenizer,
            "options": options_key(recipe),
        }
    )
    old = _opened(root)
    fresh = old is not None and old.manifest["key"] == key and _whole(old)
    return TokenizePlan(root, inputs, key, tokenizer, old, fresh)


def _opened(root: Path) -> Store | None:
    """The store that is there, if it can be read; a damaged one is made anew."""
    try:
        return open_store(root)
    except MixcError:
        return None


def _whole(store: Store) -> bool:
    return not any(check_file(store.root, record, rehash=False) for record in store.files())


def tokenize(recipe: Recipe, *, workers: int) -> Store:
    """Bring the store up to date with the recipe and its inputs, and open it."""
    root = recipe.workdir_path / "store"
    with commit.locked(root) as staging:
        commit.check_ours(root, MANIFEST)
        todo = plan(recipe)
        if todo.fresh and todo.old is not None:
            commit.remove(staging)
            return todo.old
        file = stored_tokenizer(todo.old, todo.tokenizer_key)
        file = file or obtain(recipe, todo.inputs, todo.tokenizer_key)
        tasks = _tasks(recipe, todo.inputs, file)
        if todo.old is not None:
            _stage_known(todo.old, tasks, staging)
        units = _tokenized(tasks, file, staging, workers)
        tree = staging / "tree"
        commit.remove(tree)
        staged = {
            name: gather_domain(staging, tree, list(mine), units[name])
            for name, mine in groupby(tasks, key=attrgetter("domain"))
        }
        write_tree(recipe, todo.key, file, staged, tree)
        commit.publish_tree(tree, root)
        commit.remove(staging)
    return open_store(root)


def estimate_plan(recipe: Recipe, todo: TokenizePlan, *, workers: int) -> dict[str, Any]:
    """What a run would make, roughly, for `mixc plan`."""
    file = stored_tokenizer(todo.old, todo.tokenizer_key)
    if file is None and recipe.tokenizer.train is None:
        file = obtain(recipe, todo.inputs, todo.tokenizer_key)
    rough = estimate(recipe, todo.inputs, file)
    total = sum(rough.tokens.values())
    train = recipe.tokenizer.train
    vocab_size = file.vocab_size if file else train.vocab_size if train else 0
    return {
        "about_tokens": total,
        "about_output_bytes": token_dtype(vocab_size).itemsize * total,
        "about_seconds": rough.seconds / workers,
    }


def _tasks(recipe: Recipe, inputs: tuple[Input, ...], file: TokenizerFile) -> list[UnitTask]:
    """The units of all domains, sorted by domain as the inputs are."""
    tasks: list[UnitTask] = []
    for name, mine in groupby(inputs, key=attrgetter("domain")):
        domain = recipe.domains[name]
        tasks += plan_units(
            list(mine),
            read_options(domain),
            skip_bad=domain.on_bad_record == "skip",
            tokenizer=file,
        )
    return tasks


def _tokenized(
    tasks: list[UnitTask], file: TokenizerFile, staging: Path, workers: int
) -> dict[str, list[Unit]]:
    """Every task's unit, by domain: tokenized now, or adopted from staging."""
    units: dict[str, list[Unit]] = {task.domain: [] for task in tasks}
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
            units[task.domain].append(unit)
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
