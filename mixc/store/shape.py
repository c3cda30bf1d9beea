"""The kinds of the values in a store's manifest. A seal shows damage, not what was sealed."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _File(TypedDict):
    path: str
    bytes: _Count
    xxh3: str


class _Shard(_File):
    documents: _Count
    tokens: _Count
    text_bytes: _Count
    values_offset: _Count
    split: NotRequired[str]


class _Unit(TypedDict):
    key: str
    inputs: list[dict[str, Any]]
    shards: list[_Shard]
    engine: dict[str, Any]
    quarantine: _File | None
    ended: bool


class _Held(TypedDict):
    documents: _Count
    tokens: _Count


class _Domain(TypedDict):
    source: str
    documents: _Count
    tokens: _Count
    text_bytes: _Count
    held_out: _Held


class _Tokenizer(TypedDict):
    sha256: str
    vocab_size: _Count
    eot: str
    eot_id: _Count
    special_tokens: str
    source: str
    key: str


class _Store(TypedDict):
    key: str
    options_key: str
    store_hash: str
    dtype: str
    tokenizer: _Tokenizer
    files: list[_File]
    sources: dict[str, list[_Unit]]
    domains: dict[str, _Domain]


def check_store(manifest: dict[str, Any]) -> None:
    """Raise msgspec.ValidationError, which says where, unless the values are of their kinds."""
    msgspec.convert(manifest, _Store)
