"""Errors as users see them: a code, what happened, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

FAILED, USAGE, DAMAGED, CHANGED, LOCKED = 1, 2, 3, 4, 75

# code -> (exit code, what the code stands for). Codes are never reused.
CODES: dict[str, tuple[int, str]] = {
    "MX001": (USAGE, "the recipe cannot be read"),
    "MX002": (USAGE, "the recipe is not valid YAML"),
    "MX003": (USAGE, "a key stands twice"),
    "MX004": (USAGE, "a YAML feature that recipes do not allow"),
    "MX005": (USAGE, "unknown key"),
    "MX006": (USAGE, "missing key"),
    "MX007": (USAGE, "wrong value"),
    "MX008": (USAGE, "unknown name"),
    "MX009": (USAGE, "keys that exclude or require each other"),
    "MX010": (USAGE, "a bad -s override"),
    "MX012": (USAGE, "a domain matched no files"),
    "MX013": (USAGE, "one file belongs to two domains"),
    "MX014": (USAGE, "no reader for a file"),
    "MX020": (FAILED, "a record is not valid JSON"),
    "MX021": (FAILED, "a record lacks its text"),
    "MX022": (FAILED, "text is not valid UTF-8"),
    "MX023": (FAILED, "a document is empty"),
    "MX024": (FAILED, "a document is over the size cap"),
    "MX025": (FAILED, "a compressed file is damaged or cut short"),
    "MX026": (FAILED, "a parquet, arrow or csv file cannot be read"),
    "MX027": (FAILED, "an input file cannot be opened or read"),
    "MX028": (FAILED, "an input yields no document"),
    "MX029": (CHANGED, "an input changed while it was read"),
    "MX030": (FAILED, "a tokenizer cannot be used"),
    "MX031": (FAILED, "a token id is out of range"),
    "MX032": (FAILED, "a document spells the end-of-text token"),
    "MX033": (FAILED, "a compressed file expands beyond the caps"),
    "MX034": (FAILED, "a row is not valid CSV"),
    "MX035": (USAGE, "a saved dataset cannot be read as it is"),
    "MX037": (FAILED, "an optional package is missing"),
    "MX040": (DAMAGED, "damage found"),
    "MX041": (FAILED, "an output is missing"),
    "MX042": (LOCKED, "another run holds the output"),
    "MX043": (FAILED, "an output cannot be written"),
    "MX044": (FAILED, "an output of another version"),
    "MX045": (FAILED, "an output is stale"),
    "MX046": (FAILED, "a worker process died, or memory ran out"),
    "MX047": (FAILED, "an encoding engine cannot be used"),
    "MX048": (FAILED, "an encoding engine gave other ids than the reference"),
    "MX049": (FAILED, "values of split_by that cannot be domains"),
    "MX050": (FAILED, "the proxy diverged"),
    "MX051": (FAILED, "a domain is too small to solve for"),
    "MX060": (FAILED, "the mixture cannot be built from this data"),
    "MX061": (FAILED, "weights that do not fit the store"),
    "MX062": (FAILED, "a format cannot hold this mixture"),
    "MX063": (FAILED, "Megatron was given arguments that do not fit the mixture"),
    "MX070": (USAGE, "nothing of that kind at this path"),
    "MX080": (FAILED, "a Ray cluster cannot be used, or was lost"),
}


@dataclass(frozen=True)
class Place:
    """Where something is wrong: a line of a recipe, or a record of a corpus file."""

    file: str
    line: int | None = None
    col: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        text = self.file
        for number in (self.line, self.col):
            if number is None:
                break
            text += f":{number}"
        return f"{text} ({self.detail})" if self.detail else text


class MixcError(Exception):
    """One thing that is wrong, with its remedy. `code` must stand in `CODES`."""

    def __init__(
        self, code: str, message: str, *, place: Place | None = None, help: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.place, self.help = code, message, place, help
        self.exit_code = CODES[code][0]

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the default protocol forgets keyword arguments.
        return _rebuild, (self.code, self.message, self.place, self.help)

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        if self.place is not None:
            lines.append(f" --> {self.place}")
        if self.help is not None:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The error as `--json` prints it."""
        place = None if self.place is None else str(self.place)
        return {"code": self.code, "message": self.message, "place": place, "help": self.help}


class MixcErrors(Exception):  # noqa: N818 (one of them is MixcError)
    """Everything that is wrong, at once."""

    def __init__(self, errors: Sequence[MixcError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = tuple(errors)
        self.exit_code = errors[0].exit_code

    def __str__(self) -> str:
        return "\n\n".join(str(error) for error in self.errors)


def _rebuild(code: str, message: str, place: Place | None, help: str | None) -> MixcError:
    return MixcError(code, message, place=place, help=help)


@contextmanager
def located(place: Place) -> Iterator[None]:
    """Give errors that do not know their place this one."""
    try:
        yield
    except MixcError as error:
        error.place = error.place or place
        raise


def raise_all(errors: Sequence[MixcError]) -> None:
    """Raise the errors, if there are any."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise MixcErrors(errors)


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """A help line that names the nearest known word, or lists all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(known) if known else None
