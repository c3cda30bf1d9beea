"""Tokenizer files, and texts to token ids: by an engine, of whose work samples are set aside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mixc.errors import MixcError, Place
from mixc.store.shard import token_dtype
from mixc.tokenize.check import LONG_BYTES, Mismatch, Sampler, differing, stretch
from mixc.tokenize.engines import (
    PREFERENCE,
    REFERENCE,
    Encoded,
    Engine,
    Failed,
    Reference,
    Refused,
    SpecialTokens,
    load_engine,
)

MAX_FILE_BYTES = 256 << 20
_MAX_VOCAB = 1 << 22  # engines hold tables up to the greatest id, whatever holes there are
# The end-of-text tokens of the common tokenizers, most particular first.
_EOT = ("<|endoftext|>", "<|end_of_text|>", "<|endofdocument|>", "<eos>", "</s>", "[SEP]")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json, whole, and what must be known of it.

    `vocab_size`: largest id + 1. `specials`: the special tokens, as texts may spell them.
    `normalizes`: the tokenizer changes texts before it cuts them.
    """

    json: bytes
    sha256: str
    vocab_size: int
    eot: str
    eot_id: int
    special_tokens: str
    source: str
    key: str
    specials: tuple[str, ...]
    normalizes: bool

    def as_dict(self) -> dict[str, Any]:
        """The tokenizer as manifests describe it."""
        names = ("sha256", "vocab_size", "eot", "eot_id", "special_tokens", "source", "key")
        return {name: getattr(self, name) for name in names}

    @property
    def mode(self) -> SpecialTokens:
        """What engines make of special tokens in a text: ordinary text, or their ids."""
        return mode_of(self.special_tokens)

    def engine(self, name: str) -> Engine:
        """An engine for this tokenizer, loaded once in a process. Raises Refused."""
        return load_once(name, self.json, self.mode)


def mode_of(special_tokens: str) -> SpecialTokens:
    """What engines make of special tokens, by the recipe's word for it."""
    return "encode" if special_tokens == "encode" else "text"


@lru_cache(maxsize=len(PREFERENCE))
def load_once(name: str, tokenizer_json: bytes, mode: SpecialTokens) -> Engine:
    """As `load_engine`, but a process keeps what it has loaded. Raises Refused."""
    return load_engine(name, tokenizer_json, mode)


def load_early(name: str, tokenizer_json: bytes, mode: SpecialTokens) -> None:
    """Load an engine for a file that nobody has looked at: if its ids are in range, that is."""
    if not _wild(tokenizer_json):
        load_once(name, tokenizer_json, mode)


class _Ids(msgspec.Struct):
    """What a tokenizer.json says of ids, if its vocabulary numbers its tokens."""

    class _Model(msgspec.Struct):
        vocab: Any

    class _Token(msgspec.Struct):
        id: int

    model: _Model
    added_tokens: list[_Token] | None = None


def _wild(raw: bytes) -> bool:
    """Whether an engine might hold tables of any size for a file."""
    if len(raw) > MAX_FILE_BYTES:
        return True
    try:
        ids = msgspec.json.decode(raw, type=_Ids)
        vocab = ids.model.vocab
        found = [*vocab.values()] if isinstance(vocab, dict) else []
        return (
            max([*found, *(token.id for token in ids.added_tokens or ())], default=0) > _MAX_VOCAB
        )
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return True


class _Added(msgspec.Struct):
    content: str
    special: bool = False


class _Parts(msgspec.Struct):
    """What is looked at of a tokenizer.json beside what the reference makes of it."""

    added_tokens: list[_Added] | None = None
    normalizer: Any = None


def describe(
    raw: bytes, *, eot: str | None, special_tokens: str, source: str, key: str
) -> TokenizerFile:
    """Check a tokenizer.json and find its end-of-text token. Raises MX030."""
    parts = _parts(raw, source)
    try:
        reference = cast("Reference", load_once(REFERENCE, raw, mode_of(special_tokens)))
    except Refused as refused:
        raise _bad(source, str(refused.__cause__)) from refused
    vocabulary = reference.vocabulary()
    if not vocabulary or min(vocabulary.values()) < 0 or max(vocabulary.values()) >= _MAX_VOCAB:
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
        special_tokens=special_tokens,
        source=source,
        key=key,
        specials=tuple(sorted(one.content for one in parts.added_tokens or () if one.special)),
        normalizes=bool(parts.normalizer),
    )


def _parts(raw: bytes, source: str) -> _Parts:
    if len(raw) > MAX_FILE_BYTES:
        raise _bad(source, f"it is over {MAX_FILE_BYTES} bytes long")
    try:
        return msgspec.json.decode(raw, type=_Parts)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _bad(source, str(error)) from error


