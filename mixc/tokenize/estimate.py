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

_SAMPLE_BYTES = 200_000
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
        options = ReadOptions(domain.text, domain.max_document_bytes)
        consumed, texts = _head(mine[0], options)
        size = max(1, sum(len(text.encode(errors="replace")) for text in texts))
        scale = sum(item.bytes for item in mine) / max(consumed, 1)
        if encoder is None:
            tokens[name] = int(scale * size / _BYTES_PER_TOKEN)
            seconds += scale * size / _BYTES_PER_SECOND
        else:
            start = time.perf_counter()
            tokens[name] = int(scale * len(encoder.encode(texts)[0]))
            seconds += scale * (time.perf_counter() - start)
    return Estimate(tokens, seconds)


def _head(item: Input, options: ReadOptions) -> tuple[int, list[str]]:
    """Some first texts of a file, and how many of its bytes were read for them."""
    source, texts, size = Source(item.path, item.name), [], 0
    for record in READERS[item.reader].load().read(source, options):
        if isinstance(record, Record):
            texts.append(record.text)
            size += len(record.text)
            if size >= _SAMPLE_BYTES:
                break
    else:
        return item.bytes, texts
    return _share_read(source, item, size), texts


def _share_read(source: Source, item: Input, size: int) -> int:
    # A reader fetches blocks ahead; plain text cannot have used more bytes than it has letters.
    plain = not item.name.endswith((".gz", ".zst", ".xz", ".parquet"))
    return min(size, item.bytes) if plain else max(1, min(source.consumed, item.bytes))
