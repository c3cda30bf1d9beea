"""WebDataset: USTAR shards `<split>-000000.tar`, ..., two members a row.

`000000000000.tok` is the row's tokens, raw and little-endian; `000000000000.cls` the number of its
domain as decimal text, which the reader's `decode` makes an int. The number in a name counts the
split's sequences. Headers hold neither times nor owners, so the same rows give the same bytes. A
shard ends with two empty blocks, as the standard asks (POSIX.1-1988, ustar).

A row takes 1536 bytes more than its tokens, and at most 511 of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers.sequences import Folder, Sequences, StreamSpec, refuse

Index = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_BLOCK = 512
_DIGITS = 12
_MOST_BYTES = 8**11 - 1  # a size is eleven octal digits
# Shards are what nodes and workers are dealt, so there must be many.
_SHARD_TOKENS = 1 << 26
_PIECE_TOKENS = 1 << 20


def check(spec: StreamSpec) -> None:
    """Raise MX062 if a row is over the size of a member, or rows over the digits of a name."""
    refuse("webdataset", "rows of bytes", spec.seq_len * spec.dtype.itemsize, _MOST_BYTES)
    refuse("webdataset", "rows", spec.rows, 10**_DIGITS)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return int(3 * _BLOCK + _padded(spec.seq_len * spec.dtype.itemsize)) * spec.rows


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    files: list[tuple[str, Callable[[StagedFile], None]]] = []
    for first, ends, tokens in sequences.runs(_SHARD_TOKENS):
        labels = sequences.labels[first : first + len(ends)]
        fill = partial(_shard, first=first, tokens=tokens, labels=labels, ends=ends)
        files.append((f"{split}-{len(files):06d}.tar", fill))
    folder.write_many(files)
    folder.link(sequences.labels_path, f"{split}.domains")
    return [*(name for name, _ in files), f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    width = spec.seq_len * spec.dtype.itemsize
    stride = 3 * _BLOCK + _padded(width)
    found = [np.empty((0, spec.seq_len), spec.dtype)]
    for path in (path for path in files if path.suffix == ".tar"):
        held = path.stat().st_size // stride  # what ends a shard is shorter than a row
        if count and first < held:
            raw = np.fromfile(
                path, np.uint8, min(count, held - first) * stride, offset=first * stride
            ).reshape(-1, stride)
            rows = np.ascontiguousarray(raw[:, _BLOCK : _BLOCK + width])
            found.append(rows.view(spec.dtype))
            count -= len(rows)
        first = max(0, first - held)
    return np.concatenate(found)


def _shard(
    file: StagedFile, first: int, tokens: NDArray[Any], labels: NDArray[Any], ends: Index
) -> None:
    """Write a shard of sequences that end at `ends` in `tokens`, the first of number `first`."""
    number = begin = 0
    while number < len(ends):
        stop = max(number + 1, int(np.searchsorted(ends, begin + _PIECE_TOKENS, side="right")))
        lengths = np.diff(ends[number:stop], prepend=begin)
        end = int(ends[stop - 1])
        raw = np.ascontiguousarray(tokens[begin:end]).view(np.uint8)
        sizes = lengths * tokens.itemsize
        file.write(_members(first + number, raw, sizes, labels[number:stop]).data)
        number, begin = stop, end
    file.write(bytes(2 * _BLOCK))


def _members(first: int, raw: Bytes, sizes: Index, labels: NDArray[Any]) -> Bytes:
    """The members of sequences from number `first` on, whose bytes lie in `raw`, end to end."""
    strides = 3 * _BLOCK + _padded(sizes)
    starts = np.cumsum(strides) - strides
    numbers = np.arange(first, first + len(sizes))
    text = np.char.mod("%d", np.arange(int(labels.max()) + 1)).astype("S8")[labels]
    out = np.zeros(int(strides.sum()), np.uint8)
    blocks = out.reshape(-1, _BLOCK)
    last = (starts + strides) // _BLOCK - 1
    blocks[starts // _BLOCK] = _headers(numbers, b".tok", sizes)
    blocks[last - 1] = _headers(numbers, b".cls", np.char.str_len(text))
    blocks[last, :8] = text.view(np.uint8).reshape(-1, 8)
    if len(set(sizes.tolist())) == 1:
        size = int(sizes[0])
        out.reshape(len(sizes), -1)[:, _BLOCK : _BLOCK + size] = raw.reshape(-1, size)
        return out
    begin = 0
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        out[start + _BLOCK : start + _BLOCK + size] = raw[begin : begin + size]
        begin += size
    return out


def _headers(numbers: Index, suffix: bytes, sizes: Index) -> Bytes:
    """The header blocks of plain files, uint8[n, 512]."""
    out = np.zeros((len(numbers), _BLOCK), np.uint8)
    out[:, :_DIGITS] = _digits(numbers, 10, _DIGITS)
    for place, text in (
        (_DIGITS, suffix),
        (100, b"0000644\0"),  # mode
        (108, b"0000000\0"),  # user
        (116, b"0000000\0"),  # group
        (136, b"00000000000\0"),  # time
        (148, b" " * 8),  # checksum, while it is counted
        (156, b"0"),  # a plain file
        (257, b"ustar\x0000"),
    ):
        out[:, place : place + len(text)] = np.frombuffer(text, np.uint8)
    out[:, 124:135] = _digits(sizes, 8, 11)
    varied = out[:, :_DIGITS].sum(axis=1) + out[:, 124:135].sum(axis=1)
    out[:, 148:154] = _digits(int(out[0, _DIGITS:124].sum() + out[0, 135:].sum()) + varied, 8, 6)
    out[:, 154] = 0
    return out


def _digits(numbers: Index, base: int, count: int) -> Bytes:
    """Numbers in `count` digits of ASCII, uint8[n, count]."""
    powers = base ** np.arange(count - 1, -1, -1)
    return (numbers[:, None] // powers % base + ord("0")).astype(np.uint8)


def _padded(size: Any) -> Any:
    """Sizes up to the next whole block."""
    return -(-size // _BLOCK) * _BLOCK


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# Shards are dealt to nodes and workers; rows keep their order inside a shard. The member"
        " 'cls'\n"
        "# is the number of the row's domain in mixture.json.\n"
        "import glob\n"
        "import numpy as np\n"
        "from webdataset import WebDataset\n"
        "samples = WebDataset(sorted(glob.glob('PATH/train-*.tar')), shardshuffle=False)\n"
        f"rows = [np.frombuffer(sample['tok'], np.{spec.dtype}) for sample in samples]\n"
    )
