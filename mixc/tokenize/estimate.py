"""How many tokens a corpus will make and how long it will take, from its first bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mixc.readers.records import ReadOptions, Record, Source
from mixc.recipe import Recipe
from mixc.registry import READERS
from mixc.tokenize.encoder import Encoder, TokenizerFile
from mixc.tokenize.inputs import Input
from mixc.tokenize.unit import read_options

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
    encoder = None if tokenizer is None else Encoder(tokenizer)
    tokens, seconds = {}, 0.0
    for name, domain in sorted(recipe.domains.items()):
        mine = [item for item in inputs if item.domain == name]
        options = read_options(domain)
        text_bytes, texts = _head(mine[0], options)
        text_bytes *= sum(item.bytes for item in mine) / max(mine[0].bytes, 1)
        per_token, speed = _measure(encoder, texts)
        tokens[name] = int(text_bytes / per_token)
        seconds += text_bytes / speed
    return Estimate(tokens, seconds)


def _measure(encoder: Encoder | None, texts: list[str]) -> tuple[float, float]:
    """Bytes of text per token, and per second."""
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if encoder is None or size == 0:
        return _BYTES_PER_TOKEN, _BYTES_PER_SECOND
    start = time.perf_counter()
    count = len(encoder.encode(texts)[0])
    return size / count, size / (time.perf_counter() - start)


def _head(item: Input, options: ReadOptions) -> tuple[float, list[str]]:
    """About how much text is in a file, and some first texts of it."""
    source, texts, size = Source(item.path, item.name), [], 0
    for record in READERS[item.reader].load().read(source, options):
        if isinstance(record, Record):
            if size < _ENCODE_BYTES:
                texts.append(record.text)
            size += len(record.text.encode(errors="replace"))
            if size >= _READ_BYTES:
                return size * item.bytes / max(source.consumed, 1), texts
    return size, texts
