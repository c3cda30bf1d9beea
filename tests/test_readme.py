"""What the README, the Makefile and the ready recipes say must be so."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from mixc.cli import cli
from mixc.recipe import json_schema, load
from mixc.registry import METHODS, READERS, WRITERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def lines(program: str) -> list[str]:
    """Every command line of the README's blocks that calls a program."""
    found = []
    for language, text in BLOCKS:
        if language in ("sh", "console"):
            found += [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line for line in found if line.split()[:1] == [program]]


def recipes() -> list[str]:
    return [text for language, text in BLOCKS if language == "yaml"]


def test_something_is_checked():
    assert len(lines("mixc")) >= 8 and len(lines("make")) >= 2 and recipes()


@pytest.mark.parametrize("line", lines("mixc"))
def test_command_lines_parse(line):
    words = shlex.split(line.partition(" > ")[0], comments=True)
    name, command, arguments = cli.resolve_command(click.Context(cli), words[1:])
    assert name is not None and command is not None
    command.make_context(name, arguments)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_named(name):
    assert f"mixc {name}" in README


@pytest.mark.parametrize("line", lines("make"))
def test_make_targets_exist(line):
    for word in shlex.split(line, comments=True)[1:]:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(recipes())))
def test_recipes_in_the_readme_load(number, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes()[number], encoding="utf-8")
    load(path)


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.strip().replace(" ", "-")


def test_links_lead_somewhere():
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        assert not anchor or path or anchor in anchors, target


@pytest.mark.parametrize("name", [*READERS, *METHODS, *WRITERS])
def test_every_entry_of_the_racks_is_named(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_ready_recipes_load(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    load(path)


def test_the_schema_is_current():
    written = (ROOT / "recipes/recipe.schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(json_schema(), indent=2) + "\n", "run `make schema`"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-readers.txt"])
def test_constraints_are_versions_alone(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins), pins
    assert "torch" in {pin.partition("==")[0] for pin in pins}
