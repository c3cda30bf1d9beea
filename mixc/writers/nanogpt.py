"""nanoGPT: raw uint16 tokens, no header, as `train.bin` and `val.bin`.

nanoGPT maps the file and cuts windows of block_size + 1 from random places of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mixc.writers.sequences import Folder, Sequences, StreamSpec, flat_rows, refuse


def check(spec: StreamSpec) -> None:
    """Raise MX062 if an id may not fit in uint16."""
    refuse("nanogpt", "ids", spec.vocab_size - 1, (1 << 16) - 1)


LINKS = True  # the staged stream is its file, and is not read


def disk_bytes(spec: StreamSpec) -> int:  # noqa: ARG001
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return 0


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    folder.link(sequences.path, f"{split}.bin")
    folder.link(sequences.labels_path, f"{split}.domains")
    return [f"{split}.bin", f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    return flat_rows(files[0], spec, first, count)


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        '# nanoGPT: ln -s "$(realpath PATH)" data/mixc && '
        f"python train.py --dataset=mixc --block_size={spec.seq_len - spec.extra}\n"
        "import numpy as np\n"
        "rows = np.memmap('PATH/train.bin', dtype=np.uint16, mode='r')"
        f".reshape(-1, {spec.seq_len})\n"
    )
