"""`mixc build-mixture`: a store and weights to a mixture in trainers' formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from mixc.build.export import Exporter
from mixc.build.foresight import check_disk
from mixc.build.gather import BlockDone, block_digest, build_blocks, read_block, stream_hash
from mixc.build.held import HeldOut, stage_held_out, stage_together, staged_sequences
from mixc.build.medium import read_whole
from mixc.build.mixture import Mixture, open_mixture
from mixc.build.plan import ALGORITHM, BuildPlan
from mixc.build.reuse import Reuse
from mixc.build.schedule import describe
from mixc.build.site import Site, labels_of, tasks_of
from mixc.build.supply import opened
from mixc.engine.ray import Cluster
from mixc.engine.threads import in_order
from mixc.errors import MixcError, Place
from mixc.registry import WRITERS
from mixc.store import commit, parts
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
        site = Site(plan, store, root, staging / plan.key, workers, cluster, gather, decks)
        commit.remove(site.tree)
        manifest = {**recipe_data, **_make(site)}
        commit.write_file(site.tree / mixtures.MANIFEST, seal(manifest))
        commit.remove(site.stream)  # a format may have it: nobody writes to what is published
        commit.sync(site.work)
        commit.publish_tree(site.tree, root)
        commit.remove(staging)
    return open_mixture(root)


def _make(site: Site) -> dict[str, Any]:
    """Stage every file of the mixture and describe it."""
    site, labels = _laid_out(site)
    plan = site.plan
    reuse = reusing.find(site.root, plan, site.store, tasks_of(plan, labels))
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
    if any(one["xxh3"] == staged.xxh3 for one in files):
        commit.sync(stream)
    elif stream == site.stream:  # it is removed, and need not be on the disk
        _check_stream(site, staged)
    for name, entry in formats.items():
        entry["how_to_load"] = WRITERS[name].load().how_to_load(plan.spec)
    held = _hold_out(site, export, there.get("holdout", _NOTHING))
    return (
        _describe_rows(plan, site.store, labels, staged)
        | {"formats": formats, "holdout": held, "provenance": staged.provenance}
        | _describe_weights(plan, weights_file)
    )


def _laid_out(site: Site) -> tuple[Site, order.Labels]:
    """The site with the domains' streams laid out, and the order of rows.

    At once: loading the compiled order holds Python's lock, putting documents in order does not.
    """
    plan = site.plan
    if site.cluster is not None or site.workers < 2:  # who makes blocks lays streams out
        return site, labels_of(plan)
    with ThreadPoolExecutor(1) as aside:
        given = (plan.supply, site.store, plan.domains)
        supply = aside.submit(opened, *given, workers=site.workers, rows=plan.counts.rows)
        labels = labels_of(plan)
    return replace(site, plan=replace(plan, supply=supply.result())), labels


def _stage(site: Site, labels: order.Labels, reuse: Reuse | None) -> tuple[Path, _Staged]:
    """Stage the token stream, or link it if it is published already, and the provenance."""
    plan, stream = site.plan, site.stream
    for left in (reusing.part_of(stream), site.linked):
        commit.remove(left)
    begun = stream.exists()
    whole = reuse.stream(plan) if reuse is not None and not begun else None
    linked = whole is not None and commit.try_link(whole, site.linked)
    reused = {} if reuse is None else reuse.blocks
    known = site.staged_blocks()
    decks = site.kept_decks() if site.decks else None
    check_disk(site, reuse, {**reused, **known}, staged=linked or begun, decks=decks)
    if decks is not None:
        decks.make_room()
    if linked:
        stream = site.linked
    else:
        if not begun:
            commit.remove(site.journal)
            if reuse is not None and reuse.blocks:
                reuse.stage(plan, stream)
        parts.reserve(stream, plan.bytes)
    return stream, _gather(site, stream, labels, reused, known, decks)


def _check_stream(site: Site, staged: _Staged) -> None:
    """See that the stream is still what was gathered, now that formats are written from it.

    Where the disk did not take a part, and memory forgot it, what is read is another. Raises MX040.
    """
    plan = site.plan

    def digest(number: int) -> str:
        return block_digest(read_block(site.stream, plan.spec, number, plan.block_rows))

    found = in_order(digest, range(len(staged.digests)), workers=site.workers)
    if any(one != two for one, two in zip(found, staged.digests, strict=True)):
        raise MixcError(
            "MX040",
            "the disk did not keep what was written to it",
            place=Place(str(site.stream)),
            help="run again: what is damaged is made anew; and look after the disk",
        )


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


@dataclass(frozen=True)
class _Staged:
    """The staged token stream: digests of its blocks, its XXH3-128, tokens taken, provenance."""

    digests: list[str]
    xxh3: str
    taken: dict[str, dict[int, int]]
    provenance: dict[str, Any]


def _gather(
    site: Site,
    stream: Path,
    labels: order.Labels,
    reused: Mapping[int, str],
    known: Mapping[int, str],
    decks: Decks | None,
) -> _Staged:
    """Put every block in its place in `stream`, and stage the provenance.

    `reused`: digests of blocks taken over; `known`: of those that the journal names.
    """
    plan, whole, windows = site.plan, xxhash.xxh3_128(), _windows(site, stream)
    with (
        progress.task("build mixture", plan.rows, "rows") as bar,
        provenance.RowsWriter(
            site.tree,
            plan.domains,
            rows=plan.rows,
            block_rows=plan.block_rows,
            kept=plan.provenance,
        ) as writer,
    ):
        for done in _blocks(site, stream, labels, {**reused, **known}, decks, windows):
            if known.get(done.number) != done.digest:
                line = json.dumps({"block": done.number, "xxh3": done.digest})
                commit.append_line(site.journal, line.encode())
            whole.update(done.tokens.data)
            if plan.linked and not windows:
                offset = done.number * plan.block_rows * plan.row_len * plan.spec.dtype.itemsize
                parts.start_sync(stream, offset, done.tokens.nbytes)
            writer.add(done.table, done.taken, done.digest)
            bar.advance(done.rows)
        entry = writer.finish()
    return _Staged(writer.digests, whole.hexdigest(), writer.taken, entry)


def _blocks(
    site: Site,
    stream: Path,
    labels: order.Labels,
    known: Mapping[int, str],
    decks: Decks | None,
    windows: tuple[parts.Window, ...],
) -> Iterator[BlockDone]:
    """Stage every block. `known`: digests of those that are said to be staged."""
    plan, store, workers = site.plan, site.store, site.workers
    tasks = tasks_of(plan, labels, known)
    published = site.root if stream == site.linked else None
    if site.cluster is not None:
        yield from clusters.build_blocks(
            site.cluster, plan, store, stream, list(tasks), published=published
        )
        return
    builder = make_builder(
        *(store, plan.supply, plan.domains, stream),
        workers=workers,
        published=published,
        tables=plan.provenance,
        windows=windows,
    )
    buckets = site.work / "buckets"

    def choose(tasks: Iterable[BlockTask]) -> Finder:
        commit.remove(buckets)
        if not site.twice:
            counts = (np.bincount(task.labels, minlength=len(plan.domains)) for task in tasks)
            rows = sum(counts, np.zeros(len(plan.domains), np.int64))
            builder.read_ahead(read_whole(plan, store, rows), workers=workers)
            return from_store
        made = Buckets(builder, buckets, size=bucket_bytes(plan.bytes))
        made.fill(tasks, workers=workers)
        return made.find

    if decks is not None:
        decks.fill(builder, plan.counts.rows, choose, workers=workers)
        find: Finder = decks.find
    else:
        find = choose(task for task in tasks_of(plan, labels, known) if task.known is None)
    yield from build_blocks(builder, tasks, workers=workers, find=find)
    commit.remove(buckets)


def _windows(site: Site, stream: Path) -> tuple[parts.Window, ...]:
    """What blocks go through past the page cache, where no format is written from the stream.

    Of several workers, one thread more than they are waits for the disk.
    """
    plan, elsewhere = site.plan, site.cluster is not None or stream == site.linked
    if elsewhere or plan.read_again or not parts.Window.fits(stream):
        return ()
    size = min(plan.block_rows, plan.rows) * plan.row_len * plan.spec.dtype.itemsize
    threads = site.workers + (site.workers > 1)
    return tuple(parts.Window(size) for _ in range(threads + 1))


def _hold_out(site: Site, export: Exporter, there: Mapping[str, Any]) -> dict[str, Any]:
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
