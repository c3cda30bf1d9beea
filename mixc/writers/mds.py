"""MosaicML Streaming: MDS shards `<split>/shard.00000.mds`, ... and `<split>/index.json`.

A shard is little-endian: uint32 samples, uint32 offsets[samples + 1] from the file's start, the
columns as JSON, then the samples. Columns stand in the order of their names: `domain`, a number,
then `tokens`, an ndarray. Rows have a fixed size; a document is preceded by the size of its
`tokens` as uint32, and these by their number of axes and their shape. The files are those that
MDSWriter writes with `hashes=["xxh64"]`, to the byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers.sequences import Folder, Sequences, StreamSpec, parts, refuse, stacked

_SHARD_BYTES = 1 << 26  # MDSWriter's default
_HASH = "xxh64"
_UINT32_MAX = (1 << 32) - 1
_PIECE_BYTES = 1 << 20


def check(spec: StreamSpec) -> None:
    """Raise MX062 if a row may not fit in a shard, whose offsets are uint32."""
    refuse("mds", "rows of bytes", spec.seq_len * spec.dtype.itemsize, _UINT32_MAX - _SHARD_BYTES)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes + 5 * spec.rows  # an offset and a label each


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    config = _config(sequences)
    text = json.dumps(config, sort_keys=True).encode()
    samples = _shards(sequences, _SHARD_BYTES - 8 - len(text))
    written = folder.write_many(
        (f"{split}/shard.{number:05}.mds", partial(_shard, header=_header(sizes, text), data=data))
        for number, (sizes, data) in enumerate(samples)
    )
    shards = [
        {**config, "raw_data": {"basename": Path(name).name, **raw}, "samples": n, "zip_data": None}
        for name, (n, raw) in written
    ]
    index = json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode()
    folder.write(f"{split}/index.json", lambda file: _put(file, index))
    return [*(name for name, _ in written), f"{split}/index.json"]


def _shard(
    file: StagedFile, header: bytes, data: Iterator[memoryview]
) -> tuple[int, dict[str, Any]]:
    """Write a shard; its samples, its size and its hash, as the index says them."""
    hashed = xxhash.xxh64()
    for piece in chain([memoryview(header)], data):
        hashed.update(piece)
        file.write(piece)
    samples = int.from_bytes(header[:4], "little")
    return samples, {"bytes": file.size, "hashes": {_HASH: hashed.hexdigest()}}


def _put(file: StagedFile, data: bytes) -> None:
    file.write(data)


def _config(sequences: Sequences) -> dict[str, Any]:
    """What every shard says of its columns."""
    kind, width = f"ndarray:{sequences.dtype.name}", None
    if sequences.row_len is not None:
        kind, width = f"{kind}:{sequences.row_len}", sequences.row_len * sequences.dtype.itemsize
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [_HASH],
        "size_limit": _SHARD_BYTES,
        "column_names": ["domain", "tokens"],
        "column_encodings": [sequences.labels.dtype.name, kind],
        "column_sizes": [sequences.labels.dtype.itemsize, width],
    }


def _header(sizes: NDArray[np.int64], text: bytes) -> bytes:
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    offsets += 4 + 4 * len(offsets) + len(text)
    refuse("mds", "shards of bytes", int(offsets[-1]), _UINT32_MAX)
    return struct.pack("<I", len(sizes)) + offsets.astype("<u4").tobytes() + text


def _shards(
    sequences: Sequences, room: int
) -> Iterator[tuple[NDArray[np.int64], Iterator[memoryview]]]:
    """For each shard, the sizes of its samples, int64[n], and their bytes, piece by piece.

    `room` is what the samples and their offsets may take.
    """
    if sequences.row_len is None:
        yield from _shards_of_documents(sequences, room)
        return
    row = sequences.row_len * sequences.dtype.itemsize
    label = sequences.labels.dtype.itemsize
    each = max(1, room // (label + row + 4))
    tokens = sequences.tokens().view(np.uint8).reshape(-1, row)
    labels = np.ascontiguousarray(sequences.labels).view(np.uint8).reshape(-1, label)
    for first in range(0, len(tokens), each):
        part = slice(first, first + each)
        yield np.full(len(tokens[part]), label + row), _rows_of(labels[part], tokens[part])


def _rows_of(labels: NDArray[np.uint8], tokens: NDArray[np.uint8]) -> Iterator[memoryview]:
    """Samples of rows, labels before tokens: hashed and written while a core's cache has them."""
    label, width = labels.shape[1], labels.shape[1] + tokens.shape[1]
    step = max(1, _PIECE_BYTES // width)
    out = np.empty((min(step, len(tokens)), width), np.uint8)
    for first in range(0, len(tokens), step):
        piece = out[: len(tokens[first : first + step])]
        piece[:, :label] = labels[first : first + step]
        piece[:, label:] = tokens[first : first + step]
        yield piece.reshape(-1).data


def _shards_of_documents(
    sequences: Sequences, room: int
) -> Iterator[tuple[NDArray[np.int64], Iterator[memoryview]]]:
    tokens, begin = sequences.tokens(), 0
    samples: list[bytes] = []
    taken = 0
    for length, label in zip(sequences.lengths.tolist(), sequences.labels, strict=True):
        sample = _document(tokens[begin : begin + length], label)
        begin += length
        if samples and taken + len(sample) + 4 > room:
            yield _joined(samples)
            samples, taken = [], 0
        samples.append(sample)
        taken += len(sample) + 4
    if samples:
        yield _joined(samples)


def _joined(samples: list[bytes]) -> tuple[NDArray[np.int64], Iterator[memoryview]]:
    sizes = np.array([len(sample) for sample in samples])
    return sizes, iter([memoryview(b"".join(samples))])


def _document(tokens: NDArray[Any], label: np.generic) -> bytes:
    """A sample whose tokens are an array of one axis, of any length."""
    count = len(tokens)
    code = int(count >= 1 << 8) + int(count >= 1 << 16)  # the length as uint8, uint16 or uint32
    array = bytes([1 << 2 | code]) + count.to_bytes(1 << code, "little") + tokens.tobytes()
    return struct.pack("<I", len(array)) + label.tobytes() + array


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    each = int(np.fromfile(files[0], "<u4", 1)[0])
    return stacked((_rows(files[p], spec, a, b) for p, a, b in parts(first, count, each)), spec)


def _rows(path: Path, spec: StreamSpec, start: int, stop: int) -> NDArray[Any]:
    begin, end = np.fromfile(path, "<u4", 2, offset=4).tolist()
    width = end - begin
    raw = np.fromfile(path, np.uint8, (stop - start) * width, offset=begin + start * width)
    tokens = raw.reshape(-1, width)[:, width - spec.seq_len * spec.dtype.itemsize :]
    return np.ascontiguousarray(tokens)


def how_to_load(spec: StreamSpec) -> str:  # noqa: ARG001
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# rows[i]['tokens'] is a row, rows[i]['domain'] its domain's number in mixture.json.\n"
        "# One canonical node keeps the compiled order on any number of machines.\n"
        "from streaming import StreamingDataset\n"
        "rows = StreamingDataset(local='PATH/train', batch_size=1, shuffle=False,"
        " num_canonical_nodes=1)\n"
    )
