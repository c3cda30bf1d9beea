"""Hugging Face `datasets`: a folder a split, as `Dataset.save_to_disk` lays it out.

`<split>/data-00000-of-00001.arrow`, ... are Arrow IPC streams of one record batch each, whose
`input_ids` are mapped where they lie; `state.json` names them, `dataset_info.json` says what the
columns mean. The fingerprint follows from the content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc.store.commit import StagedFile
from mixc.store.hashes import canonical, key_of
from mixc.writers import columns
from mixc.writers.sequences import Folder, Sequences, StreamSpec, parts, stacked

_FILE_BYTES = 1 << 28


def check(spec: StreamSpec) -> None:
    """Raise MX062 if an id may not fit in int32."""
    columns.check("hf", spec)


def disk_bytes(spec: StreamSpec) -> int:
    """What the rows take on disk, at least, beside the staged stream and labels."""
    return spec.bytes + 8 * spec.rows  # a label each


def write(sequences: Sequences, folder: Folder, split: str) -> list[str]:
    """Write one split and return the names of its files."""
    features = _features(sequences)
    said = json.dumps({"info": {"features": features}}, sort_keys=True)
    schema = pa.schema(
        [("domain", pa.int64()), ("input_ids", columns.token_type(sequences))],
        metadata={"huggingface": said},
    )
    total = len(columns.runs(sequences, _FILE_BYTES))

    def files() -> Iterator[tuple[str, Callable[[StagedFile], str]]]:
        pieces = columns.token_columns(sequences, _FILE_BYTES)
        for number, (first, stop, tokens) in enumerate(pieces):
            labels = pa.array(sequences.labels[first:stop].astype(np.int64))
            batch = pa.record_batch([labels, tokens], schema=schema)
            name = f"{split}/data-{number:05}-of-{total:05}.arrow"
            yield name, partial(_fill, batch=batch)

    written = folder.write_many(files())
    hashes = [xxh3 for _, xxh3 in written]
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(name).name} for name, _ in written],
        "_fingerprint": key_of([features, hashes])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    described = {"state.json": state, "dataset_info.json": info}
    for name, data in described.items():
        folder.write(f"{split}/{name}", lambda file, data=data: _put(file, data))  # type: ignore[misc]
    return [*(name for name, _ in written), *(f"{split}/{name}" for name in described)]


def _fill(file: StagedFile, batch: pa.RecordBatch) -> str:
    """Write one batch; the file's hash."""
    with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
    return file.record("").xxh3


def _put(file: StagedFile, data: dict[str, Any]) -> None:
    file.write(canonical(data))


def _features(sequences: Sequences) -> dict[str, Any]:
    """The columns in the words of `datasets`; every release of it knows this name of a list."""
    kind = columns.token_type(sequences)
    length = -1 if sequences.row_len is None else sequences.row_len
    value = {"dtype": str(kind.value_type), "_type": "Value"}
    return {
        "domain": {"names": list(sequences.domains), "_type": "ClassLabel"},
        "input_ids": {"feature": value, "length": length, "_type": "Sequence"},
    }


def read(files: Sequence[Path], spec: StreamSpec, first: int, count: int) -> NDArray[Any]:
    """Rows `first` to `first + count` of the training split, [count, seq_len]."""
    each = len(_rows(files[0], spec))
    return stacked((_rows(files[p], spec)[a:b] for p, a, b in parts(first, count, each)), spec)


def _rows(path: Path, spec: StreamSpec) -> NDArray[Any]:
    """All rows of a file, mapped."""
    with pa.memory_map(str(path)) as file:
        tokens = pa.ipc.open_stream(file).read_next_batch().column("input_ids")
        rows: NDArray[Any] = tokens.flatten().to_numpy().reshape(-1, spec.seq_len)
    return rows


def how_to_load(spec: StreamSpec) -> str:  # noqa: ARG001
    """The lines to paste; `PATH` stands for the folder of this format."""
    return (
        "from datasets import load_from_disk\n"
        "# Mapped, not read. `domain` is a class label: dataset.features['domain'].names.\n"
        "dataset = load_from_disk('PATH/train').with_format('numpy')\n"
        "rows = dataset['input_ids']\n"
    )
