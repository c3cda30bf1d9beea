"""What trainers' own tools do with the same tokens. Runs in the trainers' environment.

    python trainers.py write-mds | write-litdata | write-datasets FOLDER OUT
    python trainers.py read-... FOLDER

FOLDER holds `job.json` (see `bench_build.py`), `stream.bin` (all rows of the mixture, end to end),
`domains/<name>.bin` and `.idx` (each domain's documents, as Megatron takes them) and
`domains/<name>.arrow` (each domain's rows). The last line printed is what was found, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_WINDOW = 4096  # rows to an item of LitData's optimize


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    job = json.loads((Path(folder) / "job.json").read_text())
    print(json.dumps(TOOLS[what](Path(folder), job, *rest)))


def rows_of(folder: Path, job: dict[str, Any]) -> Any:
    raw = np.memmap(folder / "stream.bin", np.uint16, mode="r")
    return raw.reshape(-1, job["seq_len"])


# ---- writing ----


def without_torchvision() -> None:
    """Stand in for torchvision, which streaming imports for images: of PyPI's, built for another
    torch, not even the import works.
    """
    names = ("", ".datasets", ".transforms", ".transforms.functional")
    stubs: dict[str, Any] = {name: ModuleType("torchvision" + name) for name in names}
    for name, stub in stubs.items():
        stub.__spec__ = ModuleSpec("torchvision" + name, None)
    stubs[".datasets"].VisionDataset = object
    stubs[".transforms.functional"].to_tensor = None
    sys.modules.update({"torchvision" + name: stub for name, stub in stubs.items()})


def write_mds(folder: Path, job: dict[str, Any], out: str) -> dict[str, Any]:
    without_torchvision()
    from streaming import MDSWriter

    rows, start = rows_of(folder, job), time.perf_counter()
    with MDSWriter(out=out, columns={"tokens": f"ndarray:uint16:{job['seq_len']}"}) as writer:
        for row in rows:
            writer.write({"tokens": row})
    return {"rows": len(rows), "seconds": time.perf_counter() - start}


class Window:
    """LitData's function: an item's rows, as one tensor of tokens."""

    def __init__(self, path: str, seq_len: int) -> None:
        self.path, self.seq_len = path, seq_len

    def __call__(self, first: int) -> Iterator[Any]:
        import torch

        rows = np.memmap(self.path, np.uint16, mode="r").reshape(-1, self.seq_len)
        yield torch.from_numpy(np.array(rows[first : first + _WINDOW]).reshape(-1))


def write_litdata(folder: Path, job: dict[str, Any], out: str) -> dict[str, Any]:
    from litdata import TokensLoader, optimize

    count, start = len(rows_of(folder, job)), time.perf_counter()
    optimize(
        fn=Window(str(folder / "stream.bin"), job["seq_len"]),
        inputs=list(range(0, count, _WINDOW)),
        output_dir=out,
        num_workers=job["workers"],
        chunk_size=job["seq_len"] * _WINDOW,
        item_loader=TokensLoader(block_size=job["seq_len"]),
    )
    return {"rows": count, "seconds": time.perf_counter() - start}


def interleaved(folder: Path, job: dict[str, Any]) -> Any:
    """As many rows as the mixture has, drawn by its weights."""
    from datasets import Dataset, interleave_datasets

    parts = [Dataset.from_file(str(folder / f"domains/{name}.arrow")) for name in job["domains"]]
    shares = np.array(list(job["domains"].values()))
    mixed = interleave_datasets(
        parts, (shares / shares.sum()).tolist(), seed=1, stopping_strategy="all_exhausted"
    )
    return mixed.select(range(min(job["rows"], len(mixed))))


def write_datasets(folder: Path, job: dict[str, Any], out: str) -> dict[str, Any]:
    mixed = interleaved(folder, job)
    mixed.save_to_disk(out, num_proc=job["workers"])
    return {"rows": len(mixed)}


# ---- reading: seconds until the first row, and rows per second after it ----


def timed(job: dict[str, Any], begin: Callable[[], Callable[[int], Any]]) -> dict[str, Any]:
    """`begin` gives a function from a row's number to the row."""
    start = time.perf_counter()
    row = begin()
    np.asarray(row(0))
    ready = time.perf_counter()
    count = min(job["rows"] - 1, job["reads"])
    for number in range(1, 1 + count):
        np.asarray(row(number))
    return {"start": ready - start, "rows": count, "rate": count / (time.perf_counter() - ready)}


def read_numpy(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    def begin() -> Callable[[int], Any]:
        rows = rows_of(folder, job)
        return lambda number: rows[number].astype(np.int64)

    return timed(job, begin)


def read_megatron_rows(_: Path, job: dict[str, Any]) -> dict[str, Any]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return timed(job, lambda: IndexedDataset(job["megatron"], mmap=True).__getitem__)


class Ids:
    """A tokenizer, as far as Megatron's data sets ask for one."""

    eod = pad = 50256
    vocab_size = 50257
    unique_identifiers: dict[str, str] = {"class": "ids"}  # noqa: RUF012


def read_megatron_blend(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Builds Megatron's indices anew, then reads its blend of all domains."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from torch import distributed

    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def begin() -> Callable[[int], Any]:
        shares = np.array(list(job["domains"].values()))
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=job["seq_len"],
            blend=(
                [str(folder / f"domains/{name}") for name in job["domains"]],
                (shares / shares.sum()).tolist(),
            ),
            split="1,0,0",
            path_to_cache=str(folder / "out/cache"),
            tokenizer=Ids(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            add_extra_token_to_sequence=False,
            mid_level_dataset_surplus=0.005,
        )
        builder = BlendedMegatronDatasetBuilder(
            GPTDataset, [job["rows"], 0, 0], lambda: True, config
        )
        train = builder.build()[0]
        return lambda number: train[number]["tokens"]

    return timed(job, begin)


def read_mds(_: Path, job: dict[str, Any]) -> dict[str, Any]:
    without_torchvision()
    from streaming import StreamingDataset

    def begin() -> Callable[[int], Any]:
        rows = StreamingDataset(local=job["mds"], shuffle=False, batch_size=1)
        return lambda number: rows[number]["tokens"]

    return timed(job, begin)


def read_litdata(_: Path, job: dict[str, Any]) -> dict[str, Any]:
    from litdata import StreamingDataset, TokensLoader

    def begin() -> Callable[[int], Any]:
        loader = TokensLoader(block_size=job["seq_len"])
        rows = iter(StreamingDataset(job["litdata"], item_loader=loader, shuffle=False))
        return lambda _: next(rows)

    return timed(job, begin)


def read_datasets(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    def begin() -> Callable[[int], Any]:
        rows = interleaved(folder, job).with_format("numpy")
        return lambda number: rows[number]["tokens"]

    return timed(job, begin)


TOOLS: dict[str, Callable[..., dict[str, Any]]] = {
    "write-mds": write_mds,
    "write-litdata": write_litdata,
    "write-datasets": write_datasets,
    "read-numpy": read_numpy,
    "read-megatron-rows": read_megatron_rows,
    "read-megatron-blend": read_megatron_blend,
    "read-mds": read_mds,
    "read-litdata": read_litdata,
    "read-datasets": read_datasets,
}

if __name__ == "__main__":
    main()
