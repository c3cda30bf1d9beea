"""The types of a recipe's values: what is checked beyond pydantic's own, and its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, LiteralString

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from mixc.errors import did_you_mean
from mixc.registry import METHODS, READERS, WRITERS

PRESETS = ("nano", "micro", "mini", "small", "base", "large")
ENGINES = ("auto", "fastokens", "gigatoken", "tokenizers")
REMOTE = ("s3", "gs", "https", "http", "hf")
WEIGHT_WORDS = ("solved", "natural", "uniform", "unimax")
RECIPE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RESERVED_NAMES = ("manifest.json", "tokenizer.json", "holdout.arrow")
DOMAIN_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"

UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
QUANTITY = re.compile(r"([0-9][0-9_]{0,29})(?:\.([0-9]{1,15}))?([kKMBGT])")
QUANTITY_HELP = "write a whole number, or one with k, M, B or T: 200_000, 20M, 1.5B"
MAX_QUANTITY = 2**63 - 1


def wrong(code: LiteralString, message: str, hint: str | None = None) -> PydanticCustomError:
    """An error of a validator; its type is the error code, its help stands in the context."""
    return PydanticCustomError(code, "{message}", {"message": message, "help": hint})


def parse_quantity(value: object) -> object:
    """The whole number that `20M` or `1.5B` stands for. Other types are left to pydantic."""
    if not isinstance(value, str | float):
        return value
    match = QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong("MX007", f"expected a quantity, found {value!r:.60}", QUANTITY_HELP)
    whole, fraction, unit = match[1].replace("_", ""), match[2] or "", match[3]
    number, rest = divmod(int(whole + fraction) * UNITS[unit], 10 ** len(fraction))
    if rest:
        raise wrong("MX007", f"expected a whole number, found {value}", QUANTITY_HELP)
    return number


def _matches(pattern: str, hint: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise wrong("MX007", f"{value!r:.80} is not a valid name", hint)
        return value

    return AfterValidator(check)


def _not_reserved(value: str) -> str:
    if value in RESERVED_NAMES:
        raise wrong("MX007", f"{value!r} is the name of a file of the store", "rename the domain")
    return value


def _check_field(value: str) -> str:
    if any(ch in '"\\' or not ch.isprintable() for ch in value) or not all(value.split(".")):
        hint = "name a plain field, or a nested one with dots: content.body"
        raise wrong("MX007", f"{value!r:.80} is not the name of a field", hint)
    return value


def _known(names: Collection[str], noun: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise wrong("MX008", f"unknown {noun} {value!r:.80}", did_you_mean(value, list(names)))
        return value

    return AfterValidator(check)


def _enum(names: Collection[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


def _quantity_schema(minimum: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": minimum, "maximum": MAX_QUANTITY}
    text = {"type": "string", "pattern": f"^{QUANTITY.pattern}$"}
    return WithJsonSchema({"anyOf": [number, text]})


def _check_local(value: str) -> str:
    if "://" in value:
        hint = "copy or mount the data on this machine"
        raise wrong("MX007", f"only local paths are supported, found {value!r:.80}", hint)
    if "\0" in value:
        raise wrong("MX007", "a path cannot hold a zero byte")
    return value


def _check_input(value: str) -> str:
    scheme, sign, rest = value.partition("://")
    if not sign:
        return _check_local(value)
    if scheme not in REMOTE or not rest:
        hint = "local paths, or URLs of " + ", ".join(f"{name}://" for name in REMOTE)
        raise wrong("MX007", f"inputs cannot come from {value!r:.80}", hint)
    return value


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise wrong("MX007", f"{value!r} is named twice", "name each format once")
    return values


_SHARES = TypeAdapter(dict[str, Annotated[float, Field(ge=0)]], config=ConfigDict(strict=True))


def _check_weights(value: object) -> object:
    if isinstance(value, dict):
        return _SHARES.validate_python(value)
    if not isinstance(value, str):
        raise wrong(
            "MX007",
            "expected a word, a .json file or a mapping of domains to numbers",
            "words: " + ", ".join(WEIGHT_WORDS),
        )
    if value not in WEIGHT_WORDS and not value.endswith(".json"):
        raise wrong("MX008", f"unknown weights {value!r:.80}", did_you_mean(value, WEIGHT_WORDS))
    return _check_local(value)


Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_check_local),
    WithJsonSchema({"type": "string", "minLength": 1, "not": {"pattern": "://"}}),
]
Quantity = Annotated[
    int, BeforeValidator(parse_quantity), Field(ge=0, le=MAX_QUANTITY), _quantity_schema(0)
]
PositiveQuantity = Annotated[
    int, BeforeValidator(parse_quantity), Field(gt=0, le=MAX_QUANTITY), _quantity_schema(1)
]
RecipeName = Annotated[
    str,
    _matches(RECIPE_NAME, "begin with a letter or digit; then letters, digits, . _ - (64 at most)"),
    WithJsonSchema({"type": "string", "pattern": f"^{RECIPE_NAME}$"}),
]
DomainName = Annotated[
    str,
    _matches(
        DOMAIN_NAME, "begin with a-z or a digit; then a-z, digits, . _ - (64 characters at most)"
    ),
    AfterValidator(_not_reserved),
    WithJsonSchema({"type": "string", "pattern": f"^{DOMAIN_NAME}$"}),
]
FieldName = Annotated[Text, AfterValidator(_check_field)]
Selected = Annotated[tuple[str | bool | int, ...], Field(strict=False, min_length=1)]
EngineName = Annotated[str, _known(ENGINES, "engine"), _enum(ENGINES)]
ReaderName = Annotated[str, _known(READERS, "reader"), _enum(READERS)]
MethodName = Annotated[str, _known(METHODS, "method"), _enum(METHODS)]
WriterName = Annotated[str, _known(WRITERS, "format"), _enum(WRITERS)]
PresetName = Annotated[str, _known(PRESETS, "preset"), _enum(PRESETS)]
# YAML has lists; frozen models hold tuples.
InputPath = Annotated[str, Field(min_length=1), AfterValidator(_check_input)]
Paths = Annotated[tuple[InputPath, ...], Field(strict=False, min_length=1)]
Formats = Annotated[
    tuple[WriterName, ...],
    Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_check_unique),
]
Weights = Annotated[
    str | dict[str, float],
    PlainValidator(_check_weights),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(WEIGHT_WORDS)},
                {"type": "string", "pattern": r"\.json$"},
                {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
            ]
        }
    ),
]
