"""Changed bytes and changed JSON values, for tools/fuzz.py. All randomness is the caller's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

MAX_BYTES = 1 << 14  # of an input

_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_DEEP = 1200

# In place of any value of a tree. Lone surrogates stand for `\ud800` in JSON.
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 257, 2**31, 2**32, 2**63 - 1, 2**64, -(2**63), 10**30, 10**400,
    0.0, -0.5, 1e308, float("inf"), float("nan"), "", " ", "0", "text", "a" * 1000, "\ud800", "\0",
    "ü漢", "20M", "1.5B", "..", "../x", "/etc/passwd", "s3://a/b", "<|endoftext|>", "a.b", ".",
    "{", "(?:", "(a*)*b", "no", "~", "true", [], {}, [[]], {"": None},
)  # fmt: skip

Change = Callable[[Random, bytes], bytes]


def blind(rng: Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """One to four changes of bytes; `others` are inputs to splice with, `tokens` to insert."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = (
            rng.choice(_CHANGES)(rng, data)
            if rng.random() < 0.7
            else _join(rng, data, others, tokens)
        )
    return data[:MAX_BYTES]


def _join(rng: Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    if tokens and rng.random() < 0.6:
        end = at if rng.random() < 0.5 else min(len(data), at + rng.randint(1, 16))
        return data[:at] + rng.choice(tokens) + data[end:]
    other = rng.choice(others) if others else data
    start = rng.randint(0, len(other))
    if rng.random() < 0.5:
        return data[:at] + other[start:]
    stop = rng.randint(start, len(other))
    return data[:at] + other[start:stop] + data[at:]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    longest = rng.choice((1, 4, 16, 64, len(data)))
    return start, min(len(data), start + rng.randint(0, longest))


def _flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _number(rng: Random, data: bytes) -> bytes:
    """A whole number of 1 to 8 bytes is written over, perhaps at a multiple of its size."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randint(0, len(data))
    at -= at % size if rng.random() < 0.5 else 0
    value = rng.choice(_NUMBERS) * rng.choice((1, 1, -1))
    packed = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "little", "big")))
    return data[:at] + packed + data[at + size :]


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _drop(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 20)) + data[end:]


def _noise(rng: Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _deep(rng: Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice((b"[", b'{"a":', b'"', b"- ", b"{", b"(")) * _DEEP + data[at:]


_CHANGES: tuple[Change, ...] = (
    _flip, _flip, _flip, _number, _number, _cut, _drop, _repeat, _noise, _deep,
)  # fmt: skip


def tree(rng: Random, value: Any) -> Any:
    """A JSON value, changed in one to three places."""
    value = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots = list(_spots(value, 0))
        if not spots:
            break
        holder, key = rng.choice(spots[1:] or spots)
        _change(rng, holder, key, spots)
    return value[0] if value else None


def _spots(node: Any, depth: int) -> Any:
    """Every (list or dict, key) of a value, as far as it is not deep."""
    if depth > 50:
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in list(items):
        yield node, key
        if isinstance(child, dict | list):
            yield from _spots(child, depth + 1)


def _change(rng: Random, holder: Any, key: Any, spots: list[tuple[Any, Any]]) -> None:
    what = rng.randrange(7)
    if what == 0:
        del holder[key]
    elif what == 1:
        other, at = rng.choice(spots)
        if at in other if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])
    elif what == 2 and isinstance(holder, dict):
        name = rng.choice((*(at for _, at in spots if isinstance(at, str)), "", "x", "a.b", "ü"))
        holder[name] = holder.pop(key)
    elif what == 2:
        holder.insert(rng.randint(0, len(holder)), copy.deepcopy(holder[key]))
    elif what == 3:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif what == 4 and isinstance(holder[key], int | float):
        holder[key] += rng.choice((-1, 1, 255, 2**16, 2**32))
    elif what == 5 and isinstance(holder[key], str):
        raw = blind(rng, holder[key].encode(errors="replace"), (), ())
        holder[key] = raw.decode(errors="replace")[:2000]
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
