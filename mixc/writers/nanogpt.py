"""nanoGPT: raw uint16 tokens, no header, as `train.bin` and `val.bin`.

nanoGPT maps the file and cuts windows of block_size + 1 from random places of it.
"""

from __future__ import annotations

from mixc.errors import MixcError
from mixc.writers.sequences import Folder, Sequences, StreamSpec


def check(spec: StreamSpec) -> None:
    """Raise MX062 if an id may not fit in uint16."""
    if spec.dtype.itemsize != 2:
        raise MixcError(
            "MX062",
            f"nanogpt holds ids below 65536, the vocabulary has {spec.vocab_size}",
            help="leave nanogpt out of mixture.formats, or use a smaller vocabulary",
        )


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    name = f"{split}.bin"
    folder.link(sequences, name)
    return [name]


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        '# nanoGPT: ln -s "$(realpath PATH)" data/mixc && '
        f"python train.py --dataset=mixc --block_size={spec.seq_len}\n"
        "import numpy as np\n"
        "rows = np.memmap('PATH/train.bin', dtype=np.uint16, mode='r')"
        f".reshape(-1, {spec.seq_len})\n"
    )