def load(raw: bytes, source: str) -> Tokenizer:
    """A tokenizer from untrusted bytes, to decode with. Raises MX030."""
    _parts(raw, source)
    try:
        return Tokenizer.from_str(raw.decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise _bad(source, str(error)) from error


def _bad(source: str, reason: str, help: str | None = None) -> MixcError:
    message = f"the tokenizer cannot be used: {reason}"
    return MixcError("MX030", message, place=Place(source), help=help)


@dataclass(frozen=True)
class Trust:
    """The engine that encodes, the share of text verified, and (name, version) of engines that
    proved wrong, whose work is not taken any more.
    """

    engine: str
    version: str
    share: float
    condemned: tuple[tuple[str, str], ...] = ()

    def accepts(self, engine: dict[str, Any]) -> bool:
        """Whether a unit that was encoded so may be adopted."""
        name = engine["name"]
        if (name, engine["version"]) in self.condemned:
            return False
        return bool(name == REFERENCE or engine["share"] >= self.share)


class EngineMismatch(Exception):  # noqa: N818 (not an error of the user's)
    """An engine gave other ids than the reference."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(mismatch)
        self.mismatch = mismatch


class Sink(Protocol):
    """Where texts go that are to be verified, with their ids and their bytes of UTF-8."""

    def add(self, text: str, ids: NDArray[np.uint32], size: int) -> None:
        """Take a text."""
        ...


class Encoder:
    """Encodes batches of texts, each closed by the end-of-text id; gives samples of its work."""

    def __init__(self, file: TokenizerFile, trust: Trust) -> None:
        self.trust = trust
        self._file = file
        self._engine = file.engine(trust.engine)
        self._sampler: tuple[Sampler, Sink] | None = None
        self.gave_up = 0
        self.eot_id = file.eot_id
        self.dtype = token_dtype(file.vocab_size)
        # `encode` is the user's own wish: then a text may hold the end-of-text id.
        self.refuses_eot = file.mode == "text"
        strict = file.special_tokens == "error" and file.specials
        self.forbidden = re.compile("|".join(map(re.escape, file.specials))) if strict else None

    def begin(self, samples: Sink) -> None:
        """Begin a unit: what is set aside of it depends on the unit alone."""
        self.gave_up = 0
        if self.trust.engine != REFERENCE and self.trust.share > 0:
            file = self._file
            sampler = Sampler(self.trust.share, file.normalizes, file.specials)
            self._sampler = sampler, samples

    def encode(
        self, texts: list[str], doc_id: NDArray[np.uint64], n_bytes: NDArray[np.uint32]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Tokens of all texts end to end, and the length of each.

        Raises MX031 for an id out of range, EngineMismatch if the reference has other ids then.
        """
        found = self._fast(texts)
        if found is None:
            self.gave_up += len(texts)
            ids, counts = self._expected(texts)
        else:
            ids, counts = found
            self._set_aside(texts, found, doc_id, n_bytes)
        # numpy wraps silently where an id does not fit.
        if len(ids) and int(ids.max()) >= self._file.vocab_size:
            self.judge(texts, (ids, counts))
            raise MixcError("MX031", f"the tokenizer gave the id {int(ids.max())}")
        ends = np.cumsum(counts + 1)
        flat = np.empty(int(ends[-1]) if len(ends) else 0, self.dtype)
        inside = np.ones(len(flat), np.bool_)
        inside[ends - 1] = False
        flat[inside] = ids
        flat[ends - 1] = self.eot_id
        return flat, counts + 1

    def judge(self, texts: list[str], got: Encoded) -> None:
        """Raise EngineMismatch if the reference has other ids than the engine gave."""
        if self.trust.engine == REFERENCE:
            return
        mismatch = differing(self.trust.engine, texts, got, self._expected(texts))
        if mismatch is not None:
            raise EngineMismatch(mismatch)

    def _fast(self, texts: list[str]) -> Encoded | None:
        """Ids by the engine, if it does not give up."""
        try:
            ids, counts = self._engine.encode(texts)
        except Failed as failed:
            if self.trust.engine == REFERENCE:
                raise gave_up(failed) from failed
            return None
        return (ids, counts) if len(counts) == len(texts) else None

    def _expected(self, texts: list[str]) -> Encoded:
        try:
            return self._file.engine(REFERENCE).encode(texts)
        except Failed as failed:
            raise gave_up(failed) from failed

    def _set_aside(
        self,
        texts: list[str],
        found: Encoded,
        doc_id: NDArray[np.uint64],
        n_bytes: NDArray[np.uint32],
    ) -> None:
        """Put some documents, and stretches of some long ones, among the samples."""
        if self._sampler is None:
            return
        sampler, samples = self._sampler
        ids, counts = found
        stops = np.cumsum(counts)
        for i in sampler.choose(texts, doc_id, n_bytes).tolist():
            if n_bytes[i] <= LONG_BYTES or self.trust.share >= 1:
                samples.add(texts[i], ids[stops[i] - counts[i] : stops[i]], int(n_bytes[i]))
                continue
            part = stretch(texts[i], int(doc_id[i]))
            if (again := self._fast([part])) is not None:
                samples.add(part, again[0], len(part.encode()))


def gave_up(failed: Failed) -> MixcError:
    """The error for a text that the reference cannot encode."""
    return MixcError("MX030", f"the tokenizer gave up on a text: {failed}")
