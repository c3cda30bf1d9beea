"""Load a recipe: the file, the `-s` overrides, and everything that is wrong, at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from mixc import strict_yaml
from mixc.errors import CODES, MixcError, MixcErrors, Place, did_you_mean, raise_all
from mixc.recipe_schema import (
    Domain,
    Holdout,
    Mixture,
    Order,
    Proxy,
    Recipe,
    Solve,
    Strict,
    Tokenizer,
    Train,
)
from mixc.recipe_types import PRESETS, WEIGHT_WORDS
from mixc.registry import METHODS

__all__ = [
    "PRESETS",
    "WEIGHT_WORDS",
    "Domain",
    "Holdout",
    "Mixture",
    "Order",
    "Proxy",
    "Recipe",
    "Solve",
    "Strict",
    "Tokenizer",
    "Train",
    "json_schema",
    "load",
]

Keys = tuple[str | int, ...]


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file. Raises MixcError or MixcErrors, with everything that is wrong."""
    document = strict_yaml.load(path)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        place = Place(document.file, document.marks[()].line, document.marks[()].col)
        message = f"expected a mapping of keys, found {_shown(data)}"
        raise MixcError("MX007", message, place=place, help="a recipe begins with 'name: ...'")
    source = _Source(data, document)
    errors = [error for text in overrides if (error := _apply(source, text))]
    errors += _crossed(source)
    try:
        recipe = recipe_model().model_validate(source.data)
    except ValidationError as invalid:
        errors += [_explain(source, found) for found in invalid.errors() if _counts(found)]
    raise_all(_sorted(errors, overrides))
    recipe.set_origin(path, tuple(overrides), lambda keys: source.place(source.find(keys)))
    return recipe


@cache
def recipe_model() -> type[Recipe]:
    """The Recipe model with a key for each method's options. Imports the methods."""
    fields: dict[str, Any] = {
        name: (options, Field(options(), description=METHODS[name].summary))
        for name, options in _method_options().items()
    }
    solve = create_model("Solve", __base__=Solve, __doc__=Solve.__doc__, **fields)
    about = Recipe.model_fields["solve"].description
    section: Any = (solve | None, Field(None, description=about))
    return create_model("Recipe", __base__=Recipe, __doc__="A recipe of mixc.", solve=section)


def _method_options() -> dict[str, type[Strict]]:
    return {name: entry.load().Options for name, entry in METHODS.items()}


