"""What a build would do, known before it writes: what it takes over, and what of the disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mixc.build import reuse as reusing
from mixc.build.decks import Decks
from mixc.build.disk import at_once, disk_needs, free_bytes, rows_left
from mixc.build.plan import BuildPlan
from mixc.build.reuse import Reuse
from mixc.build.site import Site, labels_of, tasks_of
from mixc.errors import MixcError, Place
from mixc.store import commit
from mixc.store.store import Store


@dataclass(frozen=True)
class Foresight:
    """What a build finds there, and the bytes that it is yet to write, by what they are for.

    `staged_blocks` are those that an earlier run says it has staged, `deck_rows` the rows that
    decks are said to hold. `twice`: whether tokens are gathered in two passes.
    """

    reuse: Reuse | None
    staged_blocks: int
    deck_rows: int
    twice: bool
    disk: dict[str, int]


def foresee(root: Path, plan: BuildPlan, store: Store, *, gather: str, decks: bool) -> Foresight:
    """What `build` with the same arguments would do; writes nothing."""
    work = commit.staging_of(root) / plan.key
    site = Site(plan, store, root, work, 1, None, gather, decks)
    reuse = reusing.find(root, plan, store, tasks_of(plan, labels_of(plan)))
    known, kept = site.staged_blocks(), site.kept_decks()
    left = {**({} if reuse is None else reuse.blocks), **known}
    staged = site.stream.exists() or (reuse is not None and bool(reuse.streams(plan)))
    return Foresight(
        reuse,
        staged_blocks=sum(0 <= number < -(-plan.rows // plan.block_rows) for number in known),
        deck_rows=kept.held(plan.counts.rows),
        twice=site.twice,
        disk=_needs(site, reuse, left, staged=staged, decks=kept if decks else None),
    )


def check_disk(
    site: Site, reuse: Reuse | None, known: Iterable[int], *, staged: bool, decks: Decks | None
) -> None:
    """Raise MX043 if the disk cannot hold what is yet to be staged.

    `known` are the numbers of blocks that need not be gathered. `staged`: the stream has its place.
    """
    needed = at_once(_needs(site, reuse, known, staged=staged, decks=decks))
    free = free_bytes(site.stream)
    if needed > free:
        raise MixcError(
            "MX043",
            f"the mixture takes at least {needed:,} bytes more, and {free:,} are free",
            place=Place(str(site.work)),
            help="free some space, leave out formats that hold copies (mixc plan says what each "
            "takes), or put workdir on another disk",
        )


def _needs(
    site: Site, reuse: Reuse | None, known: Iterable[int], *, staged: bool, decks: Decks | None
) -> dict[str, int]:
    plan, left, growth = site.plan, rows_left(site.plan, known), 0
    if decks is not None:
        left = plan.rows - decks.held(plan.counts.rows)
        growth = decks.growth(plan.counts.rows)
    return disk_needs(plan, reuse, staged=staged, in_buckets=left * site.twice, decks=growth)
