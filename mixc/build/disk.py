"""What a build takes of the disk, at least: known before it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from mixc.build.plan import BuildPlan
from mixc.build.reuse import Reuse

_STAY = ("stream", "provenance", "decks")  # until the mixture is published, or longer


def free_bytes(root: Path) -> int:
    """Free space where the mixture will stand."""
    folder = root
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk_needs(
    plan: BuildPlan, reuse: Reuse | None, *, staged: bool, in_buckets: int, decks: int = 0
) -> dict[str, int]:
    """Bytes that are yet to be written, at least, by what they are for.

    `staged`: the stream has its place already. `in_buckets` are the rows that are gathered in two
    passes, `decks` the bytes by which decks grow.
    """
    skipped = {*([] if reuse is None else reuse.formats(plan)), *(["stream"] if staged else [])}
    needs = {name: 0 if name in skipped else size for name, size in plan.disk_bytes().items()}
    buckets = in_buckets * plan.row_len * plan.spec.dtype.itemsize
    return needs | ({"buckets": buckets} if buckets else {}) | ({"decks": decks} if decks else {})


def at_once(needs: Mapping[str, int]) -> int:
    """Of `disk_needs`, what is there at once: buckets are gone before formats are written."""
    stay = sum(needs.get(name, 0) for name in _STAY)
    buckets = needs.get("buckets", 0)
    return stay + max(buckets, sum(needs.values()) - stay - buckets)


def rows_left(plan: BuildPlan, known: Iterable[int]) -> int:
    """Rows of the blocks that are not among those of the numbers `known`."""
    there = set(known)
    firsts = enumerate(range(0, plan.rows, plan.block_rows))
    return sum(min(plan.block_rows, plan.rows - at) for i, at in firsts if i not in there)
