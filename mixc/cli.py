"""The command line: parse, call, render. No logic lives here."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mixc import __version__, progress
from mixc.cli_options import (
    PATH,
    engine_options,
    gather_options,
    how_to_build,
    how_to_train,
    json_option,
    recipe_options,
    running_options,
    store_option,
    workers_option,
)
from mixc.errors import USAGE, MixcError, MixcErrors

if TYPE_CHECKING:
    from mixc.recipe import Recipe

_BROKEN_PIPE = 128 + signal.SIGPIPE


class _Main(click.Group):
    """Keeps the commands in the order of work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
def cli() -> None:
    """The offline data-mixture compiler for language-model pretraining.

    \b
    mixc run recipes/quickstart.yaml        all three stages, doing only what is stale
    mixc plan recipes/quickstart.yaml       what that would do; writes nothing
    mixc verify build/quickstart/mixture    hash and derive everything again

    Exit codes: 0 ok, 1 failed, 2 usage or recipe, 3 damage found, 4 input changed while read,
    75 locked by another run, 130, 141 and 143 by signal. Of diff 1 is a difference, 2 a failure.
    """


def _load(path: Path, overrides: tuple[str, ...]) -> Recipe:
    from mixc.recipe import load

    return load(path, overrides)


def _give(data: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        click.echo(json.dumps(data))
    else:
        render(data)


@cli.command()
@recipe_options
@workers_option
def tokenize(recipe: Path, overrides: tuple[str, ...], as_json: bool, workers: int) -> None:
    """Turn corpora into a store of memory-mapped Arrow shards."""
    from mixc.report import tables
    from mixc.store.summary import store_summary
    from mixc.tokenize.stage import tokenize as run

    _give(store_summary(run(_load(recipe, overrides), workers=workers)), as_json, tables.store)


@cli.command("solve-weights")
@recipe_options
@running_options
def solve_weights(recipe: Path, overrides: tuple[str, ...], as_json: bool, **running: Any) -> None:
    """Solve for the domain weights by the recipe's method.

    On many devices: torchrun --nproc-per-node N -m mixc solve-weights RECIPE
    """
    from mixc import pipeline

    solved = pipeline.solve_weights(_load(recipe, overrides), how_to_train(**running))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ["RANK"] == "0":
        _give_weights(solved, as_json)


def _give_weights(solved: Any, as_json: bool) -> None:
    from mixc.report import tables

    data = {"path": str(solved.path), **solved.manifest}
    _give(data, as_json, lambda data: tables.weights(data["path"], data))


@cli.command("build-mixture")
@recipe_options
@workers_option
@engine_options
def build_mixture(
    recipe: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    **how: Any,
) -> None:
    """Compile store and weights into trainers' formats."""
    from mixc import pipeline
    from mixc.inspect import mixture_summary
    from mixc.report import tables

    chosen = how_to_build(**how)
    mixture = pipeline.build_mixture(_load(recipe, overrides), **chosen)
    _give(mixture_summary(mixture), as_json, tables.mixture)


@cli.command()
@recipe_options
@workers_option
@engine_options
@running_options
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    events: str | None,
    trackers: tuple[str, ...],
    checkpoint_seconds: float,
    **how: Any,
) -> None:
    """Tokenize, solve and build, doing only what is stale."""
    from mixc import pipeline
    from mixc.inspect import mixture_summary
    from mixc.report import tables
    from mixc.store.summary import store_summary

    chosen, running = how_to_build(**how), how_to_train(checkpoint_seconds, trackers, events)
    done = pipeline.run(_load(recipe, overrides), running=running, **chosen)
    data: dict[str, Any] = {"store": store_summary(done.store), "weights": None}
    if done.weights is not None:
        data["weights"] = {"path": str(done.weights.path), **done.weights.manifest}
    data["mixture"] = mixture_summary(done.mixture)

    def render(data: dict[str, Any]) -> None:
        tables.store(data["store"])
        if data["weights"] is not None:
            tables.weights(data["weights"]["path"], data["weights"])
        tables.mixture(data["mixture"])

    _give(data, as_json, render)


