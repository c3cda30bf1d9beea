"""Whether a fast engine gives what the reference gives: at start-up, and on a sample of a run."""

from __future__ import annotations

import hashlib
import platform
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream
from mixc.tokenize.adversarial import pack
from mixc.tokenize.engines import Encoded, Engine, Failed, joined

# The reference holds some 120 bytes for each byte of a document: of a long one, a stretch is
# compared, unless all is to be verified.
LONG_BYTES = 128 << 10
STRETCH_CHARS = 32 << 10
_FLOOR_BYTES = 16 << 10  # of risky documents, at the start of a unit
_SCANNED = 8  # documents that are looked into, for each that is drawn
_CHUNK_CHARS = 1 << 17
_MARK = re.compile(
    "[\u0300-\u036f\u1100-\u11ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]"
)
_MANY = 8  # strings to search a text for, each for itself
_DRAW = Stream(0, "verify")


@dataclass(frozen=True)
class Mismatch:
    """A text that an engine does not encode as the reference does. `error`: it gave up on it."""

    engine: str
    text: str
    got: list[int]
    expected: list[int]
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The mismatch as reports hold it, with the place of the first id that differs."""
        pairs = zip(self.got, self.expected, strict=False)
        same = (i for i, (got, expected) in enumerate(pairs) if got != expected)
        return {
            "engine": self.engine,
            "error": self.error,
            "first_difference": next(same, min(len(self.got), len(self.expected))),
            "text": self.text,
            "got": self.got,
            "expected": self.expected,
        }


def differing(
    engine: str, texts: Sequence[str], got: Encoded, expected: Encoded
) -> Mismatch | None:
    """The first text for which an engine, by its name, gave other ids than those expected."""
    ours, theirs = split(got), split(expected)
    if len(ours) != len(texts):
        return Mismatch(engine, "", [], [], f"{len(ours)} texts came back of {len(texts)}")
    for text, one, other in zip(texts, ours, theirs, strict=True):
        if not np.array_equal(one, other):
            return Mismatch(engine, text, one.tolist(), other.tolist())
    return None


def trials(specials: Sequence[str], heads: Sequence[str]) -> list[list[str]]:
    """What an engine is tried on before a run: hard texts, and the first texts of each domain.

    `specials`: the added tokens of the tokenizer.
    """
    return [*_chunks(pack(specials)), *_chunks(heads)]


def verify_engine(engine: Engine, texts: Sequence[str], expected: Encoded) -> Mismatch | None:
    """The first text that the engine encodes otherwise: all at once, or alone, last to first."""
    if (found := compare(engine, texts, expected)) is not None:
        return found
    # Alone, a text may be cut otherwise than among others, and by what came before it.
    for text, ids in zip(reversed(texts), reversed(split(expected)), strict=True):
        if (found := compare(engine, [text], joined([ids]))) is not None:
            return found
    return None


def compare(engine: Engine, texts: Sequence[str], expected: Encoded) -> Mismatch | None:
    """The first text that the engine encodes otherwise, all at once, or gives up on."""
    try:
        return differing(engine.name, texts, engine.encode(list(texts)), expected)
    except Failed as failed:
        if len(texts) == 1:
            return Mismatch(engine.name, texts[0], [], expected[0].tolist(), str(failed))
        alone = (
            compare(engine, [text], joined([ids]))
            for text, ids in zip(texts, split(expected), strict=True)
        )
        failing = f"{failed}, but on no text alone"
        found = (mismatch for mismatch in alone if mismatch)
        return next(found, Mismatch(engine.name, "", [], [], failing))


def split(encoded: Encoded) -> list[NDArray[np.uint32]]:
    """The ids of each text."""
    ids, lengths = encoded
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


class Sampler:
    """Draws the documents of one work unit that are checked: a `share` of its bytes, and more.

    Besides documents drawn at random, risky ones are taken (long ones, with special strings,
    with combining marks, or not in NFC where the tokenizer normalises) as long as they make no
    more than another `share` of the bytes and 16 KB. Only a part of the documents, drawn too, is
    looked into for risks. A long document counts as `LONG_BYTES`. What is drawn hangs on the
    documents so far alone: not on how they come in batches, nor on the machine.
    """

    def __init__(self, share: float, has_normalizer: bool, specials: Sequence[str]) -> None:
        self._share = share
        self._has_normalizer = has_normalizer
        self._starts = _starts(specials)
        self._documents = self._seen = self._spent = 0

    def choose(
        self, texts: Sequence[str], doc_ids: NDArray[np.uint64], n_bytes: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Indices of the documents to check, ascending. `doc_ids`, `n_bytes`: one a document."""
        if self._share >= 1:
            return np.arange(len(texts))
        if self._share <= 0 or not len(texts):
            return np.empty(0, np.int64)
        # Of many copies of a document each is drawn for itself.
        order = np.arange(self._documents, self._documents + len(texts), dtype=np.uint64)
        draws = _DRAW.hash(doc_ids + order)
        sizes = n_bytes.astype(np.int64)
        seen = self._seen + np.cumsum(sizes)
        long = sizes > LONG_BYTES
        drawn = draws < _bound(self._share)
        maybe = (draws < _bound(_SCANNED * self._share)) | long
        for i in np.flatnonzero(maybe & ~drawn).tolist():
            size = min(int(sizes[i]), LONG_BYTES)
            fits = self._spent + size <= self._share * int(seen[i]) + _FLOOR_BYTES
            if fits and (long[i] or self._is_risky(texts[i])):
                self._spent += size
                drawn[i] = True
        self._documents += len(texts)
        self._seen = int(seen[-1])
        return np.flatnonzero(drawn)

    def _is_risky(self, text: str) -> bool:
        if any(start in text for start in self._starts):
            return True
        if text.isascii():
            return False
        if self._has_normalizer and not unicodedata.is_normalized("NFC", text):
            return True
        return _MARK.search(text) is not None


def stretch(text: str, doc_id: int) -> str:
    """A stretch of a long document to be compared in its place; where it lies hangs on its id."""
    start = doc_id % max(1, len(text) - STRETCH_CHARS)
    return text[start : start + STRETCH_CHARS]


def cpu_features() -> str:
    """What engines choose their code by, in short: the kind of machine, a hash of its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    features = " ".join(sorted(found[0].split())) if found else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _starts(specials: Sequence[str]) -> tuple[str, ...]:
    """Strings of which one is in any text that holds a special string; few, for speed."""
    whole = {one for one in specials if one}
    starts = whole
    for length in (4, 2, 1):
        if len(starts) > _MANY:
            starts = {one[:length] for one in whole}
    return tuple(sorted(starts))


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    chunks: list[list[str]] = []
    size = _CHUNK_CHARS
    for text in texts:
        if size >= _CHUNK_CHARS:
            chunks.append([])
            size = 0
        chunks[-1].append(text)
        size += len(text)
    return chunks


def _bound(share: float) -> np.uint64:
    """What a share of all words are less than."""
    return np.uint64(min(int(share * 2.0**64), 2**64 - 1))
