"""datatrove and nanotron: `<split>/<split>.ds` of raw tokens, and where its rows end.

`.ds.index` beside it has the end of each sequence in tokens, uint64, little-endian, without a
header; `.ds.metadata` three lines of text: the tokenizer and the bytes of a token, the count of
tokens, and the count once more with its unit. Each split is a folder: the reader takes every .ds
file that it finds under one.

The reader takes windows of seq_len + 1 tokens at a stride of seq_len + 1. Told a seq_len of one
less than the mixture's, it gives our rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError
from mixc.store.commit import StagedFile
from mixc.writers.sequences import Folder, Sequences, StreamSpec, flat_rows

_CHUNK = 1 << 20


def check(spec: StreamSpec) -> None:
    """Raise MX062 if rows are of one token: a window then has nothing to predict."""
    if spec.seq_len < 2:
        raise MixcError(
            "MX062",
            f"datatrove holds rows of at least 2 tokens, and {spec.seq_len} does not fit",
            help="leave datatrove out of mixture.formats, or raise mixture.seq_len",
        )


LINKS = True  # the staged stream is its file, and is not read


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return 8 * spec.rows  # the index


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    name = f"{split}/{split}.ds"
    folder.link(sequences.path, name)
    folder.write(f"{name}.index", lambda file: _index(file, sequences))
    folder.write(f"{name}.metadata", lambda file: _metadata(file, sequences))
    folder.link(sequences.labels_path, f"{split}.domains")
    return [name, f"{name}.index", f"{name}.metadata", f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    return flat_rows(files[0], spec, first, count)


def _index(file: StagedFile, sequences: Sequences) -> None:
    end = 0
    for first in range(0, len(sequences.lengths), _CHUNK):
        ends = end + np.cumsum(sequences.lengths[first : first + _CHUNK])
        file.write(ends.astype("<u8").tobytes())
        end = int(ends[-1])


def _metadata(file: StagedFile, sequences: Sequences) -> None:
    tokens = int(sequences.lengths.sum())
    file.write(f"mixc|{sequences.dtype.itemsize}\n{tokens}\n{tokens} T".encode())


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        f"# The reader adds one to seq_len: {spec.seq_len - 1} gives the rows of {spec.seq_len}"
        " tokens.\n"
        "from datatrove.utils.dataset import DatatroveFolderDataset\n"
        "rows = DatatroveFolderDataset(\n"
        f"    'PATH/train', seq_len={spec.seq_len - 1}, token_size={spec.dtype.itemsize}\n"
        ")\n"
    )
