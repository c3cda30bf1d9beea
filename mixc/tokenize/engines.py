"""Engines that turn texts into token ids: `tokenizers`, and two that are faster where they agree.

`tokenizers` is the reference; `mixc.tokenize.check` compares the others with it. The packages
fastokens and gigatoken are optional.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

SpecialTokens = Literal["text", "encode"]
Encoded = tuple[NDArray[np.uint32], NDArray[np.int64]]

REFERENCE = "tokenizers"
PREFERENCE = ("fastokens", "gigatoken", REFERENCE)

_CHUNK_CHARS = 1 << 16
_AMPLE_BYTES = 220 << 20  # a process below that may fill its caches
_M_ARENA_MAX = -8  # of glibc's malloc.h
# One worker is one process: threads of an engine would fight over its core. Each of these is
# read once, at the engine's first use.
_ONE_THREAD = {
    "FASTOKENS_BPE_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """An engine is not installed, cannot read a tokenizer, or must not be used for it."""


class Failed(Exception):  # noqa: N818 - as above
    """An engine gave up on a text that the reference may well encode."""


class Engine(Protocol):
    """Encodes texts. Nothing is added to them: no template, no end of text."""

    name: str

    def encode(self, texts: list[str]) -> Encoded:
        """Ids of all texts end to end, uint32, perhaps read-only; ids of each text, int64[n].

        No text may hold a lone surrogate. Raises Failed.
        """
        ...


def joined(parts: Sequence[NDArray[np.uint32]]) -> Encoded:
    """The ids of several texts as an engine gives them."""
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.concatenate([np.empty(0, np.uint32), *parts]), lengths


def version_of(name: str) -> str:
    """The version of an engine's package. Raises Refused."""
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise Refused("it is not installed") from error


def load_engine(name: str, tokenizer_json: bytes, special_tokens: SpecialTokens) -> Engine:
    """The engine of a name in `PREFERENCE`, for one untrusted tokenizer.json.

    "text" reads special strings inside texts as ordinary text, "encode" as their ids. Other
    added tokens always become their ids. Raises Refused.
    """
    os.environ.update(_ONE_THREAD)
    _share_heap()
    try:
        engine = _ENGINES[name](tokenizer_json, special_tokens)
    except ImportError as error:
        raise Refused(f"{name} is not installed") from error
    except BaseException as error:
        raise _as(Refused, error) from error
    _trim()
    return engine


class Reference:
    """The `tokenizers` library, by whose ids every other engine is measured."""

    name = REFERENCE

    def __init__(self, tokenizer_json: bytes, special_tokens: SpecialTokens) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = special_tokens == "text"

    def encode(self, texts: list[str]) -> Encoded:
        """As `Engine` says."""
        parts: list[NDArray[np.uint32]] = []
        for chunk in _chunks(texts):
            with _failing():
                found = self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            parts += [np.array(one.ids, np.uint32) for one in found]
        return joined(parts)

    def vocabulary(self) -> dict[str, int]:
        """Every token's id, those of added tokens too."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))


class _Caches:
    """Tells when an engine's caches of words have grown enough, by the memory of the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.begin()

    def begin(self) -> None:
        """The caches are empty."""
        self._resident, self._fed = _resident(), 0

    def full(self, texts: list[str]) -> bool:
        """Whether it is time to drop the caches, now that these texts were encoded."""
        # Where the system does not tell: a byte of cache for a character of text.
        self._fed += sum(map(len, texts))
        now = _resident()
        if not now:
            return self._fed > self._most
        self._resident = min(self._resident, now)  # it was high for something else
        return now > _AMPLE_BYTES and now - self._resident > self._most


