"""`mixc build-mixture`: a store and weights to a mixture in trainers' formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mixc import __version__, progress
from mixc.build import cluster as clusters
from mixc.build import mixture as mixtures
from mixc.build import order, provenance
from mixc.build.gather import BlockTask, build_blocks, make_builder, stream_hash
from mixc.build.held import stage_held_out, stage_together, staged_sequences
from mixc.build.mixture import Mixture, open_mixture
from mixc.build.plan import BuildPlan
from mixc.build.schedule import describe
from mixc.engine.ray import Cluster
from mixc.errors import MixcError
from mixc.registry import WRITERS
from mixc.store import commit
from mixc.store.hashes import FileRecord, hash_file, key_of, seal
from mixc.store.store import Store
from mixc.writers.sequences import Folder, Sequences, label_dtype

_JOURNAL, _STREAM = "blocks.jsonl", "stream.bin"


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
) -> Mixture:
    """Bring the mixture at `root` up to date with the plan, and open it.

    `recipe_data` goes into the manifest: name, seed, overrides, recipe_hash, max_epochs.
    `cluster`: where blocks are built, if not by `workers` threads of this machine.
    """
    with commit.locked(root) as staging:
        commit.check_ours(root, mixtures.MANIFEST)
        if (mixture := fresh(root, plan)) is not None:
            commit.remove(staging)
            return mixture
        for other in staging.iterdir():
            if other.name != plan.key:
                commit.remove(other)
        work = staging / plan.key
        tree = work / "tree"
        commit.remove(tree)
        manifest = {**recipe_data, **_make(plan, store, work, tree, workers, cluster)}
        commit.write_file(tree / mixtures.MANIFEST, seal(manifest))
        commit.publish_tree(tree, root)
        commit.remove(staging)
    return open_mixture(root)


def _make(
    plan: BuildPlan,
    store: Store,
    work: Path,
    tree: Path,
    workers: int,
    cluster: Cluster | None,
) -> dict[str, Any]:
    """Stage every file of the mixture under `tree` and describe it."""
    labels = order.schedule_order(plan.schedule, shuffle_block=plan.shuffle_block, seed=plan.seed)
    weights = plan.supply.weights
    weights_file = None if weights is None else weights.write(tree)
    stream = work / _STREAM
    staged = _gather(plan, store, labels, stream, tree, workers, cluster)
    commit.sync(stream)
    lengths = np.broadcast_to(np.int64(plan.row_len), plan.rows)
    export = _Exporter(plan, tree, {stream: staged.xxh3})
    numbers = labels.astype(label_dtype(len(plan.domains)), copy=False)
    rows_of = staged_sequences(
        stream, plan.spec.dtype, lengths, numbers, plan.domains, row_len=plan.row_len
    )
    formats = export("", rows_of, "train")
    for name, entry in formats.items():
        entry["how_to_load"] = WRITERS[name].load().how_to_load(plan.spec)
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
        "formats": formats,
        "holdout": _hold_out(plan, store, work, export),
        "provenance": staged.provenance.as_dict(),
    } | _describe_weights(plan, weights_file)


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


def free_bytes(root: Path) -> int:
    """Free space where the mixture will stand."""
    folder = root
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class _Staged:
    """The staged token stream: digests of its blocks, its XXH3-128, tokens taken, provenance."""

    digests: list[str]
    xxh3: str
    taken: dict[str, dict[int, int]]
    provenance: FileRecord


def _gather(
    plan: BuildPlan,
    store: Store,
    labels: order.Labels,
    stream: Path,
    tree: Path,
    workers: int,
    cluster: Cluster | None,
) -> _Staged:
    """Stage the token stream and the provenance."""
    commit.reserve(stream, plan.bytes)
    journal = stream.with_name(_JOURNAL)
    known, digests, whole = _read_journal(journal), [], xxhash.xxh3_128()
    tasks = _tasks(plan, labels, known)
    with (
        progress.task("build mixture", plan.rows, "rows") as bar,
        commit.create(tree / provenance.FILE) as file,
        provenance.RowsWriter(file, plan.domains) as writer,
    ):
        if cluster is None:
            builder = make_builder(store, plan.supply, plan.domains, stream, workers=workers)
            blocks = build_blocks(builder, tasks, workers=workers)
        else:
            blocks = clusters.build_blocks(cluster, plan, store, stream, tasks)
        for done in blocks:
            if known.get(done.number) != done.digest:
                line = json.dumps({"block": done.number, "xxh3": done.digest})
                commit.append_line(journal, line.encode())
            digests.append(done.digest)
            whole.update(done.tokens.data)
            writer.add(done.table, done.taken)
            bar.advance(done.rows)
    return _Staged(digests, whole.hexdigest(), writer.taken, file.record(provenance.FILE))


def _read_journal(path: Path) -> dict[int, str]:
    """Blocks that an earlier run says it staged; their hashes are checked before they count."""
    known: dict[int, str] = {}
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known[int(entry["block"])] = str(entry["xxh3"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: that block is made again
    return known


def _tasks(plan: BuildPlan, labels: order.Labels, known: Mapping[int, str]) -> list[BlockTask]:
    tasks = []
    positions = np.zeros(len(plan.domains), np.int64)
    for number, first in enumerate(range(0, plan.rows, plan.block_rows)):
        mine = labels[first : first + plan.block_rows]
        tasks.append(BlockTask(number, first, mine, positions, known.get(number)))
        positions = positions + np.bincount(mine, minlength=len(plan.domains))
    return tasks


class _Exporter:
    """Writes sequences in every format of a plan; a file under two names is hashed once."""

    def __init__(self, plan: BuildPlan, tree: Path, known: Mapping[Path, str]) -> None:
        self._formats, self._tree = plan.formats, tree
        self._hashes = {path.stat().st_ino: xxh3 for path, xxh3 in known.items()}

    def __call__(self, prefix: str, sequences: Sequences, split: str) -> dict[str, Any]:
        formats = {}
        for name in self._formats:
            path = self._tree / prefix / name
            folder = Folder(path)
            files = WRITERS[name].load().write(sequences, folder, split)
            records = [self._record(path / file, folder.hashes.get(file)) for file in files]
            formats[name] = {"files": [record.as_dict() for record in records]}
        return formats

    def _record(self, path: Path, xxh3: str | None) -> FileRecord:
        status = path.stat()
        if status.st_ino not in self._hashes:
            self._hashes[status.st_ino] = xxh3 or hash_file(path)
        name = path.relative_to(self._tree).as_posix()
        return FileRecord(name, status.st_size, self._hashes[status.st_ino])


def _hold_out(
    plan: BuildPlan,
    store: Store,
    work: Path,
    export: Callable[[str, Sequences, str], dict[str, Any]],
) -> dict[str, Any]:
    """Export the held-out documents, each domain's apart and all together."""
    held = {name: stage_held_out(store, name, work / "held") for name in plan.domains}
    domains = {
        name: {
            "documents": one.documents,
            "tokens": one.tokens,
            "formats": export(f"holdout/{name}", one.sequences, "val"),
        }
        for name, one in held.items()
        if one.documents
    }
    together = stage_together(held, work / "held" / ".all.bin")
    return {"domains": domains, "formats": export("", together, "val") if domains else {}}


def recipe_hash(data: Mapping[str, Any]) -> str:
    """The hash of what a recipe says of its mixture."""
    return key_of({name: data[name] for name in ("name", "mixture", "seed")})
