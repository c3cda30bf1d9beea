"""Fixtures of the writers: a mixture in every format, and borders between few rows."""

import pytest
from build_helpers import make_mixture
from writers.exports import CORPUS, SMALL
from writers.formats import NARROW, WIDE


@pytest.fixture(scope="module")
def built(request, tmp_path_factory):
    """A store and a mixture in every format that can hold its tokens."""
    wide = request.param == "uint32"
    mixture = {"rows": 30, "seq_len": 16, "formats": WIDE if wide else NARROW}
    options = {"mixture": mixture, "holdout": {"fraction": 0.2}, "words": 70_000 if wide else 300}
    store, built = make_mixture(tmp_path_factory.mktemp(request.param), CORPUS, **options)
    assert built.manifest["dtype"] == request.param
    return store, built


@pytest.fixture
def small(monkeypatch):
    for name, constants in SMALL.items():
        for constant, value in constants.items():
            monkeypatch.setattr(f"mixc.writers.{name}.{constant}", value)
