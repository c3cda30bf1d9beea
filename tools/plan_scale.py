"""What a mixture far larger than this machine would need: planned from counts alone.

    python tools/plan_scale.py --tokens 15e12 --documents 1e9 --domains 1000
    python tools/plan_scale.py --tokens 1e11 --documents 1e8 --domains 100 --order

The store is nothing but its counts; the plan is the one that a build would follow. Prints one JSON
object: rows, blocks, what the build would hold in memory and take on the disk, and what planning
took here. `--order` lays out the order of all rows too, which is most of a build's planning. The
exit code is 1 if the build would hold more than `--most-gib`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from bench.token_store import VOCABULARY, make_recipe, sizes

from mixc.build.memory import memory_bytes
from mixc.build.plan import StageWeights, make_plan
from mixc.build.site import labels_of
from mixc.recipe import Recipe
from mixc.store.store import Domain, Store


def counted_store(recipe: Recipe, tokens: int, documents: int, share_held: float = 0.001) -> Store:
    """A store of counts: its domains shrink as those of the builds' benchmark do."""
    domains = {}
    names = sorted(recipe.domains)
    for name, share in zip(names, sizes(len(names)).tolist(), strict=True):
        count, size = int(share * documents), int(share * tokens)
        held = int(share_held * count), int(share_held * size)
        domains[name] = Domain(name, name, count, size, 4 * size, *held, ())
    manifest = {
        "store_hash": "0" * 32,
        "tokenizer": {"vocab_size": VOCABULARY, "eot_id": VOCABULARY - 1},
    }
    return Store(recipe.workdir_path / "store", manifest, {}, domains)


def main() -> None:
    summary, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=float, default=15e12, help="of the mixture")
    parser.add_argument("--documents", type=float, default=1e9, help="of the store")
    parser.add_argument("--domains", type=int, default=1000)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--formats", nargs="+", default=["nanogpt", "megatron"])
    parser.add_argument("--order", action="store_true", help="lay out the order of all rows too")
    parser.add_argument("--most-gib", type=float, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(
            Path(folder),
            gigabytes=2 * options.tokens / 1e9,
            domains=options.domains,
            seq_len=options.seq_len,
            formats=options.formats,
        )
        store = counted_store(recipe, int(options.tokens), int(options.documents))
        begin = time.perf_counter()
        weights = recipe.mixture.weights
        assert isinstance(weights, dict)
        plan = make_plan(recipe, store, [StageWeights(1.0, weights)])
        labels = labels_of(plan) if options.order else None
        seconds = time.perf_counter() - begin
    held = memory_bytes(plan, store, workers=options.workers)
    found = {
        "rows": plan.rows,
        "tokens": plan.tokens,
        "blocks": -(-plan.rows // plan.block_rows),
        "build_memory_gib": round(held / 2**30, 2),
        "disk_tb": {name: round(size / 1e12, 3) for name, size in plan.disk_bytes().items()},
        "ordered_rows": 0 if labels is None else len(labels),
        "planned_in_seconds": round(seconds, 2),
        "planned_in_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    print(json.dumps(found, indent=2))
    sys.exit(held > options.most_gib * 2**30)


if __name__ == "__main__":
    main()
