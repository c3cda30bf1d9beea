"""What is verified of a unit: texts, and the ids that an engine gave them, staged beside it.

Workers stage samples; the run's own process compares them with the reference, which is so loaded
but once, while the workers go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mixc.store import commit
from mixc.store.hashes import FileRecord, check_file
from mixc.tokenize.check import Mismatch, differing
from mixc.tokenize.encoder import EngineMismatch, TokenizerFile, gave_up
from mixc.tokenize.engines import REFERENCE, Failed, joined

_PIECE_BYTES = 1 << 20
_Piece = list[tuple[str, bytes]]  # texts with their ids, uint32


class Samples:
    """The samples of a unit on their way to `folder`, in files of about a megabyte of text."""

    def __init__(self, folder: Path) -> None:
        self.documents = self.bytes = 0
        self._folder = folder
        self._files: list[FileRecord] = []
        self._piece: _Piece = []
        self._piece_bytes = 0

    def add(self, text: str, ids: NDArray[np.uint32], size: int) -> None:
        """Take a text of `size` bytes of UTF-8, and its ids."""
        self._piece.append((text, ids.tobytes()))
        self.documents += 1
        self.bytes += size
        self._piece_bytes += size
        if self._piece_bytes >= _PIECE_BYTES:
            self._flush()

    def write(self) -> tuple[FileRecord, ...]:
        """Stage what is left; the files of all samples."""
        if self._piece:
            self._flush()
        return tuple(self._files)

    def _flush(self) -> None:
        path = self._folder / f"sample-{len(self._files):04}.msgpack"
        self._files.append(commit.write_file(path, msgspec.msgpack.encode(self._piece)))
        self._piece, self._piece_bytes = [], 0


class Verifier:
    """Compares staged samples with the reference, on threads beside whatever else goes on."""

    def __init__(self, file: TokenizerFile, engine: str, threads: int) -> None:
        self._file, self._engine, self._threads = file, engine, threads
        self._pool = ThreadPoolExecutor(threads)
        self._running: list[Future[Mismatch | None]] = []

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(
        self, folder: Path, samples: Sequence[FileRecord], passed: Callable[[], None]
    ) -> None:
        """Have a unit's samples in `folder` compared; if they pass, `passed` is called.

        Waits where others wait already. Raises what `finish` does, of what is done by now.
        """
        if samples:
            self._running.append(self._pool.submit(self._judged, folder, samples, passed))
        while self._running and (self._running[0].done() or len(self._running) > 2 * self._threads):
            _settle(self._running.pop(0))

    def finish(self) -> None:
        """Wait for all.

        Raises EngineMismatch; MX030 where the reference gives up; MX040 for a damaged file.
        """
        while self._running:
            _settle(self._running.pop(0))

    def _judged(
        self, folder: Path, samples: Sequence[FileRecord], passed: Callable[[], None]
    ) -> Mismatch | None:
        for record in samples:
            if (mismatch := self._compared(folder, record)) is not None:
                return mismatch
        passed()
        return None

    def _compared(self, folder: Path, record: FileRecord) -> Mismatch | None:
        if (damage := check_file(folder, record, rehash=True)) is not None:
            raise damage
        piece = msgspec.msgpack.decode((folder / record.path).read_bytes(), type=_Piece)
        texts = [text for text, _ in piece]
        got = joined([np.frombuffer(ids, np.uint32) for _, ids in piece])
        return differing(self._engine, texts, got, self._file.engine(REFERENCE).encode(texts))


def _settle(future: Future[Mismatch | None]) -> None:
    try:
        mismatch = future.result()
    except Failed as failed:
        raise gave_up(failed) from failed
    if mismatch is not None:
        raise EngineMismatch(mismatch)
