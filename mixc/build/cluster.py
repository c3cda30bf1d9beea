"""Blocks made on a Ray cluster: what must hold where more than one machine writes a file."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixc.build.gather import BlockDone, BlockTask, Builder, block_digest, build_block
from mixc.build.plan import BuildPlan
from mixc.engine import ray
from mixc.engine.local import Report
from mixc.store import commit
from mixc.store.store import MANIFEST, Store


def runner(
    cluster: ray.Cluster, plan: BuildPlan, store: Store, stream: Path
) -> Callable[..., Iterator[BlockDone]]:
    """What takes the place of `local.run` for the blocks of the staged file `stream`."""

    def whole(done: BlockDone) -> bool:
        """Whether this machine reads from the file what a node says it wrote there."""
        row = plan.row_len * plan.spec.dtype.itemsize
        first = done.number * plan.block_rows
        count = min(plan.block_rows, plan.rows - first) * plan.row_len
        staged = np.fromfile(stream, plan.spec.dtype, count, offset=first * row)
        return block_digest(staged) == done.digest

    def run(_: object, tasks: Sequence[BlockTask], **options: Any) -> Iterator[BlockDone]:
        options.pop("workers")  # those of this machine; the cluster's are the cluster's own
        secret = secrets.token_hex(16)
        token = stream.parent / f".seen-{secret}"  # who reads it shares the folder
        commit.write_file(token, secret.encode())
        options |= {"cluster": cluster, "shared": (store.root / MANIFEST, token), "whole": whole}
        try:
            yield from ray.run(build_synced, tasks, **options)
        finally:
            commit.remove(token)

    return run


def build_synced(builder: Builder, task: BlockTask, report: Report) -> BlockDone:
    """`build_block`, done only when the file's server has it: a node may die right after."""
    done = build_block(builder, task, report)
    commit.sync(builder.path)
    return done