@cache
def shared_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with the options of every method. Not to be changed."""
    schema = recipe_model().model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def json_schema() -> dict[str, Any]:
    """A copy of the JSON Schema of a recipe, with the options of every method."""
    return copy.deepcopy(shared_schema())


@dataclass
class _Source:
    """The data of a recipe, and where each part of it was written."""

    data: dict[str, Any]
    document: strict_yaml.Document
    overridden: dict[Keys, str] = field(default_factory=dict)

    def find(self, keys: Sequence[str | int]) -> Keys:
        """The keys that lead into the data; what pydantic adds to its paths is dropped."""
        node: Any = self.data
        found: list[str | int] = []
        for key in keys:
            if _holds(node, key):
                node = node[key]
                found.append(key)
        return tuple(found)

    def place(self, keys: Keys, *, of_key: bool = False) -> Place:
        """Where a value (or its key) was written: a line of the file, or an override."""
        for n in range(len(keys), -1, -1):
            if keys[:n] in self.overridden:
                return Place(f"-s {self.overridden[keys[:n]]}")
        mark = self.document.marks[keys]
        if of_key:
            return Place(self.document.file, mark.key_line, mark.key_col)
        return Place(self.document.file, mark.line, mark.col)

    def override(self, words: list[str], value: object, text: str) -> None:
        """Set a value. ValueError if the words lead nowhere."""
        node: Any = self.data
        keys: Keys = ()
        while True:
            key, words = _next_key(node, words)
            keys = (*keys, key)
            if not words:
                break
            if not _holds(node, key) or node[key] is None:
                node[key] = {}
                self.claim(keys, text)
            node = node[key]
        node[key] = value
        self.claim(keys, text)

    def claim(self, keys: Keys, text: str) -> None:
        """Note that all below these keys now comes from an override."""
        kept = {old: t for old, t in self.overridden.items() if old[: len(keys)] != keys}
        self.overridden = {**kept, keys: text}

    def error(
        self, code: str, message: str, keys: Keys, hint: str | None, *, of_key: bool = False
    ) -> MixcError:
        """An error about the value (or the key) at these keys."""
        return MixcError(code, message, place=self.place(keys, of_key=of_key), help=hint)


def _holds(node: object, key: str | int) -> bool:
    if isinstance(node, dict):
        return key in node
    return isinstance(node, list) and isinstance(key, int) and key < len(node)


# Overrides


def _apply(source: _Source, text: str) -> MixcError | None:
    """Apply one `-s` override. Returns what is wrong with it."""
    place = Place(f"-s {text}")
    path, sign, written = text.partition("=")
    words = [word.strip() for word in path.split(".")]
    if not sign or not all(words):
        hint = "write -s key.path=value, as in -s mixture.tokens=20M"
        return MixcError("MX010", "not of the form key.path=value", place=place, help=hint)
    try:
        source.override(words, strict_yaml.parse_value(written), text)
    except MixcErrors as errors:
        first = errors.errors[0]
        return MixcError("MX010", first.message, place=place, help=first.help)
    except MixcError as error:
        return MixcError("MX010", error.message, place=place, help=error.help)
    except ValueError as error:
        return MixcError("MX010", str(error), place=place)
    return None


def _next_key(node: object, words: list[str]) -> tuple[str | int, list[str]]:
    """The next key of the path, and the words after it. Keys may hold dots: the longest wins."""
    if isinstance(node, dict):
        for n in range(len(words), 0, -1):
            if (key := ".".join(words[:n])) in node:
                return key, words[n:]
        return words[0], words[1:]
    if not isinstance(node, list):
        raise ValueError(f"{words[0]!r} leads into {_shown(node)}, which has no keys")
    if not words[0].isdecimal() or int(words[0]) >= len(node):
        raise ValueError(f"{words[0]!r} is not an item of a list of {len(node)}, from 0")
    return int(words[0]), words[1:]


# Keys that exclude or require each other. These look at the raw data, which may be wrong in
# other ways too: whatever is not of the right kind is left to pydantic.


def _crossed(source: _Source) -> list[MixcError]:
    checks: tuple[Callable[[_Source], Iterator[MixcError]], ...] = (
        _check_tokenizer,
        _check_length,
        _check_solved,
        _check_shares,
    )
    return [error for check in checks for error in check(source)]


def _given(source: _Source, section: str) -> list[str] | None:
    """The keys of a section that have a value, in order; None if it is no mapping."""
    node = source.data.get(section)
    return [k for k in node if node[k] is not None] if isinstance(node, dict) else None


def _check_one_of(source: _Source, section: str, names: tuple[str, ...]) -> Iterator[MixcError]:
    given = _given(source, section)
    if given is None:
        return
    chosen = [key for key in given if key in names]
    listed = ", ".join(names[:-1]) + " or " + names[-1]
    if not chosen:
        message = f"'{section}' needs one of {listed}"
        yield source.error("MX009", message, (section,), f"add {listed}", of_key=True)
    for key in chosen[1:]:
        message = f"'{key}' excludes '{chosen[0]}' in '{section}'"
        hint = f"keep exactly one of {listed}"
        yield source.error("MX009", message, (section, key), hint, of_key=True)


def _check_tokenizer(source: _Source) -> Iterator[MixcError]:
    yield from _check_one_of(source, "tokenizer", ("train", "path", "hub"))
    given = _given(source, "tokenizer") or []
    if "eot" in given and "train" in given:
        message = "'eot' excludes 'train': a trained tokenizer has its own end-of-text token"
        yield source.error("MX009", message, ("tokenizer", "eot"), "remove 'eot'", of_key=True)


def _check_length(source: _Source) -> Iterator[MixcError]:
    return _check_one_of(source, "mixture", ("tokens", "rows"))


def _asked_weights(source: _Source) -> Iterator[tuple[Keys, object]]:
    """The weights that count, and their keys: the mixture's, or those of its stages.

    With stages, the mixture's own are no more than where a first ramp begins.
    """
    mixture = source.data.get("mixture")
    if not isinstance(mixture, dict):
        return
    stages = mixture.get("stages")
    stages = [one for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []
    if not stages or stages[0].get("ramp"):
        yield ("mixture", "weights"), mixture.get("weights", "solved")
    for number, stage in enumerate(stages):
        yield ("mixture", "stages", number, "weights"), stage.get("weights")


def _check_solved(source: _Source) -> Iterator[MixcError]:
    if source.data.get("solve") is not None:
        return
    for keys, asked in _asked_weights(source):
        if asked == "solved":
            written = keys[1] != "weights" or "weights" in source.data["mixture"]
            hint = "add a 'solve' section, or set weights to natural, uniform or unimax"
            message = "weights are 'solved', but there is no 'solve' section"
            at = keys if written else keys[:1]
            yield source.error("MX009", message, at, hint, of_key=not written)
    if "document_weights" in (_given(source, "mixture") or []):
        keys = ("mixture", "document_weights")
        if source.data["mixture"]["document_weights"] == "solved":
            message = "document_weights are 'solved', but there is no 'solve' section"
            yield source.error("MX009", message, keys, "add a 'solve' section")


def _check_shares(source: _Source) -> Iterator[MixcError]:
    """Weights written out: every domain once, and a sum of 1."""
    domains = source.data.get("domains")
    for keys, shares in _asked_weights(source):
        if isinstance(shares, dict) and isinstance(domains, dict):
            yield from _check_written(source, keys, shares, domains)


def _check_written(
    source: _Source, keys: Keys, shares: dict[str, Any], domains: dict[str, Any]
) -> Iterator[MixcError]:
    """Which domains `split_by` makes is not known yet: of those the build checks the names."""
    split = [name for name, one in domains.items() if _holds(one, "split_by")]
    unknown = [
        name
        for name in shares
        if (name not in domains or name in split)
        and not any(str(name).startswith(f"{one}.") for one in split)
    ]
    missing = [name for name in domains if name not in shares and name not in split]
    where = _dotted(keys)
    for name in unknown:
        hint = did_you_mean(name, list(domains))
        if name in split:
            hint = f"it is split: name its parts, as in {name}.<value of split_by>"
        message = f"{where}: unknown domain {_shown(name)}"
        yield source.error("MX008", message, (*keys, name), hint, of_key=True)
    for name in missing:
        message = f"{where}: the domain {_shown(name)} is missing"
        yield source.error("MX006", message, keys, f"say `{name}: 0` to leave it out", of_key=True)
    if not unknown and not missing and (wrong := _wrong_sum(shares)):
        yield source.error("MX007", f"{where}: {wrong[0]}", keys, wrong[1])


def _wrong_sum(shares: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the sum of the shares, and the remedy."""
    for share in shares.values():
        if not isinstance(share, int | float) or isinstance(share, bool) or share < 0:
            return None  # pydantic says so
    total = math.fsum(shares.values())
    if abs(total - 1) <= 1e-6:
        return None
    message = f"the weights sum to {total:.9g}, not 1"
    if total == 0:
        return message, "give at least one domain a weight above 0"
    scaled = ", ".join(f"{name}: {share / total:.6g}" for name, share in shares.items())
    return message, f"scaled to 1 they are {{{scaled}}}"


