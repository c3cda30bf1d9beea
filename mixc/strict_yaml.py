"""Load untrusted YAML as plain data: no duplicate keys, aliases, tags or guesses about types.

PyYAML composes the nodes; no object is ever constructed. Plain scalars follow the core schema of
YAML 1.2, so `no` is a string and `1e-3` is a number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from mixc.errors import MixcError, Place, raise_all

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_DIGITS = 100  # int() refuses 4300 digits and more, and nothing here needs so many

WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}
INTEGER = re.compile(r"[-+]?[0-9](?:_?[0-9])*|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

# part of PyYAML's complaint -> the remedy
SYNTAX_HELP = {
    r"'\t'": "indent with spaces: YAML does not allow tabs",
    "while scanning an alias": "put text that begins with '*' in quotes: \"*.jsonl\"",
    "while scanning an anchor": "put text that begins with '&' in quotes",
    "mapping values are not allowed": "indent keys alike, and put text that holds ': ' in quotes",
    "cannot start any token": "put text that begins with this character in quotes",
    "unknown escape character": "in double quotes write \\ as \\\\, or use single quotes",
    "while scanning a quoted scalar": "close the quotes",
    "could not find expected ':'": "write 'key: value', with a space after the colon",
    "while parsing a flow sequence": "close the list with ']'",
    "while parsing a flow mapping": "close the mapping with '}'",
    "while parsing a block": "indent the keys or items of one level alike",
}

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """Where a value and its key stand; all count from 1. An item of a list is its own key."""

    key_line: int
    key_col: int
    line: int
    col: int


@dataclass(frozen=True)
class Document:
    """Plain data, and the mark of every path in it; `()` is the root."""

    data: object
    marks: dict[Keys, Mark]
    file: str


def load(path: Path) -> Document:
    """Load a file. Raises MixcError or MixcErrors, with everything that is wrong."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "check the path of the recipe"
        raise _error("MX001", f"cannot read the file: {reason}", Place(str(path)), hint) from None
    return load_bytes(raw, str(path))


def load_bytes(raw: bytes, file: str) -> Document:
    """Load the bytes of a file; `file` is the name that errors show."""
    if len(raw) > MAX_BYTES:
        hint = "a recipe holds settings, not data"
        raise _error("MX004", f"the file is over {MAX_BYTES:,} bytes", Place(file), hint)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"byte {error.start} is not valid UTF-8"
        raise _error("MX001", message, Place(file, line), "save the file as UTF-8") from None
    return load_text(text, file)


def load_text(text: str, file: str) -> Document:
    """Load text; `file` is the name that errors show."""
    root, errors = _compose(text, file)
    reader = _Reader(file, errors)
    data = None
    if root is None:
        reader.marks[()] = Mark(1, 1, 1, 1)
    else:
        data = reader.read(root, (), root)
    raise_all(sorted(reader.errors, key=_position))
    return Document(data, reader.marks, file)


def parse_value(text: str) -> object:
    """The value that the text stands for, by the rules of a recipe. Raises as `load` does."""
    return load_text(text, "value").data


