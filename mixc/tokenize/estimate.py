"""How many tokens a corpus will make and how long it will take, from its first bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mixc.recipe import Recipe
from mixc.registry import READERS
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.engines import PREFERENCE, Engine, Failed, Refused
from mixc.tokenize.inputs import Input
from mixc.tokenize.rules import Counts, Rules, Text, rules_of, select

_READ_BYTES, _ENCODE_BYTES = 4_000_000, 200_000
# Where no tokenizer exists yet (it will be trained), what byte-level BPE usually gives.
_BYTES_PER_TOKEN, _BYTES_PER_SECOND = 4.0, 1.5e6


@dataclass(frozen=True)
class Estimate:
    """Rough figures: tokens by domain, and seconds on one worker."""

    tokens: dict[str, int]
    seconds: float


def estimate(recipe: Recipe, inputs: Sequence[Input], tokenizer: TokenizerFile | None) -> Estimate:
    """Read the head of each domain's first file, encode it, and scale up by file sizes."""
    engine = None if tokenizer is None else _engine(recipe.tokenizer.engine, tokenizer)
    tokens, seconds = {}, 0.0
    for name, domain in sorted(recipe.domains.items()):
        mine = [item for item in inputs if item.domain == name]
        text_bytes, texts = _head(mine[0], rules_of(domain))
        text_bytes *= sum(item.bytes for item in mine) / max(mine[0].bytes, 1)
        per_token, speed = _measure(engine, texts)
        tokens[name] = int(text_bytes / per_token)
        seconds += text_bytes / speed
    return Estimate(tokens, seconds)


def _engine(name: str, file: TokenizerFile) -> Engine | None:
    """The engine that a run would try first."""
    for candidate in PREFERENCE if name == "auto" else (name,):
        with suppress(Refused):
            return file.engine(candidate)
    return None


def _measure(engine: Engine | None, texts: list[str]) -> tuple[float, float]:
    """Bytes of text per token, and per second."""
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if engine is None or size == 0:
        return _BYTES_PER_TOKEN, _BYTES_PER_SECOND
    start = time.perf_counter()
    try:
        count = len(engine.encode(texts)[0]) + len(texts)
    except Failed:
        return _BYTES_PER_TOKEN, _BYTES_PER_SECOND
    return size / count, size / (time.perf_counter() - start)


def _head(item: Input, rules: Rules) -> tuple[float, list[str]]:
    """About how much text is in a file, and some first texts of it."""
    source, texts, size = item.source(), [], 0
    records = READERS[item.reader].load().read(source, rules.read)
    for found in select(records, rules, Counts()):
        if isinstance(found, Text):
            if size < _ENCODE_BYTES:
                texts.append(found.text)
            size += found.size
            if size >= _READ_BYTES:
                return size * item.bytes / max(source.consumed, 1), texts
    return size, texts
