"""Megatron's index cache, rewritten so that Megatron reads a mixture in its compiled order.

Megatron's GPTDataset shuffles documents and samples, and keeps the permutations in files of
its cache: `<md5>-GPTDataset-<split>-{description.txt,document_index.npy,sample_index.npy,
shuffle_index.npy}` (megatron.core.datasets.gpt_dataset, megatron-core 0.16.1). The MD5 is that of
the arguments that the index depends on: the dataset's path as it was passed, the count of samples,
the seed, the sequence length, the split and the tokenizer. Some of them only Megatron knows. So
Megatron makes its index first, under whatever name it gives it, and both permutations are then
replaced by the identity. The sample index stays: it follows from the lengths of documents, and all
our rows have one length.

Nothing replaces two files in one step. All are on the disk before the first takes its place; a run
that is killed between the renames leaves rows in another order still, and the next one mends it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.build.mixture import open_mixture
from mixc.errors import MixcError, Place
from mixc.store import commit

_DESCRIPTION = "-description.txt"
_OUTPUT = "megatron-order"  # what the lock of a cache is called
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Index:
    """One index of Megatron's cache, now in the compiled order.

    `name` is what its files begin with. It gives `samples` samples in `epochs` passes over the
    rows. `changed` says that it was in another order before.
    """

    name: str
    samples: int
    epochs: int
    changed: bool


def keep_order(root: Path, cache: Path, *, prefix: str | None = None) -> list[Index]:
    """Put every index of the mixture at `root` that stands in Megatron's `cache` in order.

    `prefix` is the dataset's path as Megatron was given it, if it is not the mixture's own. Raises
    MX070 (a mixture without Megatron's format), MX041 (no index of this mixture), MX063 (an index
    made with arguments that do not fit the mixture), MX040 (damaged), MX042 (another run is at
    it), MX043 (no space). It changes nothing then.
    """
    mixture = open_mixture(root)
    if "megatron" not in mixture.manifest["formats"]:
        raise MixcError(
            "MX070",
            "the mixture is not in Megatron's format",
            place=Place(str(root)),
            help="add megatron to mixture.formats",
        )
    ours = os.path.realpath(root / "megatron" / "train")
    said = _descriptions(cache)
    found = [
        _Arrays(path, description, mixture.spec.rows, mixture.spec.seq_len)
        for path, description in said.items()
        if _names(str(description.get("dataset_path")), ours, prefix)
    ]
    if not found:
        paths = sorted({str(description.get("dataset_path")) for description in said.values()})
        raise MixcError(
            "MX041",
            f"Megatron has made no index of {prefix or ours} here"
            + (": it has them of " + ", ".join(paths) if paths else ""),
            place=Place(str(cache)),
            help="let Megatron make it: tools/prepare_cache.py, or a start of training with"
            f" --exit-interval 1, with --data-cache-path {cache};"
            " --prefix names a path that Megatron knows the mixture by",
        )
    with commit.locked(cache / _OUTPUT) as staging:
        commit.remove(staging)  # what a run that was killed has left
        try:
            staged = [index.stage(staging) for index in found]
            for path in (path for paths in staged for path in paths):
                commit.rename(path, cache / path.name)
            commit.sync(cache)
        finally:
            commit.remove(staging)
    _leave_nothing(cache / commit.CONTROL)
    pairs = zip(found, staged, strict=True)
    return [index.in_order(changed=bool(paths)) for index, paths in pairs]


def _leave_nothing(control: Path) -> None:
    """Remove the lock: the cache is Megatron's. Others' locks may stand beside it."""
    commit.remove(control / _OUTPUT)
    if not any(control.iterdir()):
        commit.remove(control)


def _descriptions(cache: Path) -> dict[Path, dict[str, Any]]:
    found = {}
    for path in sorted(cache.glob(f"*-GPTDataset-*{_DESCRIPTION}")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _unreadable(path) from error
        if isinstance(said, dict):
            found[path] = said
    return found


def _names(said: str, ours: str, prefix: str | None) -> bool:
    if prefix is not None:
        return said == prefix
    return os.path.realpath(said) == ours


class _Arrays:
    """The files of one index, checked."""

    def __init__(self, path: Path, said: dict[str, Any], rows: int, seq_len: int) -> None:
        self._path, self._rows = path, rows
        self._name = path.name.removesuffix(_DESCRIPTION)
        if said.get("sequence_length") != seq_len:
            raise self._unfit(
                f"a sequence length of {said.get('sequence_length')}, and rows have {seq_len}",
                f"give Megatron --seq-length {seq_len}",
            )
        self._documents = self._load("document_index")
        self._shuffle = self._load("shuffle_index")
        samples = self._load("sample_index")
        whole = len(self._documents) and len(self._documents) % rows == 0
        if not whole or self._documents.min() != 0 or self._documents.max() != rows - 1:
            raise self._unfit(
                f"other documents than the mixture's {rows} rows",
                "give Megatron --train-data-path, or --split 1,0,0; if the mixture was built"
                " again since, remove Megatron's cache",
            )
        if samples.shape != (len(self._shuffle) + 1, 2) or not _aligned(samples, seq_len):
            raise self._unfit("samples that are not rows", "remove Megatron's cache")

    def stage(self, folder: Path) -> list[Path]:
        """Stage the identity for each permutation that is not it, under the name that it has."""
        staged = []
        for affix, array, period in (
            ("document_index", self._documents, self._rows),
            ("shuffle_index", self._shuffle, len(self._shuffle)),
        ):
            parts = _ascending(len(array), period, array.dtype)
            if all(np.array_equal(array[start : start + len(p)], p) for start, p in parts):
                continue
            staged.append(folder / self._file(affix).name)
            with commit.create(staged[-1]) as file:
                header = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(file, header)
                for _, part in _ascending(len(array), period, array.dtype):
                    file.write(part.tobytes())
        return staged

    def in_order(self, *, changed: bool) -> Index:
        """The index, now that both permutations are the identity."""
        epochs = len(self._documents) // self._rows
        return Index(self._name, len(self._shuffle), epochs, changed)

    def _file(self, affix: str) -> Path:
        return self._path.with_name(f"{self._name}-{affix}.npy")

    def _load(self, affix: str) -> NDArray[Any]:
        path = self._file(affix)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(path) from error
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
            raise _unreadable(path)
        return array

    def _unfit(self, what: str, help: str) -> MixcError:
        message = f"Megatron made this index for {what}"
        return MixcError("MX063", message, place=Place(str(self._path)), help=help)


def _unreadable(path: Path) -> MixcError:
    message = "a file of Megatron's cache cannot be read"
    return MixcError("MX040", message, place=Place(str(path)), help="remove it")


def _ascending(count: int, period: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """0 to `period` - 1, over and over, `count` numbers in all: (start, numbers) a piece."""
    for start in range(0, count, _CHUNK):
        yield start, (np.arange(start, min(start + _CHUNK, count)) % period).astype(dtype)


def _aligned(samples: NDArray[Any], seq_len: int) -> bool:
    """Whether sample i begins at token i * seq_len, given as (document, offset in it)."""
    for start in range(0, len(samples), _CHUNK):
        part = samples[start : start + _CHUNK].astype(np.int64)
        begins = np.arange(start, start + len(part)) * seq_len
        if not np.array_equal(part[:, 0] * seq_len + part[:, 1], begins):
            return False
    return True
