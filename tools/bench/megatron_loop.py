"""The loop of Megatron-LM's tools/preprocess_data.py, written again. Runs in an environment with
megatron-core.

    python megatron_loop.py INPUT_JSONL TOKENIZER EOS_ID OUT_PREFIX WORKERS

One pool encodes document by document, `imap` in chunks of 32 lines; the ids are pickled back to one
writer, Megatron's own IndexedDatasetBuilder. Kinder than the original in two ways: the tokenizer is
`tokenizers` itself, without the wrapper of transformers, and of megatron-core one module is
imported, not all. Without megatron-core a plain builder of the same layout stands in. The first
line of output says which builder it is.
"""

import importlib
import importlib.util
import json
import multiprocessing
import struct
import sys
import types
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer


class PlainBuilder:
    """What stands in for IndexedDatasetBuilder: the same calls, the same two files."""

    def __init__(self, path: str, dtype: type[Any]) -> None:
        self.file = Path(path).open("wb")  # noqa: SIM115 (finalize closes it)
        self.dtype = np.dtype(dtype)
        self.lengths: list[int] = []

    def add_document(self, ids: list[int], lengths: list[int]) -> None:
        """Write one document's ids."""
        self.file.write(np.array(ids, self.dtype).tobytes())
        self.lengths += lengths

    def finalize(self, path: str) -> None:
        """Write the index."""
        self.file.close()
        count, code = len(self.lengths), {2: 8, 4: 4}[self.dtype.itemsize]
        starts = [0, *accumulate(self.lengths)][:-1]
        with Path(path).open("wb") as index:
            index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, count, count + 1))
            index.write(np.array(self.lengths, np.int32).tobytes())
            index.write((np.array(starts, np.int64) * self.dtype.itemsize).tobytes())
            index.write(np.arange(count + 1, dtype=np.int64).tobytes())


def megatron_builder() -> Any:
    """IndexedDatasetBuilder, without the imports of the rest of megatron.core."""
    found = importlib.util.find_spec("megatron")
    if found is None or importlib.util.find_spec("torch") is None:
        return None
    for name in ("core", "core.datasets", "core.utils"):
        module = types.ModuleType(f"megatron.{name}")
        folders = [Path(one, *name.split(".")) for one in found.submodule_search_locations or []]
        module.__path__ = [str(folder) for folder in folders]
        module.log_single_rank = None  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
    return importlib.import_module("megatron.core.datasets.indexed_dataset").IndexedDatasetBuilder


class Encoder:
    """Encodes lines in the processes of the pool."""

    tokenizer: Tokenizer

    def __init__(self, path: str, eos: int) -> None:
        self.path, self.eos = path, eos

    def initializer(self) -> None:
        """Load the tokenizer, once a process."""
        Encoder.tokenizer = Tokenizer.from_file(self.path)

    def encode(self, line: str) -> tuple[dict[str, list[int]], dict[str, list[int]], int]:
        """The ids and lengths of a line's text, and how long the line is."""
        text = json.loads(line)["text"]
        ids = list(Encoder.tokenizer.encode(text, add_special_tokens=False).ids)
        if ids:
            ids.append(self.eos)
        return {"text": ids}, {"text": [len(ids)]}, len(line)


def main() -> None:
    source, tokenizer, eos, prefix, workers = sys.argv[1:]
    made = megatron_builder()
    print("megatron-core's IndexedDatasetBuilder" if made else "a plain builder", flush=True)
    size = Tokenizer.from_file(tokenizer).get_vocab_size()
    dtype = np.uint16 if size < 65500 else np.int32
    builder = (made or PlainBuilder)(f"{prefix}.bin", dtype=dtype)
    encoder = Encoder(tokenizer, int(eos))
    with Path(source).open(encoding="utf-8") as lines:
        pool = multiprocessing.Pool(int(workers), initializer=encoder.initializer)
        for ids, lengths, _ in pool.imap(encoder.encode, lines, 32):
            for key in ids:
                builder.add_document(ids[key], lengths[key])
    builder.finalize(f"{prefix}.idx")
    pool.close()
    pool.join()


if __name__ == "__main__":
    main()
