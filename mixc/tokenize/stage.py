"""`mixc tokenize`: the recipe's corpora to a token store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from mixc import progress
from mixc.engine import local
from mixc.engine.schedule import Chain
from mixc.errors import MixcError, Place
from mixc.recipe import Recipe
from mixc.store import commit
from mixc.store.hashes import check_file, key_of
from mixc.store.shard import token_dtype
from mixc.store.store import MANIFEST, Store, open_store
from mixc.tokenize.assemble import gather_source, options_key, write_tree
from mixc.tokenize.encoder import EngineMismatch, TokenizerFile, Trust, load_early, mode_of
from mixc.tokenize.engines import REFERENCE
from mixc.tokenize.estimate import estimate
from mixc.tokenize.inputs import Input, find, hashed
from mixc.tokenize.rules import rules_of
from mixc.tokenize.samples import Verifier
from mixc.tokenize.tokenizer import obtain, stored_tokenizer, tokenizer_key
from mixc.tokenize.trial import Trial
from mixc.tokenize.unit import Made, UnitTask, make_worker, stage_unit, tokenize_unit
from mixc.tokenize.units import ALGORITHM, plan_units, useful_workers
from mixc.tokenize.verdicts import choose, condemn, condemned, likely

_LONG_BYTES = 256 << 20


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
            "inputs": [[item.domain, item.name, item.reader, item.digest] for item in inputs],
            "tokenizer": tokenizer,
            "options": options_key(recipe),
            "engine": [recipe.tokenizer.engine, recipe.tokenizer.verify],
        }
    )
    old = _opened(root)
    fresh = old is not None and old.manifest["key"] == key and _sound(old)
    return TokenizePlan(root, inputs, key, tokenizer, old, fresh)


def _opened(root: Path) -> Store | None:
    """The store that is there, if it can be read; a damaged one is made anew."""
    try:
        return open_store(root)
    except MixcError:
        return None


def _sound(store: Store) -> bool:
    """Whether nothing of a store is missing, or the work of an engine that failed since."""
    told = store.manifest["tokenizer"]
    wrong = condemned(_verdicts(store.root), told["sha256"], mode_of(told["special_tokens"]))
    units = (unit for units in store.sources.values() for unit in units)
    if any((unit.engine["name"], unit.engine["version"]) in wrong for unit in units):
        return False
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
        raw = stored_tokenizer(todo.old, todo.tokenizer_key)
        raw = raw or obtain(recipe, todo.inputs, todo.tokenizer_key)
        engine = likely(recipe.tokenizer, raw.sha256, raw.special_tokens, _verdicts(root))
        # The engine is loaded while the tokenizer is looked at.
        load = partial(load_early, engine, raw.json, mode_of(raw.special_tokens))
        workers = min(workers, useful_workers(todo.inputs))
        # Of long runs even one worker is a process by itself: it holds what it needs and no more.
        apart = sum(item.bytes for item in todo.inputs) > _LONG_BYTES
        with local.Crew(workers, load, apart=apart) as crew:
            file = raw.describe()
            crew.prepare(make_worker, file, staging, engine)
            sources = _tokenized(recipe, todo, file, staging, crew)
        tree = staging / "tree"
        commit.remove(tree)
        gathered = {
            name: gather_source(staging, tree, name, done) for name, done in sources.items()
        }
        write_tree(recipe, todo.key, file, gathered, tree)
        commit.publish_tree(tree, root)
        commit.remove(staging)
    return open_store(root)


def _tokenized(
    recipe: Recipe, todo: TokenizePlan, file: TokenizerFile, staging: Path, crew: local.Crew
) -> dict[str, list[Made]]:
    """Every unit by the recipe's domain, encoded by an engine that nothing speaks against."""
    verdicts = _verdicts(todo.root)
    trial = Trial(recipe, todo.inputs, file)
    while True:
        trust = choose(recipe.tokenizer, file, partial(trial.run, crew=crew), trial.key, verdicts)
        run = _Run(recipe, todo, file, trust, staging)
        try:
            return run.units(crew)
        except EngineMismatch as found:
            if trust.engine == REFERENCE:
                raise  # a fault of ours: it is compared with itself
            condemn(verdicts, file, trust.version, found.mismatch)


def _verdicts(root: Path) -> Path:
    return root.parent / commit.CONTROL / root.name / "engines"


