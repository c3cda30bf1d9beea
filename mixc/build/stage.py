"""`mixc build-mixture`: a store and weights to a mixture in trainers' formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mixc import __version__, progress
from mixc.build import cluster as clusters
from mixc.build import mixture as mixtures
from mixc.build import order, provenance
from mixc.build import reuse as reusing
from mixc.build.blocks import BlockTask, Finder, from_store, make_builder
from mixc.build.buckets import Buckets, bucket_bytes
from mixc.build.decks import Decks
from mixc.build.disk import at_once, disk_needs, free_bytes, rows_left
from mixc.build.export import Exporter
from mixc.build.gather import BlockDone, build_blocks, stream_hash
from mixc.build.held import HeldOut, stage_held_out, stage_together, staged_sequences
from mixc.build.medium import two_passes
from mixc.build.mixture import Mixture, open_mixture
from mixc.build.plan import ALGORITHM, BuildPlan
from mixc.build.reuse import Reuse
from mixc.build.schedule import describe
from mixc.engine.ray import Cluster
from mixc.engine.threads import in_order
from mixc.errors import MixcError, Place
from mixc.registry import WRITERS
from mixc.store import commit
from mixc.store.hashes import FileRecord, key_of, seal
from mixc.store.store import Store
from mixc.writers.sequences import label_dtype

_FILES_AT_ONCE = 8
_NOTHING: dict[str, Any] = {"domains": {}, "formats": {}}


def fresh(root: Path, plan: BuildPlan) -> Mixture | None:
    """The mixture that is there, if it is the one that the plan would build."""
    try:
        mixture = open_mixture(root)
    except MixcError:
        return None
    return mixture if mixture.manifest["key"] == plan.key and mixture.whole() else None


def build(
    root: Path,
    plan: BuildPlan,
    store: Store,
    recipe_data: Mapping[str, Any],
    *,
    workers: int,
    cluster: Cluster | None = None,
    gather: str = "auto",
    decks: bool = False,
) -> Mixture:
    """Bring the mixture at `root` up to date with the plan, and open it.

    `recipe_data` goes into the manifest: name, seed, overrides, recipe_hash, max_epochs.
    `cluster`: where blocks are built, if not by `workers` threads of this machine. `gather` is
    one of `medium.GATHERS`; `decks` keeps each domain's rows for the next mixture.
    """
    with commit.locked(root) as staging:
        commit.check_ours(root, mixtures.MANIFEST)
        if (mixture := fresh(root, plan)) is not None:
            commit.remove(staging)
            return mixture
        for other in staging.iterdir():
            if other.name != plan.key:
                commit.remove(other)
        site = _Site(plan, store, root, staging / plan.key, workers, cluster, gather, decks)
        commit.remove(site.tree)
        manifest = {**recipe_data, **_make(site)}
        commit.write_file(site.tree / mixtures.MANIFEST, seal(manifest))
        commit.remove(site.stream)  # a format may have it: nobody writes to what is published
        commit.sync(site.work)
        commit.publish_tree(site.tree, root)
        commit.remove(staging)
    return open_mixture(root)


@dataclass(frozen=True)
class _Site:
    """What is built, and by whom; `root` is where it will stand, `work` where it is staged."""

    plan: BuildPlan
    store: Store
    root: Path
    work: Path
    workers: int
    cluster: Cluster | None
    gather: str
    decks: bool

    @property
    def tree(self) -> Path:
        """What becomes the mixture."""
        return self.work / "tree"

    @property
    def stream(self) -> Path:
        """The token stream, which formats link or copy."""
        return self.work / "stream.bin"

    @property
    def linked(self) -> Path:
        """The stream as a file that is published already: it is read, and never written to."""
        return self.work / "stream.linked"

    @property
    def journal(self) -> Path:
        """What a run says that it has staged of the stream."""
        return self.work / "blocks.jsonl"


def _make(site: _Site) -> dict[str, Any]:
    """Stage every file of the mixture and describe it."""
    plan, labels = site.plan, labels_of(site.plan)
    reuse = reusing.find(site.root, plan, site.store, _tasks(plan, labels))
    weights = plan.supply.weights
    weights_file = None if weights is None else weights.write(site.tree)
    stream, staged = _stage(site, labels, reuse)
    lengths = np.broadcast_to(np.int64(plan.row_len), plan.rows)
    export = Exporter(plan, site.tree, {stream: staged.xxh3}, reuse, workers=site.workers)
    numbers = labels.astype(label_dtype(len(plan.domains)), copy=False)
    rows_of = staged_sequences(
        stream, plan.spec.dtype, lengths, numbers, plan.domains, row_len=plan.row_len
    )
    there = {} if reuse is None else reuse.mixture.manifest
    formats = export("", rows_of, "train", there["formats"] if reuse and reuse.all else {})
    files = (one for entry in formats.values() for one in entry["files"])
    if any(one["xxh3"] == staged.xxh3 for one in files):  # it is a format's; else it is removed
        commit.sync(stream)
    for name, entry in formats.items():
        entry["how_to_load"] = WRITERS[name].load().how_to_load(plan.spec)
    held = _hold_out(site, export, there.get("holdout", _NOTHING))
    return (
        _describe_rows(plan, site.store, labels, staged)
        | {"formats": formats, "holdout": held, "provenance": staged.provenance.as_dict()}
        | _describe_weights(plan, weights_file)
    )


def _stage(site: _Site, labels: order.Labels, reuse: Reuse | None) -> tuple[Path, _Staged]:
    """Stage the token stream, or link it if it is published already, and the provenance."""
    plan, stream = site.plan, site.stream
    for left in (reusing.part_of(stream), site.linked):
        commit.remove(left)
    begun = stream.exists()
    whole = reuse.stream(plan) if reuse is not None and not begun else None
    linked = whole is not None and commit.try_link(whole, site.linked)
    reused = {} if reuse is None else reuse.blocks
    known = _read_journal(site.journal) if begun else {}
    decks = decks_of(site.root, plan, site.store) if site.decks else None
    _foresee(site, reuse, {**reused, **known}, staged=linked or begun, decks=decks)
    if decks is not None:
        decks.make_room()
    if linked:
        stream = site.linked
    else:
        if not begun:
            commit.remove(site.journal)
            if reuse is not None and reuse.blocks:
                reuse.stage(plan, stream)
        commit.reserve(stream, plan.bytes)
    return stream, _gather(site, stream, labels, reused, known, decks)


def _describe_rows(
    plan: BuildPlan, store: Store, labels: order.Labels, staged: _Staged
) -> dict[str, Any]:
    """What the manifest says of the stream: its shape, its domains, its order, its ledger."""
    ledger = mixtures.make_ledger(
        {name: (domain.tokens, domain.held_tokens) for name, domain in store.domains.items()},
        staged.taken,
        None if plan.layout.packing == "concat" else _row_tokens(plan),
        plan.supply.drawn(staged.taken),
    )
    error, bound = order.schedule_error(labels, plan.schedule, shuffle_block=plan.shuffle_block)
    return {
        "schema": mixtures.SCHEMA,
        "mixc_version": __version__,
        "algorithm": ALGORITHM,
        "libraries": mixtures.libraries(),
        "key": plan.key,
        "store_hash": store.store_hash,
        "seq_len": plan.seq_len,
        "row_len": plan.row_len,
        "packing": plan.layout.packing,
        "rows": plan.rows,
        "tokens": plan.tokens,
        "dtype": str(plan.spec.dtype),
        "eot_id": store.eot_id,
        "tokenizer": {
            "sha256": store.manifest["tokenizer"]["sha256"],
            "vocab_size": store.vocab_size,
        },
        "domains": describe_domains(plan),
        "stages": describe(plan.schedule, plan.domains),
        "order": {
            "shuffle_block": plan.shuffle_block,
            "max_prefix_error": error,
            "bound": bound,
        },
        "ledger": ledger,
        "block_rows": plan.block_rows,
        "stream_hash": stream_hash(staged.digests),
    }


def _describe_weights(plan: BuildPlan, file: FileRecord | None) -> dict[str, Any]:
    """What the manifest says of documents' weights: how many are given, how many are known."""
    weights = plan.supply.weights
    if weights is None or file is None:
        return {}
    counted = {"documents": len(weights.ids), "known": plan.supply.known}
    return {"document_weights": {"file": file.as_dict(), **counted}}


