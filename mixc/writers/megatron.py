r"""Megatron-LM's IndexedDataset: `<split>.bin` of raw tokens and `<split>.idx`.

The index is little-endian and unaligned: b"MMIDIDX\0\0", uint64 version 1, uint8 dtype code,
uint64 sequences, uint64 documents + 1, int32 lengths[sequences], int64 byte offsets[sequences],
int64 documents[documents + 1]. Each of our rows is one sequence and one document.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers.sequences import Folder, Sequences, StreamSpec, flat_rows, refuse

_MAGIC = b"MMIDIDX\x00\x00"
# Megatron has no uint32; ids below 2^31 have the same bytes as int32.
_CODES = {np.dtype(np.uint16): 8, np.dtype(np.uint32): 4}
_INT32_MAX = (1 << 31) - 1
_CHUNK = 1 << 20


def check(spec: StreamSpec) -> None:
    """Raise MX062 if a length, a count of documents or an id may not fit in int32."""
    refuse("megatron", "rows of tokens", spec.seq_len, _INT32_MAX)
    refuse("megatron", "rows", spec.rows, _INT32_MAX)
    refuse("megatron", "ids", spec.vocab_size - 1, _INT32_MAX)


LINKS = True  # the staged stream is its file, and is not read


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return 20 * spec.rows  # the index


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    folder.link(sequences.path, f"{split}.bin")
    folder.write(f"{split}.idx", lambda file: _index(file, sequences))
    folder.link(sequences.labels_path, f"{split}.domains")
    return [f"{split}.bin", f"{split}.idx", f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    return flat_rows(files[0], spec, first, count)


def _index(file: StagedFile, sequences: Sequences) -> None:
    lengths, code = sequences.lengths, _CODES[sequences.dtype]
    count = len(lengths)
    file.write(_MAGIC + struct.pack("<QBQQ", 1, code, count, count + 1))
    starts = range(0, count, _CHUNK)
    for start in starts:
        file.write(lengths[start : start + _CHUNK].astype("<i4").tobytes())
    offset = 0
    for start in starts:
        ends = offset + np.cumsum(lengths[start : start + _CHUNK]) * sequences.dtype.itemsize
        file.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
        offset = int(ends[-1])
    for start in range(0, count + 1, _CHUNK):
        file.write(np.arange(start, min(start + _CHUNK, count + 1), dtype="<i8").tobytes())


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# Megatron-LM: --train-data-path PATH/train --valid-data-path PATH/val"
        f" --seq-length {spec.seq_len} --train-samples {spec.rows - 1} --data-cache-path CACHE"
        " --dataloader-type single\n"
        f"# Each row is one document of {spec.seq_len} tokens: Megatron shuffles rows by its own"
        " seed and keeps them whole.\n"
        "# To keep the compiled order, let Megatron make its index by tools/prepare_cache.py, or"
        " by a start with\n"
        "# --exit-interval 1; then run mixc megatron-cache PATH/.. CACHE, and train with"
        " --dataloader-fast-cache-load.\n"
        "# In Python: GPTDatasetConfig(random_seed=1234, blend_per_split=[(['PATH/train'], None),"
        " None, None],\n"
        f"# sequence_length={spec.seq_len}, add_extra_token_to_sequence=False,"
        " path_to_cache=CACHE, fast_cache_load=True, ...)\n"
        f"# asked for {spec.rows} samples gives each row once; with the extra token, Megatron's"
        f" default, ask for {spec.rows - 1}.\n"
        "from megatron.core.datasets.indexed_dataset import IndexedDataset\n"
        "rows = IndexedDataset('PATH/train', mmap=True)\n"
    )
