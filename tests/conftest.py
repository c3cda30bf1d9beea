"""Shared fixtures; the functions behind them are in `helpers`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import texts, write_recipe

from mixc.recipe import load
from mixc.store.store import Store
from mixc.tokenize.stage import tokenize


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Asked for with `-m readers`, a reader that is not installed is a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.config.option.markexpr == "readers":
        report.outcome = "failed"


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of two domains, `web` (60 documents) and `code` (40). Not to be changed."""
    folder: Path = tmp_path_factory.mktemp("small")
    path = write_recipe(folder, {"web": texts(1, 60), "code": texts(2, 40)})
    return tokenize(load(path), workers=1)