def _row_tokens(plan: BuildPlan) -> dict[str, int]:
    return dict(zip(plan.domains, (plan.counts.rows * plan.row_len).tolist(), strict=True))


def describe_domains(plan: BuildPlan) -> dict[str, Any]:
    """What each domain gives, and whether the cap on epochs has cut it."""
    domains, epochs = {}, plan.supply.epochs(plan.counts.rows)
    for i, name in enumerate(plan.domains):
        tokens = int(plan.counts.rows[i]) * plan.row_len
        domains[name] = {
            "weight": float(plan.weights[i]),
            "realised": float(plan.counts.weights[i]),
            "rows": int(plan.counts.rows[i]),
            "tokens": tokens,
            "epochs": epochs[i],
            "capped": bool(plan.counts.capped[i]),
        } | ({} if plan.layout.plain else {"room": int(plan.room[i])})
    return domains


def _foresee(
    site: _Site, reuse: Reuse | None, known: Iterable[int], *, staged: bool, decks: Decks | None
) -> None:
    """Raise MX043 if the disk cannot hold what is yet to be staged.

    `known` are the numbers of blocks that need not be gathered. `staged`: the stream has its place.
    """
    plan, left, growth = site.plan, rows_left(site.plan, known), 0
    if decks is not None:
        left = plan.rows - decks.held(plan.counts.rows)
        growth = decks.growth(plan.counts.rows)
    twice = site.cluster is None and two_passes(site.gather, plan, site.store)
    needed = at_once(disk_needs(plan, reuse, staged=staged, in_buckets=left * twice, decks=growth))
    free = free_bytes(site.stream)
    if needed > free:
        raise MixcError(
            "MX043",
            f"the mixture takes at least {needed:,} bytes more, and {free:,} are free",
            place=Place(str(site.work)),
            help="free some space, leave out formats that hold copies (mixc plan says what each "
            "takes), or put workdir on another disk",
        )


