"""Runs made elsewhere: a file of mixes and a file of metrics, as RegMix and Olmix write them.

Both are CSV with a header. A column named index, run or run_id says which run a row is of; columns
named name and run are for people where there is an index. All others are domains, or metrics.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, Place, did_you_mean

Real = NDArray[np.float64]

_KEYS = ("index", "run_id", "run", "name")  # the first that is there tells runs apart
_PREFIX = "train_"  # RegMix puts it before each domain
_LEAST = 1e-100  # of less than that, or more than its inverse, squares are 0 or without end
_OFF = 0.02  # by how much a row of mixes may miss a sum of 1: they are often rounded to 3 digits


@dataclass(frozen=True)
class SwarmRuns:
    """n runs: ratios float64[n, K] in the order of the domains, metrics float64[n, m]."""

    ratios: Real
    metrics: Real
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: tuple[str, ...]
    rows: dict[str, Real]  # by the run's key, in the file's order
    lines: dict[str, int]


def read_swarm(ratios: Path, metrics: Path, domains: Sequence[str]) -> SwarmRuns:
    """Read both files; runs come in the order of `ratios`.

    A row of ratios that sums to 1 within 0.02 is scaled to 1. A ratio below 1e-100, as draws from a
    Dirichlet distribution have them, counts as 0. Raises MX041 for a file that is missing; MX034,
    with file and line, for what is no table of finite numbers, a ratio below 0, a sum that is off,
    a run that stands twice or in one file alone; MX061 for domains that do not match.
    """
    mixes, scores = _read(ratios), _read(metrics)
    for here, there in ((mixes, scores), (scores, mixes)):
        if missing := [key for key in here.rows if key not in there.rows]:
            message = f"run '{missing[0]}' is not in '{there.path.name}'"
            if len(missing) > 1:
                message += f", nor are {len(missing) - 1} more"
            raise _wrong(here, missing[0], message, "the files must hold the same runs")
    for key, values in scores.rows.items():
        tiny = (values != 0) & (np.abs(values) < _LEAST)
        if tiny.any():
            column, value = scores.columns[int(tiny.argmax())], values[tiny][0]
            raise _wrong(scores, key, f"column '{column}': '{value:g}' cannot be fitted", None)
    columns = _columns(mixes, domains)
    found = np.array([_mix(mixes, key) for key in mixes.rows])[:, columns]
    return SwarmRuns(found, np.array([scores.rows[key] for key in mixes.rows]), scores.columns)


def _read(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        message = "there is no such file of runs"
        raise MixcError("MX041", message, place=Place(str(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MixcError("MX027", f"cannot read it: {error}", place=Place(str(path))) from error
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        table = _header(path, header)
        key = header.index(next(name for name in _KEYS if name in header))
        for row in reader:
            if row:
                _add(table, header, key, row, reader.line_num)
    except csv.Error as error:
        place = Place(str(path), reader.line_num)
        raise MixcError("MX034", f"not valid CSV: {error}", place=place) from error
    if not table.rows:
        raise MixcError("MX034", "it holds no run", place=Place(str(path)))
    return table


def _header(path: Path, header: list[str]) -> _Table:
    place = Place(str(path), 1)
    if not any(name in header for name in _KEYS):
        hint = "its header must name one of: " + ", ".join(_KEYS)
        raise MixcError("MX034", "no column tells the runs apart", place=place, help=hint)
    columns = tuple(name for name in header if name not in _KEYS)
    twice = next((name for name in header if header.count(name) > 1), None)
    if not columns or twice is not None or not all(header):
        what = f"the column '{twice}' stands twice" if twice else "a column has no name"
        message = what if columns else "it has no column of numbers"
        raise MixcError("MX034", message, place=place)
    return _Table(path, columns, {}, {})


def _add(table: _Table, header: list[str], key: int, row: list[str], line: int) -> None:
    place = Place(str(table.path), line)
    if len(row) != len(header):
        message = f"{len(row)} fields, where the header has {len(header)}"
        raise MixcError("MX034", message, place=place)
    name = row[key].strip()
    if not name or name in table.rows:
        message = f"run '{name}' stands twice" if name else "the run has no index"
        raise MixcError("MX034", message, place=place)
    values = []
    for column, field in zip(header, row, strict=True):
        if column in _KEYS:
            continue
        try:
            value = float(field)
        except ValueError:
            value = np.nan
        if not abs(value) <= 1 / _LEAST:
            message = f"column '{column}': {field!r:.40} is not a number that can be fitted"
            raise MixcError("MX034", message, place=place, help="leave out runs that diverged")
        values.append(value)
    table.rows[name], table.lines[name] = np.array(values), line


def _mix(table: _Table, key: str) -> Real:
    mix = table.rows[key]
    if (mix < 0).any():
        column = table.columns[int(mix.argmin())]
        raise _wrong(table, key, f"column '{column}': a ratio of {mix.min():g} is below 0", None)
    if abs(mix.sum() - 1) > _OFF:
        raise _wrong(table, key, f"the ratios sum to {mix.sum():.6g}, not to 1", None)
    return np.asarray(np.where(mix < _LEAST, 0.0, mix) / mix.sum(), np.float64)


def _columns(table: _Table, domains: Sequence[str]) -> list[int]:
    """Where each domain's column is."""
    bare = [name.removeprefix(_PREFIX) if name not in domains else name for name in table.columns]
    place = Place(str(table.path), 1)
    for name, written in zip(bare, table.columns, strict=True):
        if name not in domains:
            hint = did_you_mean(name, list(domains))
            message = f"unknown domain '{written}'"
            raise MixcError("MX061", message, place=place, help=hint)
    for domain in domains:
        if bare.count(domain) != 1:
            what = "stands twice" if domain in bare else "is missing"
            raise MixcError("MX061", f"the domain '{domain}' {what}", place=place)
    return [bare.index(domain) for domain in domains]


def _wrong(table: _Table, key: str, message: str, hint: str | None) -> MixcError:
    place = Place(str(table.path), table.lines[key])
    return MixcError("MX034", message, place=place, help=hint)
