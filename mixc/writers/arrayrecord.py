"""ArrayRecord, for grain and MaxText: `<split>-000000.array_record`, ..., a record a row.

A record is the row's tokens, raw and little-endian. Each is a group of its own, which grain's
random access needs, and uncompressed: tokens hardly compress. The files are written and read by
the `array_record` package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.writers.sequences import Folder, Sequences, StreamSpec

# One thread: more would only queue up rows in memory.
_WRITER = "group_size:1,uncompressed,max_parallelism:1"
_READER = "readahead_buffer_size:0,max_parallelism:0"
# A reader holds where each record of a file begins, so files are not too large.
_SHARD_TOKENS = 1 << 28


def check(spec: StreamSpec) -> None:  # noqa: ARG001
    """Raise MX037 if the package is not installed; it holds whatever there is."""
    _library()


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes + 96 * spec.rows  # a chunk each


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    names: list[str] = []
    for _, ends, tokens in sequences.runs(_SHARD_TOKENS):
        names.append(f"{split}-{len(names):06d}.array_record")
        folder.write_by_path(names[-1], partial(_shard, tokens=tokens, ends=ends))
    folder.link(sequences.labels_path, f"{split}.domains")
    return [*names, f"{split}.domains"]


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    library, records = _library(), []
    for path in (path for path in files if path.suffix == ".array_record"):
        with _faults("MX040", path):
            reader = library.ArrayRecordReader(str(path), _READER)
            held = reader.num_records()
            if count and first < held:
                records += reader.read(first, min(held, first + count))
                count -= min(held, first + count) - first
            reader.close()
        first = max(0, first - held)
    return np.frombuffer(b"".join(records), spec.dtype).reshape(-1, spec.seq_len)


def _shard(path: Path, tokens: NDArray[Any], ends: NDArray[np.int64]) -> None:
    with _faults("MX043", path):
        writer = _library().ArrayRecordWriter(str(path), _WRITER)
        begin = 0
        for end in ends.tolist():
            writer.write(tokens[begin:end].tobytes())
            begin = end
        writer.close()  # what failed before is said here


@contextmanager
def _faults(code: str, path: Path) -> Iterator[None]:
    """Turn what the package says of a file into an error with this code."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise MixcError(code, f"array_record: {error}", place=Place(str(path))) from error


def _library() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        message = "writing arrayrecord needs the package 'array_record'"
        raise MixcError("MX037", message, help="pip install 'mixc[arrayrecord]'") from error


def how_to_load(spec: StreamSpec) -> str:
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "import glob\n"
        "import numpy as np\n"
        "from grain import MapDataset\n"
        "from grain.sources import ArrayRecordDataSource\n"
        "records = ArrayRecordDataSource(sorted(glob.glob('PATH/train-*.array_record')))\n"
        "rows = MapDataset.source(records)"
        f".map(lambda record: np.frombuffer(record, np.{spec.dtype}))\n"
    )
