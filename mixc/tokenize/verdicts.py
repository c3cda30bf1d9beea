"""Which engine encodes: the fastest that gave the reference's ids on everything it was asked.

A verdict is kept beside the store. One that an engine passed holds for a tokenizer, the engine's
version and a processor; one that it failed for every processor and for good, with the text and
both encodings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mixc import progress
from mixc.errors import MixcError, Place
from mixc.recipe import Tokenizer
from mixc.store import commit
from mixc.store.hashes import key_of, seal, unseal
from mixc.tokenize.check import Mismatch, cpu_features
from mixc.tokenize.encoder import TokenizerFile, Trust, mode_of
from mixc.tokenize.engines import PREFERENCE, REFERENCE, Failed, Refused, version_of

_SCHEMA = "mixc.verdict/1"


def likely(options: Tokenizer, tokenizer: str, special_tokens: str, folder: Path) -> str:
    """The first engine that `choose` will ask for, so that workers may load it by then.

    `tokenizer`: its SHA-256.
    """
    wrong = condemned(folder, tokenizer, mode_of(special_tokens))
    for name in _candidates(options):
        with suppress(Refused):
            if (name, version_of(name)) not in wrong:
                return name
    return REFERENCE


def choose(
    options: Tokenizer,
    file: TokenizerFile,
    trial: Callable[[str], Mismatch | None],
    trial_key: Callable[[], str],
    folder: Path,
) -> Trust:
    """The engine to encode with, verified by `trial(name)` unless it is known to pass that.

    `trial_key()` stands for the texts of the trial, which raises Refused, and Failed where the
    reference does. `folder` is where verdicts are kept. Raises MX047 if the recipe
    names an engine that cannot be used, MX048 if it names one that gave other ids than the
    reference.
    """
    share = 1.0 if options.engine == REFERENCE else options.verify
    wrong = condemned(folder, file.sha256, file.mode)
    reasons, failed = [], False
    for name in _candidates(options):
        try:
            version = version_of(name)
            path = _verdict(folder, file, name, version)
            passes = name == REFERENCE or (
                (name, version) not in wrong
                and _passes(path, file, version, partial(trial, name), trial_key)
            )
        except Refused as refused:
            reasons.append(f"{name}: {refused}")
            continue
        except Failed as gave_up:
            reasons.append(f"{name}: cannot be tried, as {REFERENCE} gave up on a text: {gave_up}")
            continue
        if passes:
            if reasons:
                progress.say("encoding with " + name + "; " + "; ".join(reasons))
            return Trust(name, version, share, condemned(folder, file.sha256, file.mode))
        failed = True
        reasons.append(f"{name}: it gave other ids than {REFERENCE}")
    place = Place(str(path)) if failed else None
    raise MixcError(
        "MX048" if failed else "MX047",
        f"the engine cannot be used: {reasons[-1]}",
        place=place,
        help="engine: auto finds one that can; engine: tokenizers is the reference",
    )


def condemned(folder: Path, tokenizer: str, mode: str) -> tuple[tuple[str, str], ...]:
    """Every (engine, version) that ever failed here, on whatever processor.

    `tokenizer`: its SHA-256.
    """
    of = {"tokenizer": tokenizer, "mode": mode}
    verdicts = [_read(path) for path in sorted(folder.glob("*.json"))]
    failed = [one["mismatch"] for one in verdicts if one["mismatch"] and of.items() <= one.items()]
    return tuple((one["engine"], one["version"]) for one in failed)


def condemn(folder: Path, file: TokenizerFile, version: str, mismatch: Mismatch) -> None:
    """Keep a mismatch, and say so: this version encodes with this tokenizer no more."""
    path = _verdict(folder, file, mismatch.engine, version)
    told = {"version": version, **mismatch.as_dict()}
    verdict = {"schema": _SCHEMA, **_of(file), "heads": [], "mismatch": told}
    commit.write_file(path, seal(verdict))
    progress.say(
        f"{mismatch.engine} {version} gave other ids than {REFERENCE}: "
        f"it is dropped, and what it encoded is encoded again; the text is kept in {path}"
    )


def _candidates(options: Tokenizer) -> tuple[str, ...]:
    return PREFERENCE if options.engine == "auto" else (options.engine,)


def _of(file: TokenizerFile) -> dict[str, str]:
    return {"tokenizer": file.sha256, "mode": file.mode}


def _passes(
    path: Path,
    file: TokenizerFile,
    version: str,
    trial: Callable[[], Mismatch | None],
    trial_key: Callable[[], str],
) -> bool:
    known, key = _read(path), trial_key()
    if key in known["heads"]:
        return True
    mismatch = trial()
    if mismatch is not None:
        condemn(path.parent, file, version, mismatch)
        return False
    # The latest few: a recipe that changes back and forth need not verify each time.
    verdict = {
        "schema": _SCHEMA,
        **_of(file),
        "heads": [*known["heads"][-63:], key],
        "mismatch": None,
    }
    commit.write_file(path, seal(verdict))
    return True


def _verdict(folder: Path, file: TokenizerFile, name: str, version: str) -> Path:
    key = key_of([file.sha256, file.mode, name, version, cpu_features()])
    return folder / f"{name}-{key[:16]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        return unseal(path, _SCHEMA)
    except MixcError:  # none yet, or not to be relied on
        return {"heads": [], "mismatch": None}
