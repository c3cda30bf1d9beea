"""The stages of tokenizing, each alone, in one process: what the whole can at best cost.

    python stages.py CUT_FOLDER TOKENIZER SCRATCH_FILE

Prints one JSON object: seconds of each stage, the engine, the tokens and their bytes. Every stage
has its input in memory or in the page cache, and does nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.readers.codecs import blocks
from mixc.readers.records import BadRecord, ReadOptions, Record, Source
from mixc.registry import READERS
from mixc.store.shard import token_dtype
from mixc.tokenize.encoder import describe
from mixc.tokenize.engines import Refused, load_engine, version_of

_BATCH_BYTES = 1 << 20


def decompress(files: list[Path]) -> float:
    """Seconds to unpack, by the blocks that the reader uses."""
    options = ReadOptions("text", 64_000_000)
    start = time.perf_counter()
    for path in files:
        for _ in blocks(Source(path, path.name), options):
            pass
    return time.perf_counter() - start


def parse(files: list[Path]) -> tuple[float, list[str]]:
    """Seconds that the reader takes over plain files, and the texts."""
    reader = READERS["jsonl"].load()
    options = ReadOptions("text", 64_000_000)
    texts, seconds = [], 0.0
    for path in files:
        start = time.perf_counter()
        records: list[Record | BadRecord] = list(reader.read(Source(path, path.name), options))
        seconds += time.perf_counter() - start
        texts += [record.text for record in records if isinstance(record, Record)]
        if len(texts) and not all(isinstance(record, Record) for record in records):
            raise SystemExit(f"{path} has bad records")
    return seconds, texts


def batches(texts: list[str]) -> Iterator[list[str]]:
    """The texts by about a megabyte."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text.encode())
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(texts: list[str], raw: str) -> tuple[float, NDArray[np.uint32], str]:
    """Seconds of the engine alone, all ids end to end, and which engine it was."""
    try:
        engine = load_engine("fastokens", raw.encode(), "text")
    except Refused:
        engine = load_engine("tokenizers", raw.encode(), "text")
    cut, found = list(batches(texts)), []
    start = time.perf_counter()
    for batch in cut:
        found.append(engine.encode(batch)[0])
    seconds = time.perf_counter() - start
    return seconds, np.concatenate(found), f"{engine.name} {version_of(engine.name)}"


def write(ids: NDArray[Any], scratch: Path) -> float:
    """Seconds to write the ids, and to have them on disk."""
    start = time.perf_counter()
    with scratch.open("wb") as file:
        ids.tofile(file)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    scratch.unlink()
    return seconds


def main() -> None:
    folder, tokenizer, scratch = (Path(argument) for argument in sys.argv[1:])
    raw = tokenizer.read_text()
    seconds = {"decompress": decompress(sorted((folder / "zst").iterdir()))}
    seconds["parse"], texts = parse(sorted((folder / "plain").iterdir()))
    seconds["encode"], ids, engine = encode(texts, raw)
    known = describe(raw.encode(), eot=None, special_tokens="text", source=tokenizer.name, key="")
    ids = ids.astype(token_dtype(known.vocab_size))
    seconds["write"] = write(ids, scratch)
    print(json.dumps({"seconds": seconds, "engine": engine, "tokens": len(ids)}))


if __name__ == "__main__":
    main()