@cli.command()
@recipe_options
@workers_option
@gather_options
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Say what a run would do; write nothing.

    Rows, epochs, bytes, time and disk, stage by stage, as far as they can be known yet, of a run
    with the same options.
    """
    from dataclasses import asdict

    from mixc import pipeline
    from mixc.report import tables

    stages = [asdict(stage) for stage in pipeline.plan(_load(recipe, overrides), **how)]
    _give({"stages": stages}, as_json, lambda data: tables.plan(data["stages"]))


@cli.command()
@click.argument("path", type=PATH)
@store_option
@click.option("--full", is_flag=True, help="Trace all rows of a mixture, not a sample.")
@json_option
def verify(path: Path, store: Path | None, full: bool, as_json: bool) -> None:
    """Hash and derive a store or mixture again.

    Every file is hashed, the ledger, the weights and the order are derived from the provenance
    and the seed, and every format is read to the last token. If the store is at hand, rows are
    compared, token by token, with the documents that they were cut from: those of 8 row groups
    of the provenance (about 16 Mi tokens each) or of one in 16, whichever is more.
    """
    from mixc.verify import verify as check

    report = check(path, store=store, full=full)
    data = {name: value for name, value in vars(report).items() if name not in ("path", "problems")}
    _give({"ok": True, **data}, as_json, lambda data: click.echo(f"ok: {_checked(data)}"))


def _checked(data: dict[str, Any]) -> str:
    text = f"{data['files']} files, {progress.quantity(data['bytes'], 'B')} hashed"
    if data["kind"] == "store":
        return f"{text}, {data['documents']:,} documents counted"
    text += f", the ledger adds up over {data['rows']:,} rows in {data['formats']} formats"
    if not data["derived"]:
        return f"{text}; it has no provenance, and no store beside it to derive where rows are from"
    if data["traced_rows"]:
        text += f", {data['traced_rows']:,} of them traced to the store token by token"
        return text + (" (--full traces all)" if data["traced_rows"] < data["rows"] else "")
    return f"{text}; no store beside the mixture to trace them to"


@cli.command()
@click.argument("path", type=PATH)
@click.option("--row", type=int, help="One row of a mixture: its text, and where it comes from.")
@click.option("--token", type=int, help="One token of a mixture, counted along the stream.")
@click.option("--doc", type=int, help="One document of a store, by its id.")
@click.option("--decode", is_flag=True, help="Show a document's text as well.")
@store_option
@json_option
def inspect(path: Path, as_json: bool, **options: Any) -> None:
    """Show a store or mixture, or one row, token or document."""
    from mixc.inspect import inspect as look
    from mixc.report import sources, tables

    if sum(options[name] is not None for name in ("row", "token", "doc")) > 1:
        raise click.UsageError("choose one of --row, --token and --doc")
    data = look(path, **options)
    render = {
        "store": tables.store,
        "mixture": tables.mixture,
        "row": sources.row,
        "token": sources.token,
        "document": sources.document,
    }[data["kind"]]
    _give(data, as_json, render)


@cli.command()
@recipe_options
@click.option(
    "--mix",
    "mixes",
    multiple=True,
    required=True,
    metavar="NAME",
    help="solved, a method (natural, uniform, doremi, ...) or a .json file of weights. Repeatable.",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Models for each mix."
)
@running_options
def compare(
    recipe: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    mixes: tuple[str, ...],
    seeds: int,
    **running: Any,
) -> None:
    """Rank mixes by small models, trained at equal compute.

    Each mix trains the recipe's proxy once for every seed.

    All mixes share seeds, initialisation and the order of each domain's rows; intervals are those
    of differences to the best mix, seed by seed.
    """
    from mixc.compare import compare_mixes
    from mixc.report import tables

    given, how = _load(recipe, overrides), how_to_train(**running)
    _give(compare_mixes(given, mixes, seeds=seeds, running=how), as_json, tables.league)


@cli.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@json_option
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Tell two mixtures apart. Exits with 0 if they are equal, 1 if not, 2 or more on trouble.

    Equal mixtures have the same stream of tokens, in rows of one length, and the same rows by
    domain, whatever their formats.
    """
    from mixc.diff import diff as compare
    from mixc.report import tables

    data = compare(a, b)
    _give(data, as_json, tables.diff)
    ctx.exit(0 if data["equal"] else 1)


@cli.command("megatron-cache")
@click.argument("mixture", type=PATH)
@click.argument("cache", type=PATH)
@click.option("--prefix", help="The path that Megatron was given; default: the mixture's own.")
@json_option
def megatron_cache(mixture: Path, cache: Path, prefix: str | None, as_json: bool) -> None:
    """Make Megatron keep the compiled order.

    Megatron shuffles rows once more, and keeps how in the folder that --data-cache-path names.
    Let it make its index there, by its tools/prepare_cache.py or by a start of training with
    --exit-interval 1; this command puts the index in order. Then train with the same arguments
    and --dataloader-fast-cache-load: if one differs, Megatron stops instead of shuffling.
    """
    from dataclasses import asdict

    from mixc.build.megatron_cache import keep_order

    found = [asdict(index) for index in keep_order(mixture, cache, prefix=prefix)]
    _give({"indices": found}, as_json, _indices)


def _indices(data: dict[str, Any]) -> None:
    for index in data["indices"]:
        state = "put in order" if index["changed"] else "was in order"
        count = f"{index['samples']:,} samples, {index['epochs']} epochs"
        click.echo(f"{index['name']}: {count}, {state}")


@cli.command()
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from mixc.recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=None if as_json else 2))


def main() -> NoReturn:
    """Run a command and exit with its code."""
    gc.set_threshold(100_000)  # what is imported is no garbage, and takes long to be looked through
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False) or 0
        sys.stdout.flush()
    except (MixcError, MixcErrors) as error:
        code = _fail(error)
    except MemoryError:
        code = _fail(MixcError("MX046", "out of memory"))
    except click.ClickException as error:
        error.show()
        code = error.exit_code
        if "--json" in sys.argv:
            click.echo(json.dumps({"errors": [{"code": None, "message": error.format_message()}]}))
    except (BrokenPipeError, SystemExit):
        # Outside its standalone mode click exits by itself for one reason: a closed pipe.
        _leave(_BROKEN_PIPE)
    except Exception:  # a fault of ours
        if not _tells_apart():
            raise
        traceback.print_exc()
        code = USAGE
    _end(code)


def _fail(error: MixcError | MixcErrors) -> int:
    errors = error.errors if isinstance(error, MixcErrors) else (error,)
    progress.say("\n\n".join(str(one) for one in errors))
    if "--json" in sys.argv:
        click.echo(json.dumps({"errors": [one.as_dict() for one in errors]}))
    return max(error.exit_code, USAGE) if _tells_apart() else error.exit_code


def _tells_apart() -> bool:
    """Whether an exit code of 1 says that two mixtures differ, and so nothing else."""
    return sys.argv[1:2] == ["diff"]


def _stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End at once: whatever moment it is, what is staged can be adopted and the rest is whole."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}\nstopped: no output is half done; run again to go on\n".encode())
    _leave(128 + signum)


def _end(code: int) -> NoReturn:
    """Exit once what is registered for the end has run.

    What libraries hold is not taken apart: that takes time, and some print what they leak.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def _leave(code: int) -> NoReturn:
    """Exit without waiting for workers: they end when this process does."""
    os._exit(code)