class _Fastokens:
    """Its caches of words belong to the thread that encodes, and end with it.

    They are bounded, but at 100 to 300 MB: the thread is replaced when its memory has grown.
    """

    name = "fastokens"

    def __init__(self, tokenizer_json: bytes, special_tokens: SpecialTokens) -> None:
        Tokenizer: Any = import_module("fastokens").Tokenizer

        self._as_text = special_tokens == "text"
        try:
            self._tokenizer = Tokenizer.from_json_str(tokenizer_json.decode())
        except ValueError:
            # It reads no model whose ids have holes, which added tokens make in some files.
            data = json.loads(tokenizer_json)
            for token in data["added_tokens"]:
                data["model"]["vocab"].pop(token["content"], None)
            self._tokenizer = Tokenizer.from_json_str(json.dumps(data))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._thread: ThreadPoolExecutor | None = None
        self._caches = _Caches(24 << 20)

    def encode(self, texts: list[str]) -> Encoded:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
            self._caches.begin()
        with _failing():
            ids, ends = self._thread.submit(
                self._tokenizer.encode_batch_flat,
                texts,
                add_special_tokens=False,
                split_special_tokens=self._as_text,
            ).result()
        if self._caches.full(texts):
            self._thread.shutdown()
            self._thread = None
            _trim()
        return np.frombuffer(ids, np.uint32), _lengths(np.frombuffer(ends, np.uint64))


class _Gigatoken:
    """Its cache of words grows without bound: it is loaded anew when its memory has grown."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: bytes, special_tokens: SpecialTokens) -> None:
        Tokenizer: Any = import_module("gigatoken").Tokenizer

        data = json.loads(tokenizer_json)
        if any(kind.startswith("NF") for kind in _normalizers(data.get("normalizer"))):
            raise Refused("gigatoken normalises combining marks unlike the reference")
        data["truncation"] = data["padding"] = data["post_processor"] = None
        if special_tokens == "text":
            # It has no switch, but to a tokenizer without them they are ordinary text.
            data["added_tokens"] = [one for one in data["added_tokens"] if not one["special"]]
        prepared = json.dumps(data).encode()
        self._load: Callable[[], Any] = lambda: Tokenizer.from_json(prepared)
        self._tokenizer = self._load()
        self._caches = _Caches(48 << 20)

    def encode(self, texts: list[str]) -> Encoded:
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        with _failing():
            layout = self._tokenizer.encode_batch(texts, parallel=False).layout
        ends = np.asarray(layout.offsets.data, np.int64)
        ids: NDArray[np.uint32] = np.asarray(layout.content.data, np.uint32)[ends[0] : ends[-1]]
        if self._caches.full(texts):
            self._tokenizer = None  # before the next, so that never two are held
            self._tokenizer = self._load()
            _trim()
            self._caches.begin()
        return ids, _lengths(ends)


_ENGINES: dict[str, Callable[[bytes, SpecialTokens], Engine]] = {
    "fastokens": _Fastokens,
    "gigatoken": _Gigatoken,
    "tokenizers": Reference,
}


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    """Texts in runs: what the reference holds of a token takes many times the token's bytes."""
    start = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= _CHUNK_CHARS:
            yield texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield texts[start:]


def _lengths(ends: NDArray[Any]) -> NDArray[np.int64]:
    return ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)


def _normalizers(data: Any) -> Iterator[str]:
    """The types of all normalizers of a tokenizer.json, however deep."""
    if isinstance(data, dict):
        yield str(data.get("type"))
        for inner in data.get("normalizers") or ():
            yield from _normalizers(inner)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raise _as(Failed, error) from error


def _as(kind: type[Exception], error: BaseException) -> BaseException:
    """An engine's error as one of ours. A panic of Rust code is no `Exception`."""
    ours = isinstance(error, kind | KeyboardInterrupt | SystemExit | MemoryError)
    return error if ours else kind(f"{type(error).__name__}: {error}"[:500])


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _share_heap() -> None:
    """Have all threads allocate from one heap: what a thread frees then serves the next."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _trim() -> None:
    """Give freed memory back: what parsing a tokenizer leaves would stay with the process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
