"""A mixture and its store, to verify and to damage."""

import shutil

import pytest
from build_helpers import make_mixture, small_blocks
from verify.forging import CORPUS, MIXTURE


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store and a mixture of three blocks, in two formats."""
    folder = tmp_path_factory.mktemp("verify")
    with small_blocks(16 * 5):
        make_mixture(folder, CORPUS, mixture=MIXTURE)
    return folder / "out"


@pytest.fixture
def out(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "out")
