"""Results as tables for people, on stdout."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mixc.progress import duration, quantity

_WIDE = 160  # where no terminal says how wide it is


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False
) -> None:
    """Print a table: the first column to the left, numbers to the right.

    With `words` the last column is text, to the left, of as many lines as it needs.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        text = words and i == len(columns) - 1
        grid.add_column(column, justify="left" if text or i == 0 else "right", no_wrap=not text)
    for row in rows:
        grid.add_row(*row)
    page = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    Console(file=page, width=width).print(grid)
    print("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def store(summary: Mapping[str, Any]) -> None:
    """What a store holds, where it came from, and, if that was looked into, how long it is."""
    rows = [
        [
            name,
            f"{domain['documents']:,}",
            f"{domain['tokens']:,}",
            quantity(domain["text_bytes"], "B"),
            f"{domain['bytes_per_token']:.2f}",
            f"{domain['held_documents']:,} / {domain['held_tokens']:,}",
            *(f"{domain[name]:,}" for name in ("duplicates", "elsewhere") if name in domain),
        ]
        for name, domain in summary["domains"].items()
    ]
    columns = ["domain", "documents", "tokens", "text", "bytes/token", "held out"]
    if all(map(_looked_into, summary["domains"].values())):
        columns += ["duplicates", "elsewhere"]
    table(f"store {summary['path']}", columns, rows)
    _sources(summary["sources"])
    if "duplicates" in columns:
        _lengths(summary["domains"])


def _looked_into(domain: Mapping[str, Any]) -> bool:
    return "lengths" in domain


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        [
            name,
            f"{one['files']:,}",
            ", ".join(one["engines"]),
            f"{one['verified_documents']:,} / {quantity(one['verified_bytes'], 'B')}",
            ", ".join(f"{count:,} {code}" for code, count in one["skipped"].items()) or "-",
            f"{one['replaced']:,}",
            f"{one['not_selected']:,}",
        ]
        for name, one in sources.items()
    ]
    columns = ("source", "files", "engine", "verified", "skipped", "mended", "not selected")
    table("read from", columns, rows)


_BINS = (16, 64, 256, 1024, 4096, 16384, 65536)


def _lengths(domains: Mapping[str, Mapping[str, Any]]) -> None:
    """Shares of documents by tokens; the finer bins are for --json."""
    rows = []
    for name, domain in domains.items():
        lengths = {int(top): count for top, count in domain["lengths"].items()}
        edges = (0, *_BINS, max(lengths, default=0) + _BINS[-1])
        counts = [
            sum(count for top, count in lengths.items() if low < top <= high)
            for low, high in pairwise(edges)
        ]
        spread = domain["tokens_per_document"]
        shares = [f"{100 * n / domain['documents']:.1f}%" if n else "-" for n in counts]
        rows.append([name, f"{spread['median']:,}", f"{spread['max']:,}", *shares])
    tops = [f"<={top:,}" for top in _BINS]
    table("tokens per document", ("domain", "median", "longest", *tops, "more"), rows)


def weights(path: str, manifest: Mapping[str, Any]) -> None:
    """Solved weights beside the simple ones, and what the models make of each domain."""
    models = list(manifest["bits_per_byte"])
    rows = []
    for name, domain in manifest["domains"].items():
        bits = [manifest["bits_per_byte"][model][name] for model in models]
        rows.append(
            [
                name,
                f"{domain['weight']:.4f}",
                f"{domain['low']:.4f} - {domain['high']:.4f}",
                *(f"{manifest['baselines'][mix][name]:.4f}" for mix in ("natural", "uniform")),
                *("-" if one is None else f"{one:.3f}" for one in bits),
            ]
        )
    columns = ["domain", manifest["answer"], "interval", "natural", "uniform"]
    columns += [f"{model} bits/byte" for model in models]
    table(f"weights {path}", columns, rows)
    if stages := manifest.get("schedule"):
        print(f"a schedule of {len(stages)} stages, whose mean these weights are")
    if manifest["check"] is not None:
        league(manifest["check"])
        print(f"check: {manifest['check']['verdict']['text']}")
    if manifest["answer"] != manifest["method"]:
        print(f"the weights are those of {manifest['answer']}, as solve.check.on_tie asks")
    for doubt in manifest["doubts"]:
        print(f"doubt: {doubt}")
    if manifest["cost"]["flops"]:
        print(f"cost: {_solve_cost(manifest['cost'])}")


