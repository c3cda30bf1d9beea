"""The stages of tokenizing, each alone, beside the work of a worker, which is all of them.

    python stages.py CUT_FOLDER TOKENIZER SCRATCH_FOLDER

One process on one core. Prints one JSON object: seconds of each stage, and of a worker that does
the whole, verification of 0.2 % included; they take turns, file by file, so that a change of the
machine's speed hits both. A stage has its input in memory or in the page cache, and does nothing
else; the engines are loaded before, one for the stage and one for the worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.readers.codecs import blocks
from mixc.readers.records import BadRecord, ReadOptions, Record, Source
from mixc.registry import READERS
from mixc.store.hashes import hash_file
from mixc.store.shard import token_dtype
from mixc.tokenize import unit
from mixc.tokenize.encoder import TokenizerFile, Trust, describe
from mixc.tokenize.engines import REFERENCE, Engine, Refused, load_engine, version_of
from mixc.tokenize.inputs import Input, stamp_of
from mixc.tokenize.rules import Rules
from mixc.tokenize.samples import Verifier
from mixc.tokenize.units import PART_BYTES

_OPTIONS = ReadOptions("text", 64_000_000)
_RULES = Rules(_OPTIONS, skip_bad=False, skip_invalid=False, only=(), id=None, split_by=None)
_SHARE = 0.002


def timed(function: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found


def decompress(path: Path) -> None:
    """Unpack a file, by the blocks that the reader uses."""
    for _ in blocks(Source(path, path.name), _OPTIONS):
        pass


def parse(path: Path) -> list[Record | BadRecord]:
    """What the reader finds in a plain file."""
    return list(READERS["jsonl"].load().read(Source(path, path.name), _OPTIONS))


def batches(records: list[Record | BadRecord]) -> Iterator[list[str]]:
    """The texts by about as many bytes as workers take."""
    batch, size = [], 0
    for record in records:
        if not isinstance(record, Record):
            raise SystemExit("the cut has bad records")
        batch.append(record.text)
        size += len(record.text.encode())
        if size >= unit.BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(engine: Engine, texts: list[list[str]]) -> list[NDArray[np.uint32]]:
    """Ids of every batch."""
    return [engine.encode(batch)[0] for batch in texts]


def write(ids: NDArray[Any], scratch: Path) -> None:
    """Write ids, and have them on disk."""
    with scratch.open("wb") as file:
        ids.tofile(file)
        os.fsync(file.fileno())


def engine_of(raw: bytes) -> Engine:
    """The engine that a run prefers."""
    try:
        return load_engine("fastokens", raw, "text")
    except Refused:
        return load_engine("tokenizers", raw, "text")


def task(path: Path, trust: Trust) -> unit.UnitTask:
    """The work on a file as a worker gets it."""
    stamp, digest = stamp_of(path), hash_file(path)
    item = Input("d", path, path.name, "jsonl", path.stat().st_size, digest, stamp=stamp)
    return unit.UnitTask("key", path.name, (item,), _RULES, (0, PART_BYTES), False, trust)


def tokenize(worker: unit.Worker, work: unit.UnitTask) -> None:
    """Make a unit and compare its samples with the reference, one after the other."""
    made = unit.tokenize_unit(worker, work, lambda _: None)
    with Verifier(worker.file, work.trust.engine, 1) as verifier:
        verifier.submit(worker.staging / work.folder, made.samples, lambda: None)
        verifier.finish()


def measure(folder: Path, file: TokenizerFile, scratch: Path) -> tuple[dict[str, float], int, str]:
    """Seconds of each stage and of the worker, over all files; tokens; the engine."""
    engine = engine_of(file.json)
    trust = Trust(engine.name, version_of(engine.name), _SHARE)
    worker = unit.make_worker(file, scratch, engine.name)
    # Engine and reference are loaded before anything is timed.
    expected = file.engine(REFERENCE).encode(["x"])
    unit.try_engine(worker, (trust.engine, ["x"], expected), lambda _: None)
    seconds: defaultdict[str, float] = defaultdict(float)
    tokens = 0

    def whole(packed: Path) -> None:
        work = task(packed, trust)
        seconds["worker"] += timed(tokenize, worker, work)[0]

    for number, packed in enumerate(sorted((folder / "zst").iterdir())):
        if number % 2:
            whole(packed)
        seconds["decompress"] += timed(decompress, packed)[0]
        spent, records = timed(parse, folder / "plain" / packed.with_suffix("").name)
        seconds["parse"] += spent
        spent, found = timed(encode, engine, list(batches(records)))
        seconds["encode"] += spent
        ids = np.concatenate(found).astype(token_dtype(file.vocab_size))
        tokens += len(ids)
        seconds["write"] += timed(write, ids, scratch / "ids")[0]
        del records, found, ids
        if not number % 2:
            whole(packed)
    return seconds, tokens, f"{trust.engine} {trust.version}"


def main() -> None:
    folder, tokenizer, scratch = (Path(argument) for argument in sys.argv[1:])
    scratch.mkdir()
    raw = tokenizer.read_bytes()
    file = describe(raw, eot=None, special_tokens="text", source=tokenizer.name, key="")
    seconds, tokens, engine = measure(folder, file, scratch)
    worker = seconds.pop("worker")
    told = {"seconds": seconds, "worker": worker, "engine": engine, "tokens": tokens}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
