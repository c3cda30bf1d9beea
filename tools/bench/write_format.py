"""One of mixc's writers, given what the trainers' own are given. Runs in mixc's environment.

    python write_format.py FORMAT FOLDER OUT

FOLDER is that of `trainers.py`. Prints, as JSON, the rows, and the seconds that they took, each
file hashed and synced.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from mixc.build.held import staged_sequences
from mixc.registry import WRITERS
from mixc.writers.sequences import Folder


def main() -> None:
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    job = json.loads((folder / "job.json").read_text())
    writer, rows, length = WRITERS[name].load(), job["rows"], job["seq_len"]
    start = time.perf_counter()
    sequences = staged_sequences(
        folder / "stream.bin",
        np.dtype(np.uint16),
        np.broadcast_to(np.int64(length), rows),
        np.arange(rows, dtype=np.uint8) % np.uint8(len(job["domains"])),
        tuple(job["domains"]),
        row_len=length,
    )
    writer.write(sequences, Folder(out / name, job["workers"]), "train")
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
