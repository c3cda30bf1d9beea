"""Who is compared: how each tool is installed and called, and how what it wrote is read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.corpus import Cut
from mixc.store.shard import token_dtype
from mixc.store.store import open_store

_HERE = Path(__file__).parent
_SEEN = ("datatrove", "dolma", "megatron-core", "tokenizers", "fastokens", "numpy", "torch")
# The torch that mixc has: a torch of its own may be gigabytes of CUDA.
_TORCH = "torch==" + metadata.version("torch").split("+")[0]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.json, and the token that closes each document."""

    path: Path
    eos: str
    eos_id: int
    size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds every id."""
        return token_dtype(self.size)


@dataclass(frozen=True)
class Job:
    """One run: what is tokenized, with what, how, and to which folder."""

    cut: Cut
    vocabulary: Vocabulary
    processes: int
    out: Path
    python: Path
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a tool wrote: documents end to end, `ends` int64[n], and the documents' `numbers`."""

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Tool:
    """A tool of the comparison. `sets` are overrides of mixc's recipe."""

    name: str
    command: Callable[[Job], list[str]]
    read: Callable[[Job], Found]
    packages: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    strips: bool = False


def vocabulary(path: Path) -> Vocabulary:
    """What must be known of a tokenizer.json."""
    from mixc.tokenize.encoder import describe

    raw = path.read_bytes()
    known = describe(raw, eot=None, special_tokens="text", source=path.name, key="")
    return Vocabulary(path.absolute(), known.eot, known.eot_id, known.vocab_size)


# ---- mixc ----


def _mixc_command(job: Job) -> list[str]:
    recipe = {
        "name": "bench",
        "workdir": str(job.out / "work"),
        "tokenizer": {"path": str(job.vocabulary.path), "eot": job.vocabulary.eos},
        "domains": {"bench": {"paths": [f"{job.cut.folder}/zst/*.jsonl.zst"]}},
        "holdout": {"fraction": 0.0},
        "mixture": {"weights": "natural", "rows": 1, "seq_len": 1024, "formats": ["nanogpt"]},
    }
    path = job.out / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    line = [str(job.python), "-m", "mixc", "tokenize", str(path), "--json"]
    for one in job.sets:
        line += ["-s", one]
    return [*line, "--workers", str(job.processes)]


def _mixc_read(job: Job) -> Found:
    shards = list(open_store(job.out / "work/store").documents("bench"))
    lengths = np.concatenate([shard.lengths for shard in shards])
    tokens = np.concatenate([shard.tokens for shard in shards])
    return Found(tokens, np.cumsum(lengths), np.arange(len(lengths)))


# ---- datatrove ----


def _datatrove_command(job: Job) -> list[str]:
    known = job.vocabulary
    line = [str(job.python), str(_HERE / "run_datatrove.py"), str(job.cut.folder / "zst")]
    return [*line, str(known.path), known.eos, str(job.out), str(job.processes)]


def _datatrove_read(job: Job) -> Found:
    firsts, counts = job.cut.firsts, job.cut.counts
    numbers, tokens, ends = [], [], []
    shift = 0
    for rank in range(job.processes):  # each rank takes every n-th file
        path = job.out / f"tokens/{rank:05}_unshuffled.ds"
        for file in range(rank, len(counts), job.processes):
            numbers.append(np.arange(firsts[file], firsts[file] + counts[file]))
        tokens.append(np.fromfile(path, job.vocabulary.dtype))
        ends.append(np.fromfile(f"{path}.index", np.uint64).astype(np.int64) + shift)
        shift += len(tokens[-1])
    return Found(np.concatenate(tokens), np.concatenate(ends), np.concatenate(numbers))


# ---- Megatron-LM ----


def _megatron_command(job: Job) -> list[str]:
    known = job.vocabulary
    line = [str(job.python), str(_HERE / "megatron_loop.py"), str(job.cut.folder / "all.jsonl")]
    return [*line, str(known.path), str(known.eos_id), str(job.out / "ids"), str(job.processes)]


def _megatron_read(job: Job) -> Found:
    index = (job.out / "ids.idx").read_bytes()
    count = int.from_bytes(index[18:26], "little")
    kind = {8: np.uint16, 4: np.int32}[index[17]]
    lengths: NDArray[np.int32] = np.frombuffer(index, np.int32, count, 34)
    tokens: NDArray[Any] = np.fromfile(job.out / "ids.bin", kind)
    return Found(tokens, np.cumsum(lengths, dtype=np.int64), np.arange(count))


# ---- dolma ----


def old_merges(raw: bytes) -> bytes:
    """A tokenizer.json as tokenizers 0.19 reads it: merges as "a b" instead of ["a", "b"]."""
    data = json.loads(raw)
    merges = data["model"].get("merges", [])
    pairs = [merge for merge in merges if isinstance(merge, list)]
    if any(" " in part for pair in pairs for part in pair):
        raise ValueError("a merge holds a space, which its version of tokenizers cannot read")
    data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in merges]
    return json.dumps(data, ensure_ascii=False).encode()


