"""The command line: what it imports, prints and exits with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from build_helpers import tree_hash
from helpers import write_recipe

from mixc.errors import CODES

COMMANDS = [
    "tokenize",
    "solve-weights",
    "build-mixture",
    "run",
    "plan",
    "verify",
    "inspect",
    "compare",
    "diff",
    "megatron-cache",
    "schema",
]


def mixc(*words, **options):
    options = {"capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run([sys.executable, "-m", "mixc", *map(str, words)], **options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    words = [f"{a} the quick brown fox jumps over lazy dogs {a * 7}" for a in range(300)]
    return write_recipe(
        tmp_path_factory.mktemp("cli"),
        {"web": words[:200], "code": words[200:]},
        mixture={
            "weights": "uniform",
            "rows": 40,
            "seq_len": 32,
            "formats": ["nanogpt", "megatron"],
        },
    )


@pytest.fixture(scope="module")
def built(recipe):
    done = mixc("run", recipe, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "mixc", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow", "datasets", "numba", "tokenizers", "pydantic"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = mixc(command, "-h")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: python -m mixc {command}")


def test_help_lists_every_command_whole():
    listed = mixc("--help").stdout
    lines = listed[listed.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines if line.strip()] == COMMANDS
    assert not any(line.endswith("...") for line in lines)


def test_run_gives_one_json_object(built):
    assert set(built) == {"store", "weights", "mixture"}
    assert built["weights"] is None
    assert built["mixture"]["rows"] == 40
    assert built["store"]["domains"]["web"]["documents"] == 200


@pytest.mark.parametrize("command", ["tokenize", "build-mixture", "run", "plan"])
def test_json_on_stdout_and_words_on_stderr(recipe, built, command):
    done = mixc(command, recipe, "--json")
    assert done.returncode == 0
    json.loads(done.stdout)
    assert "hash inputs" in done.stderr or command == "build-mixture"


def test_a_second_run_does_nothing(recipe, built):
    root = Path(built["mixture"]["path"]).parent
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert mixc("run", recipe).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert {p: t for p, t in before.items() if p.name != "lock"} == {
        p: t for p, t in after.items() if p.name != "lock"
    }


def test_plan_says_what_is_fresh_and_writes_nothing(recipe, built):
    stages = json.loads(mixc("plan", recipe, "--json").stdout)["stages"]
    assert {s["stage"]: s["status"] for s in stages} == {
        "tokenize": "fresh",
        "build-mixture": "fresh",
    }
    away = recipe.parent / "elsewhere"
    done = mixc("plan", recipe, "--json", "-s", f"workdir={away}")
    stages = json.loads(done.stdout)["stages"]
    assert [s["status"] for s in stages] == ["missing", "missing"]
    assert stages[0]["details"]["about_tokens"] > 0
    assert not away.exists()


def test_plan_estimates_tokens_closely(recipe, built):
    away = recipe.parent / "elsewhere"
    stages = json.loads(mixc("plan", recipe, "--json", "-s", f"workdir={away}").stdout)["stages"]
    tokens = sum(domain["tokens"] for domain in built["store"]["domains"].values())
    assert stages[0]["details"]["about_tokens"] == pytest.approx(tokens, rel=0.3)


def test_a_changed_key_redoes_only_its_stage(recipe, built):
    stages = json.loads(mixc("plan", recipe, "--json", "-s", "mixture.rows=50").stdout)["stages"]
    assert [(s["stage"], s["status"]) for s in stages] == [
        ("tokenize", "fresh"),
        ("build-mixture", "stale"),
    ]
    stages = json.loads(mixc("plan", recipe, "--json", "-s", "seed=7").stdout)["stages"]
    assert [s["status"] for s in stages] == ["fresh", "stale"]
    done = mixc("plan", recipe, "--json", "-s", "holdout.fraction=0.3")
    assert json.loads(done.stdout)["stages"][0]["status"] == "stale"


def test_verify_and_inspect(built):
    mixture, store = built["mixture"]["path"], built["store"]["path"]
    assert json.loads(mixc("verify", mixture, "--json").stdout)["traced_rows"] == 40
    assert json.loads(mixc("verify", store, "--json").stdout)["documents"] == 300
    row = json.loads(mixc("inspect", mixture, "--row", 3, "--decode", "--json").stdout)
    assert row["row"] == 3
    assert len(row["tokens"]) == 32
    assert mixc("inspect", mixture).stdout.count("web") == 1


def test_damage_exits_3_and_names_the_file(recipe, built, tmp_path):
    import shutil

    shutil.copytree(built["mixture"]["path"], tmp_path / "mixture")
    path = tmp_path / "mixture/nanogpt/train.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.unlink()  # a hard link: the other format keeps its bytes
    path.write_bytes(raw)
    done = mixc("verify", tmp_path / "mixture", "--json")
    assert done.returncode == 3
    assert "nanogpt/train.bin" in done.stderr
    assert json.loads(done.stdout)["errors"][0]["code"] == "MX040"


def test_exit_codes_of_usage_and_failure(recipe, tmp_path):
    assert mixc("run", tmp_path / "none.yaml").returncode == 2
    assert mixc("run").returncode == 2
    assert mixc("walk").returncode == 2
    assert mixc("verify", tmp_path).returncode == 2
    away = tmp_path / "away"
    done = mixc("build-mixture", recipe, "-s", f"workdir={away}")
    assert done.returncode == 1
    assert "run `mixc tokenize` first" in done.stderr
    assert {code for code, _ in CODES.values()} == {1, 2, 3, 4, 75}


def test_a_closed_pipe_exits_141():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        done = mixc("schema", capture_output=False, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 141, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_run_and_it_goes_on_later(recipe, tmp_path, number):
    workdir = tmp_path / "out"
    command = [sys.executable, "-m", "mixc", "run", str(recipe), "-s", f"workdir={workdir}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert mixc("run", recipe, "-s", f"workdir={workdir}").returncode == 0
    assert mixc("verify", workdir / "mixture").returncode == 0


def test_a_signal_sent_again_and_again_does_no_more_harm(recipe, built, tmp_path):
    """However a run is stopped, the next one makes the bytes of an undisturbed one."""
    workdir = tmp_path / "out"
    command = [sys.executable, "-m", "mixc", "run", str(recipe), "-s", f"workdir={workdir}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    process.stderr.readline()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert b"stopped: no output is half done; run again to go on" in said
    assert mixc("run", recipe, "-s", f"workdir={workdir}").returncode == 0
    for name in ("store", "mixture"):
        assert tree_hash(workdir / name) == tree_hash(built[name]["path"])


def test_schema_is_a_json_schema():
    schema = json.loads(mixc("schema").stdout)
    assert schema["required"] == ["name", "tokenizer", "domains", "mixture"]


def test_out_of_memory_is_an_error_in_words():
    code = (
        "import sys, mixc.cli, mixc.recipe\n"
        "def fail(): raise MemoryError\n"
        "mixc.recipe.json_schema, sys.argv = fail, ['mixc', 'schema', '--json']\n"
        "mixc.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "error[MX046]: out of memory" in done.stderr
    assert json.loads(done.stdout)["errors"][0]["code"] == "MX046"
