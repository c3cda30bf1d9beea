"""Progress for people, on stderr: a bar with rate and time left, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LINE_EVERY_SECONDS = 5.0


class Task(Protocol):
    """A piece of work of known size."""

    def advance(self, amount: float, note: str = "") -> None:
        """Say that `amount` more units are done; `note` replaces the text beside the bar."""


_quiet = False


@contextmanager
def muted(quiet: bool) -> Iterator[None]:
    """While the block runs, say nothing if `quiet`: of processes that work together one tells."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def say(message: str) -> None:
    """A line for people."""
    if _quiet:
        return
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


@contextmanager
def task(label: str, total: float, unit: str, *, quiet: bool = False) -> Iterator[Task]:
    """Show work of `total` units (`unit` is "B", "tokens", "rows", ...) while the block runs.

    `quiet` shows nothing, as for a small piece of work in the midst of another.
    """
    if quiet:
        yield _Unseen()
    elif sys.stderr.isatty() and not _quiet:
        with _bar(label, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(label, total, unit)
        yield lines
        lines.close()


def quantity(value: float, unit: str) -> str:
    """`12.3 MB`, `4.56M tokens`, `78 rows`."""
    for scale, prefix in ((1e12, "T"), (1e9, "G" if unit == "B" else "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            number = f"{value / scale:.3g}"
            return f"{number} {prefix}B" if unit == "B" else f"{number}{prefix} {unit}"
    return f"{value:.3g} {unit}" if value != int(value) else f"{int(value)} {unit}"


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _Unseen:
    """A piece of work that is not shown."""

    def advance(self, amount: float, note: str = "") -> None:
        pass


class _Lines:
    """Progress as plain lines, one every few seconds."""

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0.0, ""
        self.start = self.last = time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.last >= _LINE_EVERY_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            left = duration((self.total - self.done) / rate) if rate > 0 else "?"
            share = f"{100 * self.done / self.total:.0f}%" if self.total else "100%"
            speed = f"{quantity(rate, self.unit)}/s"
            say(f"{self.label}: {share}, {speed}, {left} left {self.note}".rstrip())

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        rate = quantity(self.done / seconds, self.unit) if seconds > 0 else "-"
        say(f"{self.label}: {quantity(self.done, self.unit)} in {duration(seconds)} ({rate}/s)")


@contextmanager
def _bar(label: str, total: float, unit: str) -> Iterator[Task]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]:>18}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar_id = progress.add_task(label, total=total, rate="", note="")
        start = time.monotonic()

        class _Bar:
            done = 0.0

            def advance(self, amount: float, note: str = "") -> None:
                self.done += amount
                rate = self.done / max(time.monotonic() - start, 1e-9)
                fields = {"rate": f"{quantity(rate, unit)}/s"}
                if note:
                    fields["note"] = note
                progress.update(bar_id, advance=amount, **fields)  # type: ignore[arg-type]

        yield _Bar()