def _dolma_command(job: Job) -> list[str]:
    known = job.vocabulary
    tokenizer = job.out / "tokenizer.json"
    tokenizer.write_bytes(old_merges(known.path.read_bytes()))
    options = {
        "documents": f"{job.cut.folder}/gz/*.json.gz",
        "destination": str(job.out / "tokens"),
        "tokenizer.name_or_path": str(tokenizer),
        "tokenizer.eos_token_id": str(known.eos_id),
        "tokenizer.pad_token_id": str(known.eos_id),
        "dtype": str(known.dtype),
        "processes": str(job.processes),
    }
    line = [str(job.python.parent / "dolma"), "tokens"]
    for name, value in options.items():
        line += [f"--{name}", value]
    return line


def _dolma_read(job: Job) -> Found:
    tokens, ends, numbers = [], [], []
    shift = 0
    for path in sorted((job.out / "tokens").glob("*.npy")):
        tokens.append(np.fromfile(path, job.vocabulary.dtype))
        with gzip.open(path.with_suffix(".csv.gz"), "rt", newline="") as rows:
            for _, end, _, source, line in csv.reader(rows):
                file = int(Path(source).name.split(".")[0])
                numbers.append(job.cut.firsts[file] + int(line) - 1)
                ends.append(shift + int(end))
        shift += len(tokens[-1])
    return Found(np.concatenate(tokens), np.array(ends, np.int64), np.array(numbers, np.int64))


MIXC = Tool("mixc", _mixc_command, _mixc_read)
OTHERS = {
    "fallback": Tool(
        "mixc, engine tokenizers", _mixc_command, _mixc_read, sets=("tokenizer.engine=tokenizers",)
    ),
    "datatrove": Tool(
        "datatrove",
        _datatrove_command,
        _datatrove_read,
        ("datatrove[io]==0.10.1", "orjson", "tokenizers", "zstandard"),
    ),
    "megatron": Tool(
        "Megatron-LM's loop",
        _megatron_command,
        _megatron_read,
        ("megatron-core==0.16.1", _TORCH, "tokenizers", "numpy"),
        fallback=("tokenizers", "numpy"),
    ),
    "dolma": Tool("dolma", _dolma_command, _dolma_read, ("dolma==1.2.1",), strips=True),
}


# ---- environments ----


def install(
    key: str,
    packages: tuple[str, ...],
    venvs: Path,
    python: str,
    fallback: tuple[str, ...] = (),
) -> Path:
    """The python of an environment under `venvs` with these packages, made unless it is there.

    `fallback` is installed if they cannot be.
    """
    wanted = hashlib.sha256(" ".join((python, *packages)).encode()).hexdigest()
    home, made = venvs / key, venvs / key / "made"
    if not made.exists() or made.read_text() != wanted:
        uv = _uv(venvs)
        # Local wheels that pip is told of serve uv as well.
        env = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **os.environ}
        pip = [
            uv,
            "pip",
            "install",
            "-q",
            "--compile-bytecode",
            "--python",
            str(home / "bin/python"),
        ]
        subprocess.run([uv, "venv", "-q", "--clear", "--python", python, home], check=True)
        done = subprocess.run([*pip, *packages], env=env, check=False)
        if done.returncode:
            if not fallback:
                raise subprocess.CalledProcessError(done.returncode, "uv pip install")
            subprocess.run([*pip, *fallback], env=env, check=True)
        made.write_text(wanted)
    return home / "bin/python"


def _uv(venvs: Path) -> str:
    """The program uv, installed under `venvs` if there is none: pip takes minutes over dolma."""
    if found := shutil.which("uv"):
        return found
    home = (venvs / "uv").absolute()
    if not (home / "bin/uv").exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([home / "bin/pip", "install", "-q", "uv"], check=True)
    return str(home / "bin/uv")


def versions(python: Path, seen: Sequence[str] = _SEEN) -> dict[str, str]:
    """The versions of what matters in an environment."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.name.lower(): d.version for d in m.distributions() if d.name}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    line = [str(python), "-c", code, *seen]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


# ---- ids ----


@dataclass(frozen=True)
class Checked:
    """How many documents were compared, and how many of them differ."""

    compared: int
    different: int


def compare(ours: Found, theirs: Found, usable: NDArray[np.bool_]) -> Checked:
    """Compare document by document, those that `usable` (bool[documents]) allows.

    A usable document that they lack, or give twice, differs.
    """
    mine = _spans(ours)
    count = np.zeros(len(usable), np.int64)
    different = 0
    for number, span in _spans_of(theirs):
        if usable[number]:
            count[number] += 1
            same = np.array_equal(ours.tokens[mine[number]], theirs.tokens[span])
            different += not same and count[number] == 1
    return Checked(int(usable.sum()), different + int((count[usable] != 1).sum()))


def _spans(found: Found) -> dict[int, slice]:
    return dict(_spans_of(found))


def _spans_of(found: Found) -> Iterator[tuple[int, slice]]:
    start = 0
    for number, end in zip(found.numbers.tolist(), found.ends.tolist(), strict=True):
        yield number, slice(start, end)
        start = end
