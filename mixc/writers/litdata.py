"""LitData, for its TokensLoader: a folder of chunks and an `index.json` a split.

A chunk is little-endian: uint32 items, uint32 offsets[items + 1], then the items' bytes. We write
one item a chunk, behind a header of 12 bytes, so that tokens lie flat. The loader cuts blocks from
each chunk and drops what is left at its end, so a chunk holds whole rows.

There is no uint32: ids below 2^31 have the same bytes as int32.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
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

# The numbers that LitData gives to torch.uint16 and torch.int32.
_CODES = {np.dtype(np.uint16): 20, np.dtype(np.uint32): 15}
_HEADER_BYTES = 12
_INT32_MAX = (1 << 31) - 1
_MOST_BYTES = (1 << 32) - 1 - _HEADER_BYTES
_CHUNK_TOKENS = 1 << 25
_ONE_TENSOR = json.dumps([1, {"type": None, "context": None, "children_spec": []}])


def check(spec: StreamSpec) -> None:
    """Raise MX062 if a row does not fit in a chunk, or an id may not fit in int32."""
    refuse("litdata", "rows of bytes", spec.seq_len * spec.dtype.itemsize, _MOST_BYTES)
    refuse("litdata", "ids", spec.vocab_size - 1, _INT32_MAX)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files.

    Raises MX062 if a held-out document does not fit in a chunk.
    """
    chunks: list[dict[str, Any]] = []
    files = []
    for number, tokens in enumerate(sequences.shards(_CHUNK_TOKENS)):
        refuse("litdata", "documents of bytes", tokens.nbytes, _MOST_BYTES)
        chunk = {
            "chunk_bytes": _HEADER_BYTES + tokens.nbytes,
            "chunk_size": 1,
            "dim": len(tokens),
            "filename": f"chunk-0-{number}.bin",
        }
        files.append((f"{split}/{chunk['filename']}", partial(_chunk, tokens=tokens)))
        chunks.append(chunk)
    digest = xxhash.xxh3_128()
    for _, written in folder.write_many(files):
        digest.update(written.encode())
    index = _index(chunks, sequences.dtype, digest.hexdigest())
    folder.write(f"{split}/index.json", partial(_write_json, value=index))
    folder.link(sequences.labels_path, f"{split}.domains")
    return [*(name for name, _ in files), f"{split}/index.json", f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    chunks = [path for path in files if path.suffix == ".bin"]
    return rows_across(chunks, spec, first, count, header=_HEADER_BYTES)


def _chunk(file: StagedFile, tokens: NDArray[Any]) -> str:
    """Fill a chunk; its hash."""
    file.write(struct.pack("<III", 1, _HEADER_BYTES, _HEADER_BYTES + tokens.nbytes))
    copy_tokens(file, tokens)
    return file.record("").xxh3


def _index(chunks: list[dict[str, Any]], dtype: np.dtype[Any], digest: str) -> dict[str, Any]:
    config = {
        "chunk_bytes": None,
        "chunk_size": _CHUNK_TOKENS,
        "compression": None,
        "data_format": [f"no_header_tensor:{_CODES[dtype]}"],
        "data_spec": _ONE_TENSOR,
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    # LitData keeps chunks of a URL until this changes. A hash, and no time, repeats with the bytes.
    return {"chunks": chunks, "config": config, "updated_at": digest}


def _write_json(file: StagedFile, value: Any) -> None:
    file.write(json.dumps(value).encode())


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# LitGPT: litgpt pretrain ... --data LitData --data.data_path PATH"
        f" --data.split_names '[train, val]' --train.max_seq_length {spec.seq_len - 1}\n"
        f"# It reads one token more than its max_seq_length: {spec.seq_len - 1} gives the rows of"
        f" {spec.seq_len} tokens.\n"
        "from litdata import StreamingDataset, TokensLoader\n"
        "rows = StreamingDataset(\n"
        f"    'PATH/train', item_loader=TokensLoader(block_size={spec.seq_len}), shuffle=False\n"
        ")\n"
    )
