"""Where a mixture is built: its places on the disk, and the blocks that are to be put there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mixc.build import order
from mixc.build.blocks import BlockTask
from mixc.build.decks import Decks
from mixc.build.medium import two_passes
from mixc.build.plan import ALGORITHM, BuildPlan
from mixc.engine.ray import Cluster
from mixc.store.hashes import key_of
from mixc.store.store import Store


@dataclass(frozen=True)
class Site:
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

    def staged_blocks(self) -> dict[int, str]:
        """Blocks that an earlier run says it staged; their hashes are checked before they count."""
        known: dict[int, str] = {}
        if self.stream.exists() and self.journal.exists():
            for line in self.journal.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    known[int(entry["block"])] = str(entry["xxh3"])
                except (ValueError, KeyError, TypeError, OverflowError):
                    continue  # torn by a kill: that block is made again
        return known

    @property
    def twice(self) -> bool:
        """Whether tokens are gathered in two passes."""
        return self.cluster is None and two_passes(self.gather, self.plan, self.store)

    def kept_decks(self) -> Decks:
        """The decks that are kept beside a mixture."""
        weights = self.plan.supply.weights
        key = key_of(
            {
                "algorithm": ALGORITHM,
                "store": self.store.store_hash,
                "layout": asdict(self.plan.layout),
                "weights": None if weights is None else weights.digest(),
                "block_rows": self.plan.block_rows,
            }
        )
        root = self.root.parent / "decks"
        return Decks(root, key, self.plan.spec, block_rows=self.plan.block_rows)


def labels_of(plan: BuildPlan) -> order.Labels:
    """The domain of each row, uint16[R]."""
    return order.schedule_order(plan.schedule, shuffle_block=plan.shuffle_block, seed=plan.seed)


def tasks_of(
    plan: BuildPlan, labels: order.Labels, known: Mapping[int, str] | None = None
) -> Iterator[BlockTask]:
    """The plan's blocks: one after the other, as there may be a million, of 1000 domains."""
    positions = np.zeros(len(plan.domains), np.int64)
    for number, first in enumerate(range(0, plan.rows, plan.block_rows)):
        mine = labels[first : first + plan.block_rows]
        yield BlockTask(number, first, mine, positions, (known or {}).get(number))
        positions = positions + np.bincount(mine, minlength=len(plan.domains))
