"""What was measured, as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

_BUSY = 0.7  # load at the start, over which the times are worth little
_BUILDERS = "Megatron-LM's loop is its tools/preprocess_data.py written again"


def render(about: dict[str, Any]) -> str:
    """All tables and notes."""
    names = dict.fromkeys(row["tokenizer"] for row in [*about["rows"], *about["stages"]])
    parts = [_about(about)]
    for name in names:
        parts += [f"### {name}", _tools([r for r in about["rows"] if r["tokenizer"] == name])]
        parts += [_stages(one) for one in about["stages"] if one["tokenizer"] == name]
    parts.append("\n".join(f"- {note}" for note in [*_LEGEND, *about["notes"]]))
    return "\n\n".join(part for part in parts if part)


_LEGEND = (
    "wall: the whole command, start-up included, median (best); MB/s: UTF-8 bytes of text by it",
    "pinned to as many cores as processes; at one, Megatron's writer shares the core of its worker",
    "memory: the largest process's resident set at its height, and the whole tree's "
    "proportional sets (PSS), looked at every 0.25 s",
    "ids: documents compared token by token, end-of-text included; dolma strips texts, so only "
    "those without white space at their ends",
    f"{_BUILDERS}, with megatron-core's IndexedDatasetBuilder where it can be installed",
)


def _about(about: dict[str, Any]) -> str:
    machine, cut = about["machine"], about["cut"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']:.0f} GB, "
        f"Python {machine['python']}; load {machine['load']:.1f} at the start, "
        f"{machine['load_after']:.1f} at the end.",
        f"{cut['text_bytes'] / 1e6:.1f} MB of text ({cut['json_bytes'] / 1e6:.1f} MB of JSON), "
        f"{sum(cut['counts']):,} documents of {cut['domains']} domains in {len(cut['counts'])} "
        f"files; {cut['left_out']} left out, as they spell a special token.",
    ]
    lines += busy(machine)
    for name, found in about["versions"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return "\n".join(f"- {line}" for line in lines)


def _tools(rows: list[dict[str, Any]]) -> str:
    titles = ("tool", "processes", "wall s", "MB/s", "CPU s", "largest MB", "tree MB")
    lines = [
        (
            row["tool"],
            row["processes"],
            f"{row['wall']:.2f} ({row['best']:.2f})",
            f"{row['rate']:.1f}",
            f"{row['cpu']:.2f}",
            f"{row['largest_mb']:.0f}",
            f"{row['tree_mb']:.0f}",
            *(f"{row[k]:.1f}x" if row["tool"] != "mixc" else "" for k in ("ratio", "cpu_ratio")),
            _ids(row),
        )
        for row in rows
    ]
    return table((*titles, "to mixc's wall", "to its CPU", "ids"), lines) if rows else ""


def _ids(row: dict[str, Any]) -> str:
    if row["different"]:
        return f"**{row['different']:,} of {row['compared']:,} DIFFER**"
    return f"{row['compared']:,} equal"


def _stages(one: dict[str, Any]) -> str:
    size, seconds = one["bytes"] / 1e6, one["seconds"]
    total = sum(seconds.values())
    lines = [(name, f"{value:.2f}", f"{size / value:.0f}") for name, value in seconds.items()]
    lines.append(("sum of the stages", f"{total:.2f}", f"{size / total:.1f}"))
    worker, shares = one["worker"], one["shares"]
    lines.append(("a worker that does them all", f"{worker:.2f}", f"{size / worker:.1f}"))
    said = (
        f"A worker, its sample of 0.2 % verified, reaches {median(shares):.0%} of that sum's speed "
        f"(median of {len(shares)} runs, file by file in turns; "
        f"{shares[0]:.0%} to {shares[-1]:.0%})."
    )
    title = (f"one core, one stage at a time ({one['engine']})", "s", "MB/s")
    return table(title, lines) + "\n\n" + said


def busy(machine: dict[str, Any]) -> list[str]:
    """A warning, if other work was running."""
    if machine["load"] <= _BUSY:
        return []
    return ["**Other work was running: these numbers must be taken again.**"]


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown."""
    cells = [[str(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1 + (not i)) + ":" * bool(i) for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), rule + "|", *map(line, cells[1:])])
