"""The rules of the house, as DESIGN states them, kept by the tree itself."""

import ast
import importlib.util
from pathlib import Path

import pytest

from mixc.registry import METHODS, READERS, WRITERS

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "mixc").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
OTHERS = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]

# From the ground up. A file imports from its own floor's package or from lower floors alone.
FLOORS = [
    {"errors", "progress", "rng", "kernels"},
    {"strict_yaml", "registry", "store", "engine"},
    {"recipe_types", "rows", "readers"},
    {"recipe_schema"},
    {"recipe", "writers", "report"},
    {"tokenize", "proxy", "build"},
    {"solve", "verify", "inspect", "diff"},
    {"methods", "pipeline"},
    {"compare", "cli_options"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def room(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "kernels" if parts[0] == "kernels" else parts[1]


def imports(path):
    """(module, room) of every import of ours, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "mixc_kernels":
                yield name, "kernels"
            elif parts[0] == "mixc" and len(parts) > 1 and not parts[1].startswith("__"):
                yield name, parts[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_imports_upwards(path):
    mine = room(path)
    if mine == "__init__":
        return
    for name, theirs in imports(path):
        assert theirs == mine or LEVEL[theirs] < LEVEL[mine], f"{path} imports {name}"


@pytest.mark.parametrize("rack", ["readers", "methods", "writers"])
def test_racks_are_reached_through_the_registry(rack):
    entries = {"readers": READERS, "methods": METHODS, "writers": WRITERS}[rack]
    for path in SOURCES:
        for name, theirs in imports(path):
            if theirs == rack and room(path) != rack:
                assert name.split(".")[2] not in entries, f"{path} names {name}"


@pytest.mark.parametrize("rack", ["readers", "methods", "writers"])
def test_an_entry_is_a_file_of_its_own_name(rack):
    entries = {"readers": READERS, "methods": METHODS, "writers": WRITERS}[rack]
    for name, entry in entries.items():
        assert entry.module == f"mixc.{rack}.{name}"
        assert (ROOT / "mixc" / rack / f"{name}.py").exists()
        assert entry.summary


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), ast.unparse(node)


WRITES = {"fsync", "rename", "replace", "posix_fallocate", "unlink", "write_bytes", "write_text"}
WRITES |= {"mkdir", "rmdir", "rmtree", "hardlink_to", "symlink_to", "ftruncate", "pwrite", "touch"}


def test_only_the_store_writes_files():
    for path in SOURCES:
        if room(path) == "kernels" or path.parts[-2:] in (
            ("store", "commit.py"),
            ("store", "parts.py"),
        ):
            continue
        for name, call in calls(path):
            if name.startswith(("commit.", "parts.")):
                continue
            method = name.split(".")[-1]
            # str.replace and dataclasses.replace are no writes.
            assert method not in WRITES - {"replace"}, f"{path}: {call}"
            assert "'w" not in call or not name.endswith("open"), f"{path}: {call}"
            assert name != "os.replace", f"{path}: {call}"


def test_nothing_unsafe():
    banned = ("pickle", "dill", "eval", "exec", "yaml.load", "torch.load", "os.system")
    for path in SOURCES:
        for name, call in calls(path):
            assert name not in banned, f"{path}: {call}"
            assert name.split(".")[0] not in {"pickle", "dill"}, f"{path}: {call}"
            assert "allow_pickle=True" not in call, f"{path}: {call}"
            assert "trust_remote_code" not in call, f"{path}: {call}"
            assert "shell=True" not in call, f"{path}: {call}"


def test_all_randomness_is_counter_based():
    for path in SOURCES:
        for name, call in calls(path):
            allowed = name == "np.random.Philox" and path.name == "rng.py"
            assert allowed or "random." not in name, f"{path}: {call}"
            assert "manual_seed" not in name, f"{path}: {call}"


def test_files_are_small():
    lengths = {path: len(path.read_bytes().splitlines()) for path in [*SOURCES, *OTHERS]}
    for path, length in lengths.items():
        assert length <= 500, f"{path} is {length} lines long"
    assert sorted(lengths[path] for path in SOURCES)[len(SOURCES) // 2] <= 180


def test_functions_fit_on_a_screen():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= 60, f"{path}: {node.name} is {length} lines long"


def test_names_that_belong_to_others():
    for folder in ("kernels", "recipes", "tools", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or not found.origin.startswith(str(ROOT))
