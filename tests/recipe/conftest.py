"""A recipe in the current folder."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes r.yaml into the current folder, so that errors show a short path."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str) -> Path:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return Path("r.yaml")

    return write_recipe
