"""The plan of tokenizing: inputs to chains of units, cut by their content alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import xxhash

from mixc.engine.schedule import Chain
from mixc.store.hashes import key_of
from mixc.tokenize.encoder import TokenizerFile, Trust
from mixc.tokenize.inputs import HUB, Input
from mixc.tokenize.rules import Rules
from mixc.tokenize.staged import SHARD_BYTES
from mixc.tokenize.unit import UnitTask

ALGORITHM = 3  # a change of what shards hold, from the same inputs and options, raises it
PART_BYTES = 64 << 20  # of a large file's content
_LARGE_BYTES, _BUNDLE_BYTES, _BUNDLE_FILES = 4 << 20, 8 << 20, 64


def plan_units(
    inputs: list[Input],
    rules: Rules,
    *,
    allow_empty: bool,
    tokenizer: TokenizerFile,
    trust: Trust,
    prepare: Callable[[UnitTask], None],
) -> list[Chain[UnitTask]]:
    """Chains of one domain's units: a large file part by part, neighbouring small files together.

    `prepare` sees each task before it is handed out.
    """
    chains = []
    twins: Counter[str] = Counter()
    for bundle in _bundles(inputs):
        large = is_large(bundle[0])
        key = _key(bundle, rules, tokenizer)
        # Two units of equal bytes stage apart, so that two workers never share a folder.
        twin, twins[key] = twins[key], twins[key] + 1
        stem = f"{bundle[0].domain}.{twin}.{key}"

        def task(
            n: int, *, bundle: tuple[Input, ...] = tuple(bundle), key: str = key, stem: str = stem
        ) -> UnitTask:
            part = (n * PART_BYTES, (n + 1) * PART_BYTES) if is_large(bundle[0]) else None
            made = UnitTask(f"{key}.{n}", f"{stem}.{n}", bundle, rules, part, allow_empty, trust)
            prepare(made)
            return made

        size = sum(item.bytes for item in bundle)
        chains.append(Chain(task, size, length=None if large else 1))
    return chains


def useful_workers(inputs: Sequence[Input]) -> int:
    """More workers than this would only start up: text packs to about a third, rarely to less
    than a tenth. `inputs` are sorted by domain.
    """
    domains = (list(mine) for _, mine in groupby(inputs, key=attrgetter("domain")))
    bundles = [bundle for mine in domains for bundle in _bundles(mine)]
    large = [bundle[0] for bundle in bundles if is_large(bundle[0])]
    return max(1, len(bundles) + sum(10 * item.bytes // PART_BYTES for item in large))


def is_large(item: Input) -> bool:
    """Whether a file is read part by part: it alone may keep several workers busy."""
    return item.bytes >= _LARGE_BYTES or item.reader == HUB


def _bundles(inputs: list[Input]) -> list[list[Input]]:
    """Cuts fall at large files and where a name's hash says so, about twice in the most that a
    bundle holds: a file more moves few of them.
    """
    bundles: list[list[Input]] = []
    size, last_large = 0, True
    for item in inputs:
        large = is_large(item)
        apart = min(_BUNDLE_FILES, _BUNDLE_BYTES // (2 * max(item.bytes, 1)))  # marks, in files
        marked = _hash_of(item.name) % max(apart, 1) == 0
        if large or last_large or marked or size + item.bytes > _BUNDLE_BYTES:
            bundles.append([])
            size = 0
        bundles[-1].append(item)
        size += item.bytes
        last_large = large
    return bundles


def _hash_of(name: str) -> int:
    """Of any name that a file has: not all are UTF-8."""
    return xxhash.xxh3_64_intdigest(name.encode(errors="surrogateescape"))


def _key(inputs: list[Input], rules: Rules, tokenizer: TokenizerFile) -> str:
    return key_of(
        {
            "algorithm": ALGORITHM,
            "inputs": [
                [item.reader, Path(item.name).suffixes[-2:], item.digest] for item in inputs
            ],
            "tokenizer": [tokenizer.sha256, tokenizer.eot_id, tokenizer.special_tokens],
            "rules": rules.as_key(),
            "cuts": [SHARD_BYTES, PART_BYTES],
        }
    )
