"""Blocks made on a Ray cluster: what must hold where more than one machine writes a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.build.blocks import BlockTask, Builder, make_builder
from mixc.build.gather import BlockDone, block_digest, build_block, read_block
from mixc.build.plan import BuildPlan
from mixc.build.supply import make_supply
from mixc.engine import ray
from mixc.engine.local import Report
from mixc.errors import MixcError, Place
from mixc.rows.packing import Layout
from mixc.rows.weights import DocumentWeights
from mixc.store import commit
from mixc.store.store import MANIFEST, Store, open_store


def build_blocks(
    cluster: ray.Cluster,
    plan: BuildPlan,
    store: Store,
    stream: Path,
    tasks: Sequence[BlockTask],
    *,
    published: Path | None,
) -> Iterator[BlockDone]:
    """Stage every block in the file `stream`; yield them in order, as this machine reads them.

    `published`: what `stream` is another name of, if it is.
    """

    def staged(done: BlockDone) -> NDArray[Any]:
        return read_block(stream, plan.spec, done.number, plan.block_rows)

    secret = secrets.token_hex(16)
    token = stream.parent / f".seen-{secret}"  # who reads it shares the folder
    commit.write_file(token, secret.encode())
    supply = plan.supply
    try:
        for done in ray.run(
            _build,
            tasks,
            setup=_make_builder,
            arguments=(
                *(store.root, store.store_hash, plan.domains),
                *(supply.layout, supply.weights, stream, published, plan.provenance),
            ),
            cluster=cluster,
            report=lambda _: None,
            shared=(store.root / MANIFEST, token),
            whole=lambda done: block_digest(staged(done)) == done.digest,
        ):
            yield replace(done, tokens=staged(done))
    finally:
        commit.remove(token)


def _make_builder(
    root: Path,
    store_hash: str,
    domains: tuple[str, ...],
    layout: Layout,
    weights: DocumentWeights | None,
    stream: Path,
    published: Path | None,
    tables: bool,
) -> Builder:
    store = open_store(root)
    if store.store_hash != store_hash:
        raise MixcError("MX045", "the store was replaced meanwhile", place=Place(str(root)))
    supply = make_supply(store, domains, layout, weights)
    return make_builder(
        store, supply, domains, stream, workers=1, published=published, tables=tables
    )


def _build(builder: Builder, task: BlockTask, report: Report) -> BlockDone:  # noqa: ARG001
    """A block, done only when the file's server has it: a node may die right after."""
    done = build_block(builder, task)
    commit.sync(builder.path)
    return replace(done, tokens=np.empty(0, builder.dtype))