@dataclass(frozen=True)
class _Staged:
    """The staged token stream: digests of its blocks, its XXH3-128, tokens taken, provenance."""

    digests: list[str]
    xxh3: str
    taken: dict[str, dict[int, int]]
    provenance: FileRecord


def _gather(
    site: _Site,
    stream: Path,
    labels: order.Labels,
    reused: Mapping[int, str],
    known: Mapping[int, str],
    decks: Decks | None,
) -> _Staged:
    """Put every block in its place in `stream`, and stage the provenance.

    `reused`: digests of blocks taken over; `known`: of those that the journal names.
    """
    plan, whole = site.plan, xxhash.xxh3_128()
    with (
        progress.task("build mixture", plan.rows, "rows") as bar,
        commit.create(site.tree / provenance.FILE) as file,
        provenance.RowsWriter(file, plan.domains) as writer,
    ):
        for done in _blocks(site, stream, labels, {**reused, **known}, decks):
            if known.get(done.number) != done.digest:
                line = json.dumps({"block": done.number, "xxh3": done.digest})
                commit.append_line(site.journal, line.encode())
            whole.update(done.tokens.data)
            if plan.linked:
                offset = done.number * plan.block_rows * plan.row_len * plan.spec.dtype.itemsize
                commit.start_sync(stream, offset, done.tokens.nbytes)
            writer.add(done.table, done.taken, done.digest)
            bar.advance(done.rows)
    return _Staged(writer.digests, whole.hexdigest(), writer.taken, file.record(provenance.FILE))


