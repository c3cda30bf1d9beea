"""The trial of an engine before a run: hard texts, and the first texts of every domain."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import groupby
from operator import attrgetter

from mixc.engine.local import Crew
from mixc.errors import MixcError
from mixc.recipe import Recipe
from mixc.store.hashes import key_of
from mixc.tokenize.check import Mismatch, trials
from mixc.tokenize.encoder import TokenizerFile
from mixc.tokenize.engines import REFERENCE, Encoded, joined
from mixc.tokenize.inputs import Input
from mixc.tokenize.reading import head
from mixc.tokenize.rules import rules_of
from mixc.tokenize.unit import try_engine

_HEAD_BYTES = (32_000, 1_000_000)  # at least, at most; between them a hundredth of a domain


def head_bytes(domain_bytes: int) -> int:
    """How much of a domain's first text an engine is tried on before it encodes the domain."""
    least, most = _HEAD_BYTES
    return max(least, min(most, domain_bytes // 100))


class Trial:
    """What engines are tried on, one after the other; nothing is read before it is asked for."""

    def __init__(self, recipe: Recipe, inputs: Sequence[Input], file: TokenizerFile) -> None:
        self._recipe, self._inputs, self._file = recipe, inputs, file
        self._expected: list[Future[Encoded]] = []

    @cached_property
    def _texts(self) -> list[list[str]]:
        heads: list[str] = []
        for name, mine in groupby(self._inputs, key=attrgetter("domain")):
            heads += _heads(list(mine), self._recipe, name)
        return trials(self._file.specials, heads)

    def key(self) -> str:
        """A key of the texts."""
        return key_of(self._texts)

    def run(self, engine: str, crew: Crew) -> Mismatch | None:
        """The first mismatch of an engine, by its name, if there is one.

        Raises Refused, and Failed where the reference gives up.
        """
        with ThreadPoolExecutor(crew.workers) as pool:
            if not self._expected:
                reference = self._file.engine(REFERENCE)
                self._expected = [pool.submit(reference.encode, texts) for texts in self._texts]
            try:
                # Meanwhile the workers load the engine, or say that they cannot.
                self._try(engine, [([], joined([]))], crew)
                expected = [future.result() for future in self._expected]
            except BaseException:
                for future in self._expected:
                    future.cancel()
                self._expected = []
                raise
        return self._try(engine, list(zip(self._texts, expected, strict=True)), crew)

    def _try(
        self, engine: str, texts: list[tuple[list[str], Encoded]], crew: Crew
    ) -> Mismatch | None:
        tasks = [(engine, *one) for one in texts]
        found = list(crew.run(try_engine, tasks, report=lambda _: None))
        return next((mismatch for mismatch in found if mismatch is not None), None)


def _heads(mine: list[Input], recipe: Recipe, name: str) -> list[str]:
    """The first texts of a domain."""
    rules, found = rules_of(recipe.domains[name]), []
    left = head_bytes(sum(item.bytes for item in mine))
    for item in mine:
        if left <= 0:
            break
        # A file that cannot be read is for the run to tell of.
        with suppress(MixcError):
            for text in head(item, rules, left):
                found.append(text)
                left -= len(text.encode())
    return found
