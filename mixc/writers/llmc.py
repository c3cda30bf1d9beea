"""llm.c and modded-nanogpt: shards of tokens, each behind a header of 256 int32.

The header is little-endian: the magic number, the version, the count of tokens, then zeros. Tokens
of uint16 have magic 20240520 and version 1, as GPT-2's; tokens of uint32 have 20240801 and 7, as
Llama 3's, which llm.c's own loader in C does not take. The names are `mixc_train_000000.bin`,
`mixc_val_000000.bin`, for globs such as `mixc_train_*.bin`. A shard holds whole rows; shards are
even, as llm.c refuses a set in which one is smaller than a batch of all processes.

llm.c cuts windows of B*T + 1 tokens at a stride of B*T from the start of a shard, and leaves out
what is left of a shard at its end: with T = seq_len a row is one sequence, and the label of its
last token is the first token of the next row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers.sequences import (
    Folder,
    Sequences,
    StreamSpec,
    copy_tokens,
    refuse,
    rows_across,
)

_KINDS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}
_HEADER_BYTES = 256 * 4
# The header counts tokens in int32, but llm.c also seeks by bytes in int32.
_MOST_TOKENS = ((1 << 31) - 1 - _HEADER_BYTES) // 2
# Large, as llm.c leaves out the end of every shard.
_SHARD_TOKENS = 1 << 29


def check(spec: StreamSpec) -> None:
    """Raise MX062 if a row does not fit in a shard, in which llm.c seeks by int32."""
    refuse("llmc", "rows of tokens", spec.seq_len, _MOST_TOKENS)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files.

    Raises MX062 if a held-out document does not fit in a shard.
    """
    shards = list(sequences.shards(_SHARD_TOKENS))
    for tokens in shards:
        refuse("llmc", "documents of tokens", len(tokens), _MOST_TOKENS)
    files = [
        (f"mixc_{split}_{number:06d}.bin", partial(_shard, tokens=tokens))
        for number, tokens in enumerate(shards)
    ]
    folder.write_many(files)
    folder.link(sequences.labels_path, f"{split}.domains")
    return [*(name for name, _ in files), f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    shards = [path for path in files if path.suffix == ".bin"]
    return rows_across(shards, spec, first, count, header=_HEADER_BYTES)


def _shard(file: StagedFile, tokens: NDArray[Any]) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = (*_KINDS[tokens.dtype], len(tokens))
    file.write(header.tobytes())
    copy_tokens(file, tokens)


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# llm.c: ./train_gpt2cu -i 'PATH/mixc_train_*.bin' -j 'PATH/mixc_val_*.bin'"
        f" -t {spec.seq_len}\n"
        "import glob\n"
        "import numpy as np\n"
        "shards = [\n"
        f"    np.memmap(path, dtype=np.{spec.dtype}, mode='r', offset={_HEADER_BYTES})\n"
        "    for path in sorted(glob.glob('PATH/mixc_train_*.bin'))\n"
        "]\n"
        f"rows = [row for shard in shards for row in shard.reshape(-1, {spec.seq_len})]\n"
    )