def _blocks(
    site: _Site,
    stream: Path,
    labels: order.Labels,
    known: Mapping[int, str],
    decks: Decks | None,
) -> Iterator[BlockDone]:
    """Stage every block. `known`: digests of those that are said to be staged."""
    plan, store, workers = site.plan, site.store, site.workers
    tasks = _tasks(plan, labels, known)
    if site.cluster is not None:
        yield from clusters.build_blocks(site.cluster, plan, store, stream, list(tasks))
        return
    builder = make_builder(store, plan.supply, plan.domains, stream, workers=workers)
    buckets = site.work / "buckets"

    def choose(tasks: Iterable[BlockTask]) -> Finder:
        commit.remove(buckets)
        if not two_passes(site.gather, plan, store):
            return from_store
        made = Buckets(builder, buckets, size=bucket_bytes(plan.bytes))
        made.fill(tasks, workers=workers)
        return made.find

    if decks is not None:
        decks.fill(builder, plan.counts.rows, choose, workers=workers)
        find: Finder = decks.find
    else:
        find = choose(task for task in _tasks(plan, labels, known) if task.known is None)
    yield from build_blocks(builder, tasks, workers=workers, find=find)
    commit.remove(buckets)


def decks_of(root: Path, plan: BuildPlan, store: Store) -> Decks:
    """The decks that are kept beside a mixture."""
    weights = plan.supply.weights
    key = key_of(
        {
            "algorithm": ALGORITHM,
            "store": store.store_hash,
            "layout": asdict(plan.layout),
            "weights": None if weights is None else weights.digest(),
            "block_rows": plan.block_rows,
        }
    )
    return Decks(root.parent / "decks", key, plan.spec, block_rows=plan.block_rows)


def _read_journal(path: Path) -> dict[int, str]:
    """Blocks that an earlier run says it staged; their hashes are checked before they count."""
    known: dict[int, str] = {}
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known[int(entry["block"])] = str(entry["xxh3"])
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # torn by a kill: that block is made again
    return known


def labels_of(plan: BuildPlan) -> order.Labels:
    """The domain of each row, uint16[R]."""
    return order.schedule_order(plan.schedule, shuffle_block=plan.shuffle_block, seed=plan.seed)


def reusable(root: Path, plan: BuildPlan, store: Store) -> Reuse | None:
    """What a build would take over from the mixture that is there."""
    if not (root / mixtures.MANIFEST).exists():
        return None
    return reusing.find(root, plan, store, _tasks(plan, labels_of(plan)))


def _tasks(
    plan: BuildPlan, labels: order.Labels, known: Mapping[int, str] | None = None
) -> Iterator[BlockTask]:
    """The plan's blocks: one after the other, as there may be a million, of 1000 domains."""
    positions = np.zeros(len(plan.domains), np.int64)
    for number, first in enumerate(range(0, plan.rows, plan.block_rows)):
        mine = labels[first : first + plan.block_rows]
        yield BlockTask(number, first, mine, positions, (known or {}).get(number))
        positions = positions + np.bincount(mine, minlength=len(plan.domains))


def _hold_out(site: _Site, export: Exporter, there: Mapping[str, Any]) -> dict[str, Any]:
    """Export the held-out documents, each domain's apart and all together.

    `there`: what the mixture that is there says of them, the same documents.
    """
    folder = site.work / "held"

    def stage(name: str) -> tuple[HeldOut, dict[str, Any]]:
        one = stage_held_out(site.store, name, folder)
        said = there["domains"].get(name, _NOTHING)["formats"]
        formats = export(f"holdout/{name}", one.sequences, "val", said) if one.documents else {}
        return one, {"documents": one.documents, "tokens": one.tokens, "formats": formats}

    # Many small files, each waited for until it is on the disk, which takes many at a time.
    staged = in_order(stage, site.plan.domains, workers=_FILES_AT_ONCE if site.workers > 1 else 1)
    both = dict(zip(site.plan.domains, staged, strict=True))
    held = {name: one for name, (one, _) in both.items()}
    domains = {name: said for name, (one, said) in both.items() if one.documents}
    together = stage_together(held, folder / ".all.bin")
    return {
        "domains": domains,
        "formats": export("", together, "val", there["formats"]) if domains else {},
    }


def recipe_hash(data: Mapping[str, Any]) -> str:
    """The hash of what a recipe says of its mixture."""
    return key_of({name: data[name] for name in ("name", "mixture", "seed")})
