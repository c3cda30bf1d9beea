"""How much memory a tokenizing worker takes on text whose words are nearly all different.

    python tools/bench_memory.py --tokenizer gpt2.json --gigabytes 5

Such text is what fills an encoder's caches. The corpus is made in the work folder (random words
of 4 to 11 letters, in documents of 4 kB and some of 1 MB), tokenized in a process of its own, and
the resident memory of every process is read from /proc twice a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
import zstandard

_BLOCK = 1 << 20


def words(rng: np.random.Generator, size: int) -> str:
    """Random words, `size` bytes of them."""
    text = rng.integers(ord("a"), ord("z") + 1, size, dtype=np.uint8)
    spaces = np.cumsum(rng.integers(5, 13, size // 5))
    text[spaces[spaces < size]] = ord(" ")
    return text.tobytes().decode()


def make_corpus(folder: Path, gigabytes: float, files: int) -> None:
    """Write `files` jsonl.zst files of equal size."""
    folder.mkdir(parents=True)
    for number in range(files):
        rng = np.random.default_rng(number)
        left = int(gigabytes * 1e9 / files)
        with (
            (folder / f"{number:03}.jsonl.zst").open("wb") as raw,
            zstandard.ZstdCompressor(level=1).stream_writer(raw) as out,
        ):
            while left > 0:
                text = words(rng, _BLOCK if rng.random() < 0.001 else 4096)
                out.write(json.dumps({"text": text}).encode() + b"\n")
                left -= len(text)


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*"):
        for child in (task / "children").read_text().split():
            yield from processes(int(child))


def status(pid: int, key: str) -> float:
    """A figure of /proc/PID/status, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def watch(process: subprocess.Popen[bytes]) -> tuple[dict[int, float], list[tuple[float, float]]]:
    """Each process's peak, and the largest resident size over time, until the process ends."""
    peaks: dict[int, float] = {}
    curve: list[tuple[float, float]] = []
    start = time.monotonic()
    while process.poll() is None:
        largest = 0.0
        try:
            for pid in processes(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), status(pid, "VmHWM"))
                largest = max(largest, status(pid, "VmRSS"))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended while it was looked at
        curve.append((time.monotonic() - start, largest))
        time.sleep(0.5)
    return peaks, curve


def main() -> None:
    """Make the corpus, tokenize it, print the peaks and the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--work", type=Path, help="a folder that is made and removed again")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="mixc-memory-"))
    make_corpus(work / "corpus", options.gigabytes, options.files)
    recipe = {
        "name": "memory",
        "workdir": "out",
        "tokenizer": {"path": str(options.tokenizer.absolute()), "engine": options.engine},
        "domains": {"words": {"paths": ["corpus/*.jsonl.zst"]}},
        "holdout": {"fraction": 0.0},
        "mixture": {"weights": "natural", "rows": 1, "seq_len": 1, "formats": ["nanogpt"]},
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "mixc", "tokenize", str(work / "recipe.yaml")]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--workers", str(options.workers)])
    peaks, curve = watch(process)
    seconds = time.monotonic() - start
    shutil.rmtree(work)
    if process.returncode:
        sys.exit(process.returncode)
    tenth = max(1, len(curve) // 10)
    for i in range(0, len(curve), tenth):
        part = curve[i : i + tenth]
        print(f"{part[0][0]:6.0f} s: largest process {max(mb for _, mb in part):6.0f} MB")
    print(f"{options.gigabytes:g} GB in {seconds:.0f} s with {options.workers} workers")
    print("peaks:", ", ".join(f"{mb:.0f} MB" for mb in sorted(peaks.values(), reverse=True)))


if __name__ == "__main__":
    main()