def league(found: Mapping[str, Any]) -> None:
    """Mixes in the order of their bits per byte, each beside the best."""
    mixes = found["mixes"]
    rows = []
    for name, entry in mixes.items():
        low, high = entry["low"], entry["high"]
        interval = "-" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
        rows.append(
            [
                name,
                f"{entry['mean']:.4f}",
                f"{entry['over_best']:+.4f}" if entry["over_best"] else "",
                interval if entry["over_best"] else "",
                f"{entry['worst']:.4f} {entry['worst_domain']}",
                *([_cost(entry["solve_flops"])] if "solve_flops" in entry else []),
            ]
        )
    columns = ["mix", "bits/byte", "over best", "interval", "worst domain"]
    columns += ["solve FLOPs"] if rows and len(rows[0]) > len(columns) else []
    count = len(found["seeds"])
    title = f"{count} seed{'s' if count > 1 else ''} each, the same for all"
    table(f"{found['runs']} runs, {title}", columns, rows)
    domains = next(iter(mixes.values()))["bits_per_byte"]
    cells = [
        [domain, *(_bits(entry["bits_per_byte"][domain]) for entry in mixes.values())]
        for domain in domains
    ]
    table("bits per byte", ("domain", *mixes), cells)


def _solve_cost(cost: Mapping[str, Any]) -> str:
    solve = f"{cost['plain_runs']:.3g} plain runs of the small model, {cost['flops']:.2g} FLOPs"
    return f"{solve}; the check {cost['check']['flops']:.2g}" if "check" in cost else solve


def _cost(flops: float | None) -> str:
    return "unknown" if flops is None else f"{flops:.2g}" if flops else "nothing"


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def mixture(summary: Mapping[str, Any]) -> None:
    """What a mixture holds, and how to open it."""
    rows = []
    for name, domain in summary["domains"].items():
        ledger = summary["ledger"][name]
        left = sum(epoch["left"] for epoch in ledger["epochs"])
        rows.append(
            [
                name,
                f"{domain['weight']:.4f}",
                f"{domain['realised']:.4f}" + (" (capped)" if domain["capped"] else ""),
                f"{domain['rows']:,}",
                f"{domain['tokens']:,}",
                f"{domain['epochs']:.2f}",
                f"{ledger['held_out']:,}",
                f"{left:,}",
                *([f"{ledger['padding']:,}"] if "padding" in ledger else []),
            ]
        )
    columns = ["domain", "asked", "realised", "rows", "tokens", "epochs", "held out", "left"]
    columns += ["padding"] if rows and len(rows[0]) > len(columns) else []
    table(f"mixture {summary['path']}", columns, rows)
    worst, bound = summary["order"]["max_prefix_error"], summary["order"]["bound"]
    print(f"order: at every block's end within {worst:.3f} rows of the weights (bound {bound:.3f})")
    print(f"stream hash: {summary['stream_hash']}")
    for name, entry in summary["formats"].items():
        print(f"\n[{name}]\n{entry['how_to_load'].rstrip()}")


def plan(stages: Sequence[Mapping[str, Any]]) -> None:
    """What a run would do."""
    rows = []
    for stage in stages:
        details = {k: v for k, v in stage["details"].items() if not isinstance(v, dict)}
        text = ", ".join(f"{key.replace('_', ' ')}: {_shown(key, v)}" for key, v in details.items())
        rows.append([stage["stage"], stage["status"], text])
    table("plan", ("stage", "status", ""), rows, words=True)
    for stage in stages:
        if "disk" in stage["details"]:
            taken = stage["details"]["disk"].items()
            table("disk", ("", "at least"), [[name, quantity(n, "B")] for name, n in taken])
        if "domains" in stage["details"]:
            domains = stage["details"]["domains"]
            columns = ("domain", *next(iter(domains.values())))
            shown = [
                [name, *(f"{v:.4f}" if isinstance(v, float) else str(v) for v in entry.values())]
                for name, entry in domains.items()
            ]
            table("domains", columns, shown)


def _shown(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return quantity(value, "B")
        if key.endswith("flops"):
            return f"{value:.2g}"
        return duration(value) if key.endswith("seconds") else f"{value:,.0f}"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def diff(found: Mapping[str, Any]) -> None:
    """What tells two mixtures apart."""
    a, b = found["a"], found["b"]
    rows = [
        [key.replace("_", " "), str(a[key]), str(b[key]), "" if a[key] == b[key] else "differs"]
        for key in a
        if key != "path"
    ]
    table(f"a: {a['path']}\nb: {b['path']}", ("", "a", "b", ""), rows)
    rows = []
    for name, domain in found["domains"].items():
        pair = [domain["a"] or {}, domain["b"] or {}]
        cells = [f"{one[k]:{how}}" if one else "-" for k, how in _COMPARED for one in pair]
        common = ["-" if domain[k] is None else f"{domain[k]:,}" for k in ("common", "in_place")]
        rows.append([name, *cells, *common])
    columns = [f"{key} {side}" for key, _ in _COMPARED for side in "ab"]
    table("domains", ("domain", *columns, "rows in common", "in place"), rows)
    for note in found["notes"]:
        print(note)
    print("equal" if found["equal"] else "not equal")


_COMPARED = (("weight", ".4f"), ("rows", ","), ("epochs", ".2f"))
