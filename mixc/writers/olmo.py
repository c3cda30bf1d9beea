"""OLMo-core: `<split>/part-00000.npy` of raw tokens, and where its rows lie.

In spite of its name the .npy file has no header: OLMo-core maps it with the type that its
configuration names. `part-00000.csv.gz` beside it, where OLMo-core looks for it, has a line
`start,end,id,src,loc` for each sequence, without a header: `start` and `end` in tokens, the
sequence's number as `id` and `loc`, the name of its domain as `src`. Each split is a folder, so
that a glob such as `train/*.npy` finds one and not the other.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.writers.sequences import Folder, Sequences, StreamSpec, flat_rows, refuse

# OLMo-core numbers instances in uint32 and asserts that they are fewer than its largest number.
_MOST_ROWS = (1 << 32) - 2
_LINES = 1 << 18


def check(spec: StreamSpec) -> None:
    """Raise MX062 if OLMo-core cannot number the rows."""
    refuse("olmo", "rows", spec.rows, _MOST_ROWS)


LINKS = True  # the staged stream is its file, and is not read


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return 4 * spec.rows  # of the sidecar, compressed


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    stem = f"{split}/part-00000"
    folder.link(sequences.path, f"{stem}.npy")
    folder.write(f"{stem}.csv.gz", lambda file: _sidecar(file, sequences))
    folder.link(sequences.labels_path, f"{split}.domains")
    return [f"{stem}.npy", f"{stem}.csv.gz", f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    return flat_rows(files[0], spec, first, count)


def _sidecar(file: StagedFile, sequences: Sequences) -> None:
    names = pa.array(sequences.domains, pa.string())
    # No name and no time in the gzip header: the same rows give the same bytes.
    sink = cast("Any", file)
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=sink, mtime=0) as packed:
        end = 0
        for first in range(0, len(sequences.lengths), _LINES):
            ends = end + np.cumsum(sequences.lengths[first : first + _LINES])
            number = np.arange(first, first + len(ends))
            lines = {
                "start": np.concatenate([[end], ends[:-1]]),
                "end": ends,
                "id": number,
                "src": names.take(pa.array(sequences.labels[number])),
                "loc": number,
            }
            pyarrow.csv.write_csv(pa.table(lines), packed, _PLAIN)
            end = int(ends[-1])


# OLMo-core splits lines at commas and knows no quotes. Names of domains need none.
_PLAIN = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "# OLMo-core shuffles instances by its own seed, unless its data loader is given"
        " shuffle=False.\n"
        "import numpy as np\n"
        "from olmo_core.data.numpy_dataset import NumpyFSLDataset\n"
        "rows = NumpyFSLDataset(\n"
        "    'PATH/train/part-00000.npy',\n"
        f"    sequence_length={spec.seq_len},\n"
        f"    dtype=np.{spec.dtype},\n"
        f"    vocab_size={spec.vocab_size},\n"
        f"    eos_token_id={spec.eot_id},\n"
        f"    pad_token_id={spec.eot_id},\n"
        ")\n"
    )
