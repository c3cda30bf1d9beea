"""Where the tokenizer comes from: a file, the hub, the store that is there, or training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from mixc.errors import MixcError, Place
from mixc.recipe import Recipe
from mixc.store.hashes import key_of
from mixc.store.store import TOKENIZER, Store
from mixc.tokenize import encoder, train
from mixc.tokenize.assemble import file_hash, tokenizer_options
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.inputs import Input
from mixc.tokenize.rules import rules_of
from mixc.tokenize.units import ALGORITHM


def tokenizer_key(recipe: Recipe, inputs: Sequence[Input]) -> str:
    """The key of everything that the tokenizer depends on. Raises MX030."""
    options = recipe.tokenizer
    data: dict[str, Any] = {"algorithm": ALGORITHM, **tokenizer_options(recipe)}
    if options.path is not None:
        data["file"] = file_hash(recipe, options.path)
    elif options.train is not None:
        data["inputs"] = [[item.domain, item.reader, item.digest] for item in inputs]
        data["rules"] = {name: rules_of(one).as_key() for name, one in recipe.domains.items()}
    return key_of(data)


@dataclass(frozen=True)
class Raw:
    """A tokenizer.json that is not looked at yet, and what is asked of it.

    `eot`: the end-of-text token; None: one of the common ones. `key`: see `tokenizer_key`.
    """

    json: bytes
    eot: str | None
    special_tokens: str
    source: str
    key: str

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256(self.json).hexdigest()

    def describe(self) -> TokenizerFile:
        """Look at it: this loads the reference. Raises MX030."""
        options = {name: getattr(self, name) for name in ("eot", "special_tokens", "source", "key")}
        return encoder.describe(self.json, **options)


def stored_tokenizer(store: Store | None, key: str) -> Raw | None:
    """The tokenizer of the store that is there, if it is the one of this key, and whole."""
    if store is None or store.manifest["tokenizer"]["key"] != key:
        return None
    known = store.manifest["tokenizer"]
    try:
        raw = (store.root / TOKENIZER).read_bytes()
    except OSError:
        return None
    found = Raw(raw, known["eot"], known["special_tokens"], known["source"], key)
    return found if found.sha256 == known["sha256"] else None


def obtain(recipe: Recipe, inputs: Sequence[Input], key: str) -> Raw:
    """Read, fetch or train the recipe's tokenizer. Raises MX030."""
    options = recipe.tokenizer
    if options.path is not None:
        raw, source = recipe.resolve(options.path).read_bytes(), options.path
    elif options.hub is not None:
        raw, source = _from_hub(options.hub), f"hub:{options.hub}"
    else:
        assert options.train is not None
        source = "trained on the recipe's domains"
        raw = train.train(
            inputs,
            {name: rules_of(domain) for name, domain in recipe.domains.items()},
            vocab_size=options.train.vocab_size,
            sample_bytes=options.train.sample_bytes,
        )
    return Raw(raw, options.eot, options.special_tokens, source, key)


def _from_hub(name: str) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, TOKENIZER)).read_bytes()
    except Exception as error:  # the hub's errors have many roots
        raise MixcError(
            "MX030",
            f"cannot get the tokenizer from the hub: {type(error).__name__}",
            place=Place(f"hub:{name}"),
            help="check the name and the network, or give tokenizer.path a local tokenizer.json",
        ) from error