def estimate_plan(recipe: Recipe, todo: TokenizePlan, *, workers: int) -> dict[str, Any]:
    """What a run would make, roughly, for `mixc plan`."""
    raw = stored_tokenizer(todo.old, todo.tokenizer_key)
    if raw is None and recipe.tokenizer.train is None:
        raw = obtain(recipe, todo.inputs, todo.tokenizer_key)
    file = raw.describe() if raw else None
    rough = estimate(recipe, todo.inputs, file)
    total = sum(rough.tokens.values())
    train = recipe.tokenizer.train
    vocab_size = file.vocab_size if file else train.vocab_size if train else 0
    return {
        "about_tokens": total,
        "about_output_bytes": token_dtype(vocab_size).itemsize * total,
        "about_seconds": rough.seconds / workers,
    }


@dataclass(frozen=True)
class _Run:
    """One attempt at all units with one engine."""

    recipe: Recipe
    todo: TokenizePlan
    file: TokenizerFile
    trust: Trust
    staging: Path

    def units(self, crew: local.Crew) -> dict[str, list[Made]]:
        """Every unit: tokenized now, or adopted from staging or the old store."""
        chains, domains = self._chains()
        done: list[list[Made]] = [[] for _ in chains]
        total = sum(item.bytes for item in self.todo.inputs)
        with (
            Verifier(self.file, self.trust.engine, crew.workers) as verifier,
            progress.task("tokenize", total, "B") as bar,
        ):

            def accept(made: Made) -> bool:
                folder = self.staging / made.task.folder
                verifier.submit(folder, made.samples, partial(self._passed, made))
                return made.unit.ended

            for number, _, made in crew.run_chains(
                tokenize_unit, chains, accept=accept, report=bar.advance
            ):
                done[number].append(made)
                if made.unit.ended:
                    self._check_files(done[number])
            verifier.finish()
        sources: dict[str, list[Made]] = {name: [] for name in domains}
        for name, mine in zip(domains, done, strict=True):
            sources[name] += mine
        return sources

    def _passed(self, made: Made) -> None:
        """A unit's samples are verified: they have done their work."""
        stage_unit(self.staging, replace(made, samples=()))
        for one in made.samples:
            commit.remove(self.staging / made.task.folder / one.path)

    def _chains(self) -> tuple[list[Chain[UnitTask]], list[str]]:
        """The chains of all domains, sorted by domain as the inputs are, and the domain of each."""
        chains: list[Chain[UnitTask]] = []
        domains: list[str] = []
        stage_known = self._stage_known()
        for name, mine in groupby(self.todo.inputs, key=attrgetter("domain")):
            domain = self.recipe.domains[name]
            chains += plan_units(
                list(mine),
                rules_of(domain),
                allow_empty=domain.allow_empty_files,
                tokenizer=self.file,
                trust=self.trust,
                prepare=stage_known,
            )
            domains += [name] * (len(chains) - len(domains))
        return chains, domains

    def _stage_known(self) -> Callable[[UnitTask], None]:
        """Stage again what the old store holds of a task; it is then adopted by its hashes."""
        old, staging, trust = self.todo.old, self.staging, self.trust
        sources = {} if old is None else old.sources
        known = {(name, unit.key): unit for name, units in sources.items() for unit in units}

        def stage_known(task: UnitTask) -> None:
            folder = staging / task.folder
            unit = known.get((task.inputs[0].domain, task.key))
            if old is None or unit is None or not trust.accepts(unit.engine):
                return
            if (folder / "unit.json").exists():
                return
            for file in unit.files:
                source = old.root / file.path
                if source.is_file() and not source.is_symlink():
                    commit.link(source, folder / source.name)
            stage_unit(staging, Made(task, unit))

        return stage_known

    def _check_files(self, done: list[Made]) -> None:
        """Each file must give a document; adopted work may have been allowed not to."""
        task = done[0].task
        for number, item in enumerate(task.inputs):
            parts = [made.unit.inputs[number] for made in done]
            _check_yield(item, parts, task.allow_empty)


def _check_yield(item: Input, parts: list[dict[str, Any]], allow_empty: bool) -> None:
    """Raise MX028 if a file gave no document, unless that is allowed."""
    skipped = [f"{n} skipped as {code}" for one in parts for code, n in one["skipped"].items()]
    if any(one["documents"] or one["not_selected"] for one in parts):
        return
    if allow_empty and not skipped:
        return
    raise MixcError(
        "MX028",
        f"no document in '{item.name}' of domain '{item.domain}'",
        place=Place(item.name, detail=", ".join(skipped)),
        help="check the domain's format and text; "
        "allow_empty_files: true lets files without records pass",
    )
