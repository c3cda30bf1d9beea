"""Texts to token ids with `tokenizers`, the reference engine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mixc.errors import MixcError, Place
from mixc.store.shard import token_dtype

_MAX_FILE_BYTES = 256 << 20
# The end-of-text tokens of the common tokenizers, most particular first.
_EOT = ("<|endoftext|>", "<|end_of_text|>", "<|endofdocument|>", "<eos>", "</s>", "[SEP]")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json, whole, and what must be known of it. `vocab_size`: largest id + 1."""

    json: bytes
    sha256: str
    vocab_size: int
    eot: str
    eot_id: int
    source: str
    key: str

    def as_dict(self) -> dict[str, Any]:
        """The tokenizer as manifests describe it."""
        names = ("sha256", "vocab_size", "eot", "eot_id", "source", "key")
        return {name: getattr(self, name) for name in names}


def describe(raw: bytes, *, eot: str | None, source: str, key: str) -> TokenizerFile:
    """Check a tokenizer.json and find its end-of-text token. Raises MX030."""
    tokenizer = load(raw, source)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary or min(vocabulary.values()) < 0 or max(vocabulary.values()) >= 1 << 31:
        raise _bad(source, "its vocabulary is empty or has ids out of range")
    known = [name for name in _EOT if name in vocabulary]
    if eot is not None and eot not in vocabulary:
        raise _bad(source, f"it has no token '{eot}'", help="name one of its tokens as eot")
    if eot is None and not known:
        raise _bad(source, "no end-of-text token is known in it", help="name it: tokenizer.eot")
    token = eot if eot is not None else known[0]
    return TokenizerFile(
        json=raw,
        sha256=sha256(raw).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        eot=token,
        eot_id=vocabulary[token],
        source=source,
        key=key,
    )


def load(raw: bytes, source: str) -> Tokenizer:
    """A tokenizer from untrusted bytes. Special strings inside a text are ordinary text."""
    if len(raw) > _MAX_FILE_BYTES:
        raise _bad(source, f"it is over {_MAX_FILE_BYTES} bytes long")
    try:
        json.loads(raw)
        tokenizer = Tokenizer.from_str(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _bad(source, str(error)) from error
    except Exception as error:  # tokenizers raises bare Exception
        raise _bad(source, str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # No document may inject an end-of-text by spelling it.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _bad(source: str, reason: str, help: str | None = None) -> MixcError:
    message = f"the tokenizer cannot be used: {reason}"
    return MixcError("MX030", message, place=Place(source), help=help)


class Encoder:
    """Encodes batches of texts, each closed by the end-of-text id."""

    def __init__(self, file: TokenizerFile) -> None:
        # One worker is one process: threads of the engine would fight over its core.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = load(file.json, file.source)
        self.eot_id, self._vocab_size = file.eot_id, file.vocab_size
        self.dtype = token_dtype(file.vocab_size)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Tokens of all texts end to end, and the length of each. Raises MX031."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter((len(one) + 1 for one in ids), np.int64, len(ids))
        ends = np.cumsum(lengths)
        flat = np.empty(int(ends[-1]) if len(ids) else 0, np.int64)
        flat[ends - 1] = self.eot_id
        for one, end, length in zip(ids, ends, lengths, strict=True):
            flat[end - length : end - 1] = one
        # numpy wraps silently where an id does not fit.
        if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < self._vocab_size:
            raise MixcError("MX031", f"the tokenizer gave the id {int(flat.max())}")
        return flat.astype(self.dtype), lengths