# Pydantic's errors in our words

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "some text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "too_short": "at least one entry",
}
BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _explain(source: _Source, details: ErrorDetails) -> MixcError:
    """One error of pydantic, as users see it."""
    kind, keys = details["type"], source.find(details["loc"])
    if kind == "extra_forbidden":
        message = f"unknown key {_shown(keys[-1])}{_within(keys[:-1])}"
        hint = did_you_mean(str(keys[-1]), list(_schema_at(keys[:-1])["properties"]))
        return source.error("MX005", message, keys, hint, of_key=True)
    if kind == "missing":
        key = details["loc"][-1]
        message = f"missing key '{key}'{_within(keys)}"
        hint = f"add {_about((*keys, key)) or key}"
        return source.error("MX006", message, keys, hint, of_key=True)
    context = details.get("ctx", {})
    code = kind if kind in CODES else "MX007"
    message = f"{_dotted(keys)}: {_complaint(details)}"
    hint = context.get("help") or _remedy(kind, details["input"]) or _about(keys)
    return source.error(code, message, keys, hint, of_key=details["loc"][-1] == "[key]")


def _counts(details: ErrorDetails) -> bool:
    """False for a list that is too short only because its items are wrong."""
    return details["type"] != "too_short" or not details["input"]


def _complaint(details: ErrorDetails) -> str:
    """What is wrong with a value."""
    kind, found, context = details["type"], _shown(details["input"]), details.get("ctx", {})
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind]}, found {found}"
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        bound = context[name]
        return (
            f"expected {words} {bound if isinstance(bound, int) else f'{bound:g}'}, found {found}"
        )
    if kind == "literal_error":
        return f"expected {context['expected']}, found {found}"
    if kind == "value_error":
        return str(context["error"])
    return details["msg"]


def _remedy(kind: str, value: object) -> str | None:
    """How to repair a value of the wrong kind, where that is plain."""
    if value is None:
        return "write a value, or remove the key"
    if kind == "string_type" and not isinstance(value, dict | list):
        return f'put it in quotes: "{_shown(value)}"'
    if kind == "tuple_type" and isinstance(value, str):
        return f"write it as a list: [{value}]"
    return None


def _schema_at(keys: Keys) -> dict[str, Any]:
    """The JSON Schema of the section at these keys."""
    whole = node = shared_schema()
    for key in keys:
        names = list(node.get("patternProperties", {}).values())
        node = node.get("properties", {}).get(key) or (names or [node.get("items", {})])[0]
        node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
        if "$ref" in node:
            node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _about(keys: Keys) -> str | None:
    """What the schema says of a key."""
    about = _schema_at(keys[:-1]).get("properties", {}).get(keys[-1], {}).get("description")
    return about and f"{keys[-1]}: {about}"


def _dotted(keys: Keys) -> str:
    return ".".join(str(key)[:80] for key in keys)


def _within(keys: Keys) -> str:
    return f" in '{_dotted(keys)}'" if keys else ""


def _shown(value: object) -> str:
    """A value as an error shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or value == {} or value == []:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return str(value)


def _sorted(errors: list[MixcError], overrides: Sequence[str]) -> list[MixcError]:
    """By line; then those of overrides, in their order."""
    ranks = {f"-s {text}": rank for rank, text in enumerate(overrides)}

    def position(error: MixcError) -> tuple[float, int]:
        place = error.place
        assert place is not None
        if place.line is None:
            return math.inf, ranks[place.file]
        return place.line, place.col or 0

    return sorted(errors, key=position)