def plain_scalar(text: str) -> object:
    """What an unquoted scalar stands for. ValueError if it is a number that cannot be held."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of more than {MAX_DIGITS} digits")
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    if FLOAT.fullmatch(text) or NOT_FINITE.fullmatch(text):
        raise ValueError(f"expected a finite number, found {text[:40]}")
    return text


class _Spot(Protocol):
    """A mark of PyYAML, which has two classes of them. Counts from 0."""

    line: int
    column: int


class _Composer(yaml.SafeLoader):
    """Composes nodes; notes anchors, aliases and tags, which it takes out, and stops when deep."""

    def __init__(self, text: str, file: str) -> None:
        self.errors: list[MixcError] = []
        self.file = file
        self.depth = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.next_event()
        if isinstance(event, yaml.AliasEvent):
            self.forbid_alias(event)
        else:
            self.strip(event)
        if self.depth == MAX_DEPTH and isinstance(event, yaml.CollectionStartEvent):
            message = f"nested more than {MAX_DEPTH} levels deep"
            raise _error("MX004", message, _place(self.file, event.start_mark))
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def next_event(self) -> yaml.Event:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        return event

    def forbid_alias(self, event: yaml.AliasEvent) -> None:
        """Note the alias and put text in its stead, so that reading can go on."""
        text = f"*{event.anchor}"
        self.forbid(event, f"the alias {text}", f'if this is text, put it in quotes: "{text}"')
        start, end = event.start_mark, event.end_mark
        self.current_event = yaml.ScalarEvent(None, None, (False, True), text, start, end, "'")

    def strip(self, event: yaml.Event) -> None:
        """Note and take out what makes a node more than plain data."""
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor is not None:
            hint = "write the value out wherever it is needed"
            self.forbid(event, f"the anchor &{event.anchor}", hint)
            event.anchor = None
        if event.tag is not None:
            hint = "leave the tag out; quotes make a text of any value"
            self.forbid(event, f"the tag {event.tag}", hint)
            event.tag = None

    def forbid(self, event: yaml.Event, what: str, hint: str) -> None:
        place = _place(self.file, event.start_mark)
        self.errors.append(_error("MX004", f"{what} is not allowed in a recipe", place, hint))


class _Reader:
    """Turns nodes into plain data, and collects marks and errors on the way."""

    def __init__(self, file: str, errors: list[MixcError]) -> None:
        self.file = file
        self.errors = errors
        self.marks: dict[Keys, Mark] = {}

    def read(self, node: yaml.Node, path: Keys, key: yaml.Node) -> object:
        self.marks[path] = _mark(key, node)
        if isinstance(node, yaml.MappingNode):
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), item) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.read_scalar(node)

    def read_mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self.read_key(key_node)
            if key is None:
                self.read(value_node, (*path, ""), key_node)  # for the errors inside
            elif key in values:
                line = self.marks[(*path, key)].key_line
                message = f"the key {key!r} stands twice; the first is on line {line}"
                self.note("MX003", message, key_node, "keep one of the two")
            else:
                values[key] = self.read(value_node, (*path, key), key_node)
        return values

    def read_key(self, node: yaml.Node) -> str | None:
        """The key, or None after noting why it cannot be one."""
        if not isinstance(node, yaml.ScalarNode):
            self.note("MX004", "a key must be text, not a list or a mapping", node)
            return None
        if node.style is None and node.value == "<<":
            hint = "write the keys out wherever they are needed"
            self.note("MX004", "the merge key << is not allowed in a recipe", node, hint)
            return None
        key = self.read_scalar(node)
        if isinstance(key, str):
            return key
        shown = node.value[:40]
        hint = f'put it in quotes: "{shown}"'
        self.note("MX004", f"a key must be text, found {shown or 'nothing'}", node, hint)
        return None

    def read_scalar(self, node: yaml.ScalarNode) -> object:
        try:
            if node.style is None:
                return plain_scalar(node.value)
            return _join_surrogates(node.value)
        except UnicodeError:
            self.note("MX007", "half of a surrogate pair is not text", node)
        except ValueError as error:
            self.note("MX007", str(error), node, "put it in quotes if it is text")
        return ""

    def note(self, code: str, message: str, node: yaml.Node, hint: str | None = None) -> None:
        self.errors.append(_error(code, message, _place(self.file, node.start_mark), hint))


def _compose(text: str, file: str) -> tuple[yaml.Node | None, list[MixcError]]:
    """The root node, and what was wrong with single nodes. Raises if the rest cannot be read."""
    try:
        composer = _Composer(text, file)
    except yaml.reader.ReaderError as error:
        raise _unprintable(text, file, error.position) from None
    try:
        # check_node first: it is what reads the start of the stream
        root = composer.get_node() if composer.check_node() else None
        if composer.check_node():
            place = _place(file, composer.next_event().start_mark)
            message = "a second document begins here; a recipe is one document"
            composer.errors.append(_error("MX004", message, place, "remove the '---' line"))
    except MixcError as error:
        raise_all([*composer.errors, error])
    except yaml.MarkedYAMLError as error:
        raise_all([*composer.errors, _syntax_error(file, error)])
    except (ValueError, OverflowError):
        # PyYAML lets these out for escapes like "\UFFFFFFFF".
        place = _place(file, composer.get_mark())
        raise_all([*composer.errors, _error("MX002", "a number here is too large", place)])
    return root, composer.errors


def _syntax_error(file: str, error: yaml.MarkedYAMLError) -> MixcError:
    mark = error.problem_mark or error.context_mark
    place = Place(file) if mark is None else _place(file, mark)
    message = ", ".join(part for part in (error.context, error.problem) if part)
    start = error.context_mark
    if start is not None and mark is not None and start.line != mark.line:
        message += f" (it begins on line {start.line + 1})"
    hint = next((hint for part, hint in SYNTAX_HELP.items() if part in message), None)
    if hint is None:
        hint = "check the indentation, quotes and brackets here and on the line above"
    return _error("MX002", message, place, hint)


def _unprintable(text: str, file: str, position: int) -> MixcError:
    before = text[:position]
    line, col = before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1
    message = f"the control character U+{ord(text[position]):04X} is not allowed"
    return _error("MX002", message, Place(file, line, col), "remove it")


def _join_surrogates(text: str) -> str:
    """Join pairs that JSON writes as two escapes. UnicodeError if a half stands alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _mark(key: yaml.Node, node: yaml.Node) -> Mark:
    start, value = key.start_mark, node.start_mark
    return Mark(start.line + 1, start.column + 1, value.line + 1, value.column + 1)


def _place(file: str, mark: _Spot | None) -> Place:
    assert mark is not None
    return Place(file, mark.line + 1, mark.column + 1)


def _position(error: MixcError) -> tuple[int, int]:
    assert error.place is not None
    return error.place.line or 0, error.place.col or 0


def _error(code: str, message: str, place: Place, hint: str | None = None) -> MixcError:
    return MixcError(code, message, place=place, help=hint)
